#!/usr/bin/env bash
# An environment in which cn_clip and open_clip can be imported, for the tests that compare them with transformers.
# They need torchvision; where no build of it fits the installed torch (CPU), its mere presence keeps transformers
# and peft from being imported, so it stays out of the main environment. Whatever else they need is taken from there:
#   PY="$(bash scripts/setup_clip_env.sh [MAIN_PYTHON])"     MAIN_PYTHON: default, the one of scripts/setup_env.sh
# Made in .venv-clip, or in $VIDEONARRATOR_CLIP_ENV. Exit status 75: the packages could not be fetched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
main="${1:-$(bash scripts/setup_env.sh)}"
prefix="${VIDEONARRATOR_CLIP_ENV:-$PWD/.venv-clip}"
# not their dependencies (torch is there); cn_clip.clip does without lmdb, which may need a compiler. Versions are those
# of constraints.txt
packages=(cn_clip open_clip_torch timm torchvision ftfy wcwidth six)

say() { echo "setup: $*" >&2; }

main_packages="$("$main" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
wanted="$("$main" -c 'import sys; print(sys.version)'; echo "$main_packages ${packages[*]}"; cat constraints.txt)"
stamp="$prefix/.videonarrator"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    partial="$prefix.partial.$$"
    trap 'rm -rf "$partial"' EXIT
    say "making $prefix"
    "$main" -m venv --without-pip "$partial"
    own_packages="$("$partial/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    "$main" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --target "$own_packages" \
        -c constraints.txt "${packages[@]}" >&2 || { say "pip could not install ${packages[*]}"; exit 75; }
    echo "$main_packages" > "$own_packages/main-environment.pth"
    echo "$wanted" > "$partial/.videonarrator"
    rm -rf "$prefix"
    mv "$partial" "$prefix"
    say "done"
fi
echo "$prefix/bin/python"
