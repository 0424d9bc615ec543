#!/usr/bin/env bash
# Packs what a bare machine with a GPU lacks into .gpu/ of the project's root, which git ignores: Ray and other packages,
# stripped to about 45 MB. Python, torch with CUDA, NumPy and the like must be there. Send .gpu along with the tree, and
# run `bash infra/gpu/run.sh PART...` there.
#
#   bash infra/gpu/pack.sh [COMMIT]     COMMIT: also packs this older tree, which run.sh then measures in turn
#
# PYTHON names the interpreter whose version the machine has (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
exclude=$(git rev-parse --git-path info/exclude)
mkdir -p .gpu "$(dirname "$exclude")"
grep -qx '/.gpu/' "$exclude" 2>/dev/null || echo '/.gpu/' >>"$exclude"
if [ $# -gt 0 ]; then git archive --format=tar.gz -o .gpu/before.tar.gz "$1" rayssl tests configs; fi
[ ! -s .gpu/site.tar.xz ] || exit 0
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
"${PYTHON:-python3}" -m pip install -q --no-deps --no-compile --target "$made/site" -c infra/constraints.txt \
    ray faiss-cpu soundfile cffi pycparser soxr miniaudio edfio timm torchvision pytest-timeout \
    pydantic pydantic-core annotated-types typing-inspection jsonschema referencing rpds-py jsonschema-specifications \
    rich markdown-it-py mdurl pygments shtab requests tensorboardX s3fs aiobotocore botocore aioitertools jmespath aiohttp-cors colorful opencensus opencensus-context \
    opentelemetry-api opentelemetry-sdk opentelemetry-exporter-prometheus opentelemetry-proto \
    opentelemetry-semantic-conventions smart-open virtualenv distlib platformdirs google-api-core \
    googleapis-common-protos google-auth proto-plus pyasn1 pyasn1-modules python-discovery
cd "$made/site"
rm -rf ray/jars ray/rllib ray/llm bin ray/dashboard/client
find . -name tests -type d -prune -exec rm -rf {} +
for service in botocore/data/*/; do
    case $service in */s3/ | */sts/) ;; *) rm -rf "$service" ;; esac
done
strip --strip-unneeded ray/_raylet.so ray/core/src/ray/raylet/raylet ray/core/src/ray/gcs/gcs_server
cd "$made" && tar c site | xz -T2 -6 >"$root/.gpu/site.tar.xz"
du -h "$root"/.gpu/*
