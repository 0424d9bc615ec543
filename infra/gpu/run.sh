#!/usr/bin/env bash
# Measures a GPU in one call, on the machine that has it; what `infra/gpu/pack.sh` made is unpacked first.
#
#   bash infra/gpu/run.sh PART...       prepare compiled step layouts kmeans train tests
#
# prepare: a synthetic corpus, beside the next parts, for train.   tests: the layer gpu.
# step, kmeans: with an older tree in .gpu/before.tar.gz both are measured, before and now, in turn.
# compiled: the steps of SimCLR and SSPS with training.compile, as a long training has them; the compiler takes a minute
# or two of its 200 s.   step: the same and DINO, not compiled.   layouts: step with the layout of a CPU.
# train: SSPS from end to end, and the step of the same sizes without stream and memory, to compare.
#
# All parts together take at most SECONDS_ALL seconds (default 570). A part that is cut off, or that is left no time,
# leaves what it has printed. Logs are in OUT/logs.tar.gz (OUT: default a new folder); figures.json there is written
# after each part, and printed at the end.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
work=${WORK:-$(mktemp -d)}
all=${SECONDS_ALL:-570}
export OUT=${OUT:-$work/out} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0
logs=$work/logs
mkdir -p "$OUT" "$logs"
say() { echo "== $(date +%T) ${SECONDS}s $*"; }
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
limited() { # limited SECONDS COMMAND...: at most so long, and no longer than what is left of all
    local left=$((all - SECONDS)) limit=$1
    shift
    if [ "$left" -lt 15 ]; then
        echo "no time left"
        return 1
    fi
    timeout -s INT -k 10 "$((limit < left ? limit : left))" "$@"
}
in_tree() { # in_tree NAME SECONDS COMMAND...
    local name=$1
    shift
    PYTHONPATH="$work/site:$(tree "$name")" limited "$@"
}
kept() { # the figures so far, and all logs in one file
    python3 infra/gpu/figures.py "$logs" >"$work/printed" && cp "$logs/figures.json" "$OUT/"
    tar czf "$OUT/logs.tar.gz" -C "$logs" .
}
measured() { # measured NAME TREE SECONDS SCRIPT ARGUMENTS...: the log is SCRIPT.NAME.log
    local name=$1 where=$2 limit=$3 script=$4
    shift 4
    in_tree "$where" "$limit" python3 "infra/gpu/$script.py" "$@" >"$logs/$script.$name.log" 2>&1
    tail -n 25 "$logs/$script.$name.log"
}
trap kept EXIT
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || true
for part in "$@"; do
    say "$part"
    case $part in
    prepare)
        (cd "$work" && OMP_NUM_THREADS=1 in_tree now 300 python3 -m rayssl.cli prepare "$root/infra/gpu/prepare.yaml" \
            >"$logs/prepare.log" 2>&1) &
        preparing=$!
        ;;
    tests)
        in_tree now 200 python3 -m pytest -v -p no:cacheprovider --layers gpu tests/gpu >"$logs/tests.log" 2>&1
        tail -n 25 "$logs/tests.log"
        ;;
    step) for name in "${trees[@]}"; do measured "$name" "$name" 100 step ${STEP:-} training.compile=false; done ;;
    layouts) measured plain now 100 step --plain ${STEP:-} training.compile=false ;;
    compiled) measured compiled now 200 step --only simclr,ssps ${STEP:-} training.compile=true ;;
    kmeans) for name in "${trees[@]}"; do measured "$name" "$name" 110 kmeans --tiles ${KMEANS:-}; done ;;
    train)
        wait "${preparing:?prepare comes before train}"
        (cd "$work" && in_tree now 200 python3 -m rayssl.cli train "$root/infra/gpu/train.yaml" ${TRAIN:-} \
            >"$logs/train.log" 2>&1 && in_tree now 60 python3 -m rayssl.cli evaluate runs/ssps >>"$logs/train.log" 2>&1)
        tail -n 25 "$logs/train.log"
        cp "$work/runs/ssps/metrics.jsonl" "$logs/" || true
        measured like_train now 60 step --only ssps ${STEP:-} views.reference_s=3.0 training.compile=false
        ;;
    *) say "unknown part $part" ;;
    esac
    kept
done
say "all"
cat "$work/printed"
