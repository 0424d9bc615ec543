"""``python -m rayssl.cli``: the program where its folder is not on the PATH."""

import sys

from rayssl.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
