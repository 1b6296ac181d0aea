"""The step loop, optimizers and penalties that both modes train with."""
