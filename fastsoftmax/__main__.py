"""The command line, as ``python -m fastsoftmax``."""

import sys

from fastsoftmax.cli import main

if __name__ == "__main__":
    sys.exit(main())
