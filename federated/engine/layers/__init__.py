"""Layers and functions of torch that cannot be stacked, written so that they can."""
