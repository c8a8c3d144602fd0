"""Entry point of `python -m vantage`, the command `vantage`."""

import sys

from vantage.cli import main

if __name__ == "__main__":
    sys.exit(main())
