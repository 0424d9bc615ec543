"""`rayssl sweep` for `ray job submit --working-dir . -- python jobs/sweep.py ...`; the arguments are the same."""

import sys

from rayssl.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
