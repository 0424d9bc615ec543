"""`rayssl train` for `ray job submit --working-dir . -- python jobs/train.py ...`; the arguments are the same."""

import sys

from rayssl.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
