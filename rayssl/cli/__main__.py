"""``python -m rayssl.cli`` runs the program even if its folder is not on the PATH."""

import sys

from rayssl.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
