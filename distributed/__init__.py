"""Data-parallel training: launchers, worker, sharding."""
