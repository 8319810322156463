#!/bin/bash
# Configures one CMake preset and builds its targets; everything when none is named.
# usage: tools/build.sh PRESET [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:?usage: tools/build.sh PRESET [TARGET...]}
shift
# CMake reads these variables when a build folder is configured for the first time.
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_CUDA_COMPILER_LAUNCHER=ccache
fi
cmake --preset "$preset" >&2
cmake --build --preset "$preset" ${1:+--target "$@"} >&2
