#!/usr/bin/env bash
# The tests that need more time than scripts/test.sh has. Arguments go to pytest.
# One of them runs LAVIS's own code, in an environment of some 7 GB that is made first; it is skipped where the packages
# cannot be fetched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PY="$(bash scripts/setup_env.sh)"
bash scripts/setup_lavis_env.sh "$PY" >/dev/null || echo "test_slow: without LAVIS's environment" >&2
"$PY" -m pytest -m slow "$@"
