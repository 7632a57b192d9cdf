#!/usr/bin/env bash
# The ordinary checks: lint, types, tests. Arguments go to pytest: bash scripts/test.sh -k prompt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PY="$(bash scripts/setup_env.sh)"
"$PY" -m ruff check .
"$PY" -m pyright --pythonpath "$PY"
"$PY" -m pytest -m 'not slow' "$@"
