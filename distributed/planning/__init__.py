"""What a data-parallel launch would need, foretold from one worker's steps here."""
