"""Between our engine and Flower: the only folder that touches its messages."""
