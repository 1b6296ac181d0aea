"""A federation on real machines: Flower's SuperLink and SuperNodes run the simulation's apps."""
