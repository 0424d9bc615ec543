#!/usr/bin/env bash
# Every check of the project: ruff, mypy, import-linter, then pytest with all layers. Arguments go to pytest.
# The last line is pytest's count; the status is not zero when any check failed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

servers=(radosgw ceph-mon ceph-osd)

have_servers() {
    local command
    for command in "${servers[@]}" radosgw-admin monmaptool ceph; do
        command -v "$command" >/dev/null || return 1
    done
}

# The s3 layer runs against Ceph's gateway; its packages and its commands have the same names.
install_servers() {
    if have_servers; then return; fi
    if [ "$(id -u)" != 0 ]; then
        say "left out: s3, since ${servers[*]} are not installed and only root can install them"
    elif ! command -v apt-get >/dev/null; then
        say "left out: s3, since ${servers[*]} are not installed and this system has no apt-get"
    else
        say "installing ${servers[*]} for the s3 layer"
        export DEBIAN_FRONTEND=noninteractive
        if apt-get update -qq && apt-get install -y -qq --no-install-recommends "${servers[@]}" >/dev/null; then
            if have_servers; then return; fi
        fi
        say "left out: s3, since installing ${servers[*]} failed (see above)"
    fi
    layers=default,ranks,ray
}

failed=()
check() {
    say "$*"
    "$@" || failed+=("$1 ${2:-}")
}

ensure_venv test
layers=all
install_servers
cd "$root"
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0

check ruff check --output-format concise
check ruff format --check --quiet
check mypy
check lint-imports --no-logo
if [ ${#failed[@]} -gt 0 ]; then
    say "FAILED before pytest: $(printf '%s; ' "${failed[@]}")"
fi
status=0
python -m pytest --layers "$layers" "$@" || status=$?
[ "$status" = 0 ] && [ ${#failed[@]} = 0 ]
