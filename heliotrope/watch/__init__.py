"""Runs while they go on: a local web page with their states and curves."""
