"""What one rank does from the first step of an attempt to the last."""
