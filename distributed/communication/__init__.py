"""What the ranks tell each other: the process group and sums over it."""
