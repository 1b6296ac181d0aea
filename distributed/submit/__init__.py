"""Sending a command of ours to a cluster: prepared, shown or sent, followed, stopped."""
