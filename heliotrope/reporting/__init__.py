"""The parts of `heliotrope.report`: what a run left behind, its facts, its charts, its page."""
