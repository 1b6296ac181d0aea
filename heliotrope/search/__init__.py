"""Searches: what is tried next, and what came of what was tried."""
