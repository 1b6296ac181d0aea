"""`heliotrope COMMAND ...`, also as `python -m heliotrope COMMAND ...`."""

from __future__ import annotations

from typing import NoReturn

from heliotrope.system.process_exit import as_process


def main() -> int:
    """Run the command line's command and return the exit code."""
    from heliotrope import cli  # here: Ctrl-C is answered during imports, too

    return cli.main()


def command() -> NoReturn:
    """Be the process of one command: what is installed as `heliotrope`."""
    as_process(main)


if __name__ == "__main__":
    command()
