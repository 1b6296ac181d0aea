"""What the types of a config cannot say: allowed names, ranges, relations between fields."""
