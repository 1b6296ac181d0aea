"""What `heliotrope audit` asks of a federated run."""
