#!/usr/bin/env bash
# The ordinary checks: lint, types, tests. Arguments go to pytest: bash scripts/test.sh -k prompt
# TEST_WORKERS=1 for one process, 0 to see it run in the foreground (for a debugger).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PY="$(bash scripts/setup_env.sh)"
"$PY" -m ruff check .
"$PY" -m pyright --pythonpath "$PY"
# two workers with a thread each: the processes that tests start have one thread, too
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$PY" -m pytest -m 'not slow' -n "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@"
