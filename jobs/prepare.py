"""`rayssl prepare` for `ray job submit --working-dir . -- python jobs/prepare.py ...`; the arguments are the same."""

import sys

from rayssl.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
