"""A Ray cluster as both modes use it; `ray` itself comes in as a module."""
