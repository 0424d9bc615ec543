"""`rayssl report` for `ray job submit --working-dir . -- python jobs/report.py ...`; the arguments are the same."""

import sys

from rayssl.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
