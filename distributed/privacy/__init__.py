"""How training records are protected: the choices of `distributed/privacy`, and what they do."""
