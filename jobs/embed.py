"""`rayssl embed` for `ray job submit --working-dir . -- python jobs/embed.py ...`; the arguments are the same."""

import sys

from rayssl.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
