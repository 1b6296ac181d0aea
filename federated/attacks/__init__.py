"""Simulated attackers: the choices of `federated/attack`, and what they make clients send."""
