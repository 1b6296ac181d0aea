"""How a step's gradient and weights are spread over the ranks."""
