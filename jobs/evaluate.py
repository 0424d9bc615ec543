"""`rayssl evaluate` for `ray job submit --working-dir . -- python jobs/evaluate.py ...`; the arguments are the same."""

import sys

from rayssl.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
