#!/usr/bin/env bash
# What only a GPU can tell, in ten minutes; the first three give the most (docs/gpu.md).
#
#     bash bench/gpu/run.sh prepare       before, where Hydra and a package index are
#     bash bench/gpu/run.sh [FOLDER]      on the GPU: FOLDER/gpu-<date>.json and .log
#     bash bench/gpu/run.sh --tiny FOLDER a rehearsal: tiny twins, any machine
#
# The GPU's machine needs Python 3.12, torch, torchvision, transformers, peft, accelerate, and what they bring;
# beside them psutil, pandas, scipy, scikit-learn, pyarrow, rich and jinja2. It needs no Hydra, OmegaConf, DeepSpeed, TRL, vLLM or
# package index. `prepare` leaves what it lacks in bench/gpu/carried, 3 MB to take along with the checkout:
#     configs/*.json   the configurations, composed
#     wheels/*.whl     those of `wheels` below, for Python 3.12 on Linux x86-64
# vLLM is too large to carry. Where it is not installed, its case is skipped.
set -euo pipefail
wheels="pydantic pydantic-core annotated-types typing-inspection typing-extensions defusedxml pycocotools"
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
carried=${CARRIED:-$here/carried}
export PYTHONPATH="$here/../..:$here/..${PYTHONPATH:+:$PYTHONPATH}"
if [ "${1:-}" = prepare ]; then
    "$python" "$here/kit.py" prepare --carried "$carried"
    version() { "$python" -c "from importlib.metadata import version; print('$1==' + version('$1'))"; }
    exec "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --dest "$carried/wheels" \
        $(for name in $wheels; do version "$name"; done)
fi
if ! "$python" -c "import pydantic, defusedxml, pycocotools" 2>/dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$carried"/wheels/*.whl
    export PYTHONPATH="$PYTHONPATH:$site"
fi
exec "$python" "$here/kit.py" run --carried "$carried" "$@"
