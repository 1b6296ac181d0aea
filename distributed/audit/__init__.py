"""What `heliotrope audit` asks of a data-parallel run."""
