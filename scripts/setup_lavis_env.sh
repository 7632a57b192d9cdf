#!/usr/bin/env bash
# The environment of environment-lavis.yml without conda: LAVIS's own code, for data_process/lavis_features.py.
#   PY="$(bash scripts/setup_lavis_env.sh [PYTHON])"     PYTHON: a Python 3.11 (default: the first one found)
#   "$PY" -m data_process.lavis_features --help
# Made in .venv-lavis, or in $VIDEONARRATOR_LAVIS_ENV; some 7 GB. Progress goes to stderr; stdout is its python.
# Exit status 75: the packages could not be fetched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
prefix="${VIDEONARRATOR_LAVIS_ENV:-$PWD/.venv-lavis}"

say() { echo "setup: $*" >&2; }

find_python() { # LAVIS's tokenizers has no builds for later Pythons, the project's code needs 3.11
    local name
    for name in "$@"; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    say "none of these is a Python 3.11 with its venv module: $*; give one: setup_lavis_env.sh PYTHON"
    return 1
}

if [ $# -gt 0 ]; then python="$(find_python "$1")"; else python="$(find_python python3.11 python3 .venv/bin/python)"; fi
packages="$(sed -n '/^  - pip:$/,$ s/^      - //p' environment-lavis.yml)"
wanted="$("$python" -c 'import sys; print(sys.version)'; echo "$packages")"
stamp="$prefix/.videonarrator"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    say "making $prefix with $python (some minutes)"
    rm -rf "$prefix"
    "$python" -m venv "$prefix" >&2
    "$prefix/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        -r <(echo "$packages") >&2 || { say "pip could not install what environment-lavis.yml lists"; exit 75; }
    "$prefix/bin/python" -W ignore -c 'import lavis.models, data_process.frames, data_process.feature_store' >&2 ||
        { say "LAVIS cannot be imported in $prefix: see the messages above"; exit 1; }
    echo "$wanted" > "$stamp"
    say "done"
fi
echo "$prefix/bin/python"
