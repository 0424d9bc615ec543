#!/usr/bin/env bash
# Runs every check of the project: ruff, mypy, import-linter, then pytest: first all layers but ray on all cores, then the
# layer ray, one test at a time. With arguments pytest runs once, with all layers, and gets them.
# The last line is pytest's count, or names the checks that failed; then the status is not zero.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

servers=(radosgw ceph-mon ceph-osd)

have() {
    local command
    for command in "$@"; do
        command -v "$command" >/dev/null || return 1
    done
}

# install_packages WHAT PACKAGE...: installs the packages, or says why WHAT is left out.
install_packages() {
    local what=$1
    shift
    if [ "$(id -u)" != 0 ]; then
        say "left out: $what, because only root can install $*"
    elif ! command -v apt-get >/dev/null; then
        say "left out: $what, because this system has no apt-get to install $*"
    else
        say "installing $* for $what"
        export DEBIAN_FRONTEND=noninteractive
        if apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null; then return; fi
        say "left out: $what, because installing $* failed (see above)"
    fi
    return 1
}

# The s3 layer runs against Ceph's gateway; its packages and its commands have the same names.
install_servers() {
    local commands=("${servers[@]}" radosgw-admin monmaptool ceph)
    if have "${commands[@]}"; then return; fi
    if install_packages "the s3 layer" "${servers[@]}" && have "${commands[@]}"; then return; fi
    layers=default,long,ranks,pages,gpu without=" and not s3"
}

# One test scrapes a run with Prometheus, others check the rules. Without it they are skipped. Its package starts a
# service, which is not needed here and is stopped again.
install_prometheus() {
    if have prometheus promtool; then return; fi
    if install_packages "the tests of monitoring" prometheus && [ -d /run/systemd/system ]; then
        systemctl disable --quiet --now prometheus || true
    fi
}

# The pages of reports are looked at in a real browser.
install_chromium() {
    have chromium || install_packages "the pages layer" chromium fonts-dejavu-core || true
}

failed=()
check() {
    say "$*"
    "$@" || failed+=("$*")
}

ensure_venv test
layers=default,long,ranks,s3,pages,gpu without=
install_servers
install_chromium
install_prometheus
cd "$root"
cores=$(nproc) # before the next line: nproc answers with OMP_NUM_THREADS, if that is set
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0
unset PYTHONDONTWRITEBYTECODE # else each of a thousand processes compiles the project, and pytest all tests twice

check ruff check --output-format concise
check ruff format --check --quiet
check mypy
check lint-imports --no-logo
if [ ${#failed[@]} -gt 0 ]; then
    say "FAILED before pytest: $(printf '%s; ' "${failed[@]}")"
fi
if [ $# -gt 0 ]; then
    check python -m pytest --layers "$layers,ray" "$@"
else
    check python -m pytest --layers "$layers" --numprocesses "$cores" --dist loadfile --durations 20
    check python -m pytest -m "ray and not slow$without" --durations 20
fi
if [ ${#failed[@]} -gt 0 ]; then
    say "FAILED: $(printf '%s; ' "${failed[@]}")"
    exit 1
fi
