# For demo.sh and test.sh: sets `root` (the project) and has `ensure_venv [EXTRAS]`, which puts `rayssl` on the PATH.
# RAYSSL_VENV names another place for the virtual environment. RAYSSL_PYTHON names another interpreter to make it with.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${RAYSSL_VENV:-$root/.venv}

say() { printf '== %s\n' "$*"; }

# Prints the first interpreter that runs, is Python 3.11 or 3.12, and can make virtual environments.
find_python() {
    local candidate
    for candidate in ${RAYSSL_PYTHON:+"$RAYSSL_PYTHON"} python3.11 python3.12 python3 python; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
            >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "rayssl needs Python 3.11 or 3.12 with its venv module (Debian, Ubuntu: apt-get install python3.11-venv);" \
        "set RAYSSL_PYTHON to an interpreter outside the PATH" >&2
    return 1
}

# A hash of everything that an installation depends on, except for the extras. The stamp has those beside the hash: an
# installation with `test` is good for the demo too.
installation_hash() {
    { cat "$root/pyproject.toml" "$root/infra/constraints.txt" && printf '%s\n' "$root"; } | sha256sum | cut -d' ' -f1
}

ensure_venv() {
    local extras=${1:-} stamp=$venv/.rayssl-stamp want python have_hash='' have_extras=''
    want=$(installation_hash)
    if "$venv/bin/python" -c 'import pip' >/dev/null 2>&1; then
        if [ -f "$stamp" ]; then read -r have_hash have_extras <"$stamp" || true; fi
    else
        python=$(find_python)
        say "making a virtual environment in $venv with $("$python" --version)"
        "$python" -m venv --clear "$venv"
    fi
    if [ "$have_hash" != "$want" ] || { [ -n "$extras" ] && [ "$have_extras" != "$extras" ]; }; then
        say "installing rayssl${extras:+[$extras]} into $venv (new: 3 to 6 minutes, 6 GB)"
        rm -f "$stamp"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/infra/constraints.txt" --upgrade pip
        "$venv/bin/python" -m pip install --quiet -c "$root/infra/constraints.txt" -e "$root${extras:+[$extras]}"
        printf '%s %s\n' "$want" "$extras" >"$stamp"
    fi
    export PATH="$venv/bin:$PATH"
}
