"""`rayssl doctor` for `ray job submit --working-dir . -- python jobs/doctor.py ...`; the arguments are the same."""

import sys

from rayssl.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
