"""How clients' local training is computed."""
