"""A run's directory and what is kept in it: events, checkpoints, results."""
