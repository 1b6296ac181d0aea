"""The commands besides training, and the command line before Hydra reads it."""
