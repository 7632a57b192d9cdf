#!/usr/bin/env bash
# The Python environment of this checkout. Progress goes to stderr; stdout is the environment's python, one line:
#   PY="$(bash scripts/setup_env.sh [EXTRAS])"      EXTRAS: test (default), or test,notebook, ... ("" for none)
# An active virtual or conda environment is used as it is; otherwise .venv is made in the repository's root
# (conda's base counts as none). A stamp in the environment makes later calls free.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root="$(pwd -P)"
extras="${1-test}"

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

right_python() { # is this a Python that the constraints fit, able to make an environment?
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null
}

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
        if right_python "$name"; then command -v "$name"; return; fi
    done
    die "no Python 3.11 to 3.14 with its venv module on the PATH: install one (on Debian and Ubuntu also" \
        "python3-venv), or activate a virtual or conda environment that has one"
}

if [ -n "${VIRTUAL_ENV:-}" ]; then
    prefix="$VIRTUAL_ENV"
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
    prefix="$CONDA_PREFIX"
else
    prefix="$root/.venv"
    if [ ! -x "$prefix/bin/python" ]; then
        base="$(find_python)"
        say "making $prefix with $base"
        "$base" -m venv "$prefix" >&2
    fi
fi
PY="$prefix/bin/python"
[ -x "$PY" ] || die "the active environment $prefix has no bin/python: deactivate it, or activate another"

# what is installed: this checkout, with these requirements and extras
wanted="$("$PY" - "$root" "$extras" <<'PYTHON'
import hashlib, sys

if sys.version_info < (3, 11):
    sys.exit(f"setup: {sys.executable} is Python {sys.version.split()[0]}; 3.11 or later is needed")
digest = hashlib.sha256("\n".join([*sys.argv[1:], sys.version]).encode())
for name in ("pyproject.toml", "constraints.txt"):
    digest.update(open(name, "rb").read())
print(digest.hexdigest())
PYTHON
)"
stamp="$prefix/.videonarrator${extras:+-$extras}"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    rm -f "$stamp"
    if ! "$PY" -m pip --version >/dev/null 2>&1; then
        "$PY" -m ensurepip --upgrade >&2 || die "$prefix has no pip: install it there, or activate another environment"
    fi
    pip() { "$PY" -m pip install --quiet --disable-pip-version-check --no-input "$@" >&2; }
    say "installing torch into $prefix (the first time: some minutes)"
    pip "$(grep '^torch==' constraints.txt)"
    say "installing videonarrator${extras:+[$extras]} and what it needs"
    pip -e ".${extras:+[$extras]}" -c constraints.txt
    (cd / && "$PY" -c 'import data_process, metrics, torch, videonarrator') ||
        die "the installation in $prefix is not whole: see the messages above, mend, and run this script again"
    echo "$wanted" > "$stamp.partial"
    mv "$stamp.partial" "$stamp"
    say "done"
fi
echo "$PY"
