"""What a launch would need, foretold: the parts that both modes share."""
