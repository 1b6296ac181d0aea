"""Heliotrope: one experiment, trained where the compute is and where the data is."""

__version__ = "0.1.0"
