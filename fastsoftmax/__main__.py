"""The command line, as ``python -m fastsoftmax``."""

import sys

from fastsoftmax.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
