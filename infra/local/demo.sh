#!/usr/bin/env bash
# From nothing to a report: a synthetic corpus, a short SSPS run, its error rate and its page. Needs no data, no GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

ensure_venv
cd "$root"
# One thread for each worker; no usage report sent.
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0

run=runs/synthetic/ssps
rayssl prepare configs/synthetic_prepare.yaml
rayssl train configs/synthetic_ssps.yaml
rayssl evaluate "$run"
rayssl report "$run" # its line is the page's path
