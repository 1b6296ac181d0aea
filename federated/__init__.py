"""Federated training: round loop, cohort engine, strategies, deployment."""
