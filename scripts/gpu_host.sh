#!/usr/bin/env bash
# Runs the recipes on a GPU host that has PyTorch, but neither fairseq2 nor a network: docs/gpu.md.
#   scripts/gpu_host.sh bundle DIR [--python 3.12] [--add NAME ...]   where PyPI is in reach: puts wheels into DIR
#   scripts/gpu_host.sh run DIR -- python -m recipes.jepa OUT ...     on the host: installs them beside its packages, then runs
# PYTHON names the interpreter. Installed packages are kept in JEPA_TOK_SITE (~/.cache/jepa-tok/site) for the next run.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=$root/scripts/gpu_host

usage() {
    sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

[ $# -ge 2 ] || usage
verb=$1 wheels=$2
shift 2

need_python() {
    "$1" -c 'import pip, packaging' 2>/dev/null && return
    echo "gpu_host: error: $1 must be a Python with pip and packaging, but is not; name another: PYTHON=/path/to/python" >&2
    exit 2
}

case $verb in
bundle)
    python=${PYTHON:-$root/.venv/bin/python}
    [ -x "$python" ] || command -v "$python" >/dev/null || python=python3
    need_python "$python"
    exec "$python" "$tools/packages.py" bundle "$wheels" "$@"
    ;;
run)
    [ "${1:-}" = -- ] && shift
    [ $# -ge 1 ] || usage
    # The packages must suit the interpreter that the command runs in.
    case ${1##*/} in
    python*) python=${PYTHON:-$1} ;;
    *) python=${PYTHON:-python3} ;;
    esac
    need_python "$python"
    installed=$("$python" "$tools/packages.py" install "$wheels" "${JEPA_TOK_SITE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/jepa-tok/site}")
    export PYTHONPATH=$tools/site:$root:$installed${PYTHONPATH:+:$PYTHONPATH}
    # TBB's wheel puts its libraries where fairseq2n would find them in a virtual environment, which this is not.
    export LD_LIBRARY_PATH=$installed/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    # Audio is decoded by threads that each use one core; more than a few OpenMP threads beside them only contend.
    cores=$(nproc)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores >= 16 ? 4 : cores >= 8 ? 2 : 1))}
    exec "$@"
    ;;
*) usage ;;
esac
