"""Where clients are trained: in this process, or on persistent Ray actors."""
