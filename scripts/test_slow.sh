#!/usr/bin/env bash
# The tests that need more time than scripts/test.sh has. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PY="$(bash scripts/setup_env.sh)"
"$PY" -m pytest -m slow "$@"
