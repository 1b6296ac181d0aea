"""`python -m heliotrope COMMAND ...`: the same commands as the installed script."""

from heliotrope.cli import command

if __name__ == "__main__":
    command()
