#!/usr/bin/env bash
# Makes a synthetic corpus, trains a short SSPS run, evaluates it and writes its report. It needs no data and no GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

ensure_venv
cd "$root"
# One thread for each worker. Ray sends no usage report.
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0

run=runs/synthetic/ssps
rayssl prepare configs/synthetic_prepare.yaml
rayssl train configs/synthetic_ssps.yaml
rayssl evaluate "$run"
rayssl report "$run" # prints the path of the page, and what comes next
