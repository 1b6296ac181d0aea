"""Layers that several model families use."""
