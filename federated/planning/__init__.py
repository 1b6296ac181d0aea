"""What a federated run would need, foretold from one worker's steps here."""
