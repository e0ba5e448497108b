#!/usr/bin/env bash
# Creates the virtual environment from the pinned requirements, or says that it is there. No root, no system packages.
#   scripts/setup.sh [VENV]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
stamp=$venv/.ready
wanted=$(cat requirements.txt pyproject.toml | sha256sum | cut -d' ' -f1)

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    echo "setup: using the environment in $venv"
    exit 0
fi

python=
for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "setup: error: Python 3.10, 3.11 or 3.12 is needed (fairseq2 0.8.1 has wheels for these), but none was found; install one or name it: make PYTHON=/path/to/python3.11" >&2
    exit 2
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "setup: error: $python cannot make virtual environments; on Debian or Ubuntu: sudo apt-get install python3-venv" >&2
    exit 2
fi

echo "setup: making $venv with $("$python" --version) from requirements.txt: about 7.5 GB (PyTorch and its CUDA libraries), 3 minutes on a fast line"
[ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null || { rm -rf "$venv"; "$python" -m venv "$venv"; }
rm -f "$stamp"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --editable .

# Two measures of `jepa-tok eval` that the lock cannot hold: Resemblyzer asks for packages that it can do without and that no longer
# build, PESQ is compiled, where there is a compiler.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps resemblyzer==0.1.4
if command -v cc >/dev/null; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps pesq==0.0.4 ||
        echo "setup: PESQ could not be built; \`jepa-tok eval\` leaves it out"
else
    echo "setup: there is no C compiler for PESQ, which \`jepa-tok eval\` then leaves out; on Debian or Ubuntu: sudo apt-get install build-essential"
fi

# fairseq2's native library wants libsndfile.so.1 and looks for it in the environment's lib folder: soundfile's wheel has it.
"$venv/bin/python" -c 'from jepa_tok._fairseq2.sndfile import link_sndfile; link_sndfile()'
echo "$wanted" > "$stamp"
echo "setup: done"
