"""Three launchers of one worker: `inline`, `torchrun`, `ray`."""
