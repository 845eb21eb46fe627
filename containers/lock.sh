#!/usr/bin/env bash
# Renews the lock files of the images from pyproject.toml; needs uv.
#   containers/lock.sh              after a change in pyproject.toml: adds and drops, moves nothing
#   containers/lock.sh --upgrade    moves every pin to the newest release
set -euo pipefail
cd "$(dirname "$0")/.."

lock() { # NAME SOURCE…
  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
    "${@:2}" --output-file "containers/$1.lock" >/dev/null
}

lock cpu pyproject.toml --extra cpu --extra signing "$@"
lock gpu-cuda13 pyproject.toml --extra gpu --extra signing "$@"
lock gpu-cuda12 pyproject.toml --extra gpu-cuda12 --extra signing "$@"
printf '%s\n' 'setuptools>=77' wheel | lock build - "$@"
