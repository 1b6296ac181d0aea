"""`python -m heliotrope COMMAND ...`: the same commands as the installed script."""

import sys

from heliotrope.cli import main

if __name__ == "__main__":
    sys.exit(main())
