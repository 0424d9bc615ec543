#!/usr/bin/env bash
# Measures a GPU in one call, on the machine that has it; what `infra/gpu/pack.sh` made is unpacked first.
#
#   bash infra/gpu/run.sh PART...       prepare tests step compiled kmeans train
#
# prepare: a synthetic corpus, beside the next parts, for train.   tests: the layer gpu.
# step, kmeans: with an older tree in .gpu/before.tar.gz both are measured, before and now, in turn.
# compiled: the steps of the present tree with training.compile, to see whether it pays.
# Logs and figures.json lie in OUT (default: a new folder); the last lines are the figures.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
work=${WORK:-$(mktemp -d)}
export OUT=${OUT:-$work/out} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0
mkdir -p "$OUT" "$work"
say() { echo "== $(date +%T) $*"; }
if [ -s .gpu/site.tar.xz ] && [ ! -d "$work/site" ]; then
    tar xJf .gpu/site.tar.xz -C "$work"
    mkdir -p "$work/site/ray/dashboard/client/build/static"
    echo '<html></html>' >"$work/site/ray/dashboard/client/build/index.html"
fi
trees=(now)
if [ -s .gpu/before.tar.gz ]; then
    mkdir -p "$work/before" && tar xzf .gpu/before.tar.gz -C "$work/before"
    trees=(before now)
fi
tree() { if [ "$1" = now ]; then echo "$root"; else echo "$work/before"; fi; }
in_tree() { # in_tree NAME COMMAND...
    local name=$1
    shift
    PYTHONPATH="$work/site:$(tree "$name")" "$@"
}
measured() { # measured PART SECONDS ARGUMENTS...
    local part=$1 limit=$2
    shift 2
    for name in "${trees[@]}"; do
        in_tree "$name" timeout "$limit" python3 "infra/gpu/$part.py" "$@" >"$OUT/$part.$name.log" 2>&1
        tail -n 30 "$OUT/$part.$name.log"
    done
}
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || true
for part in "$@"; do
    say "$part"
    case $part in
    prepare)
        (cd "$work" && OMP_NUM_THREADS=1 in_tree now python3 -m rayssl.cli prepare "$root/infra/gpu/prepare.yaml" \
            >"$OUT/prepare.log" 2>&1) &
        preparing=$!
        ;;
    tests)
        in_tree now timeout 240 python3 -m pytest -q -p no:cacheprovider --layers gpu tests/gpu >"$OUT/tests.log" 2>&1
        tail -n 25 "$OUT/tests.log"
        ;;
    step) measured step 240 ;;
    compiled)
        in_tree now timeout 300 python3 infra/gpu/step.py training.compile=true >"$OUT/step.compiled.log" 2>&1
        tail -n 30 "$OUT/step.compiled.log"
        ;;
    kmeans) measured kmeans 150 --tiles ;;
    train)
        wait "${preparing:?prepare comes before train}"
        (cd "$work" && in_tree now timeout 240 python3 -m rayssl.cli train "$root/infra/gpu/train.yaml" \
            >"$OUT/train.log" 2>&1 && in_tree now timeout 90 python3 -m rayssl.cli evaluate runs/ssps >>"$OUT/train.log" 2>&1)
        tail -n 25 "$OUT/train.log"
        cp "$work/runs/ssps/metrics.jsonl" "$OUT/" || true
        ;;
    *) say "unknown part $part" ;;
    esac
done
python3 infra/gpu/figures.py "$OUT"
