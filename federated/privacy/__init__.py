"""How clients are protected: the choices of `federated/privacy`, and what they do to a sum."""
