#!/bin/bash
# Builds the fuzz targets and runs each for some seconds, starting from tests/fuzz/corpus/TARGET.
# What they discover goes to build-fuzz/corpus/; an input that fails is left in build-fuzz/failures/
# and ends the run with status 1.
# usage: tools/fuzz.sh [SECONDS [TARGET...]]
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
targets=("$@")
if [[ ${#targets[@]} -eq 0 ]]; then
  for source in tests/fuzz/*_fuzz.cc; do targets+=("$(basename "$source" .cc)"); done
fi

tools/build.sh fuzz "${targets[@]}"
mkdir -p build-fuzz/failures
for target in "${targets[@]}"; do
  found=build-fuzz/corpus/$target
  mkdir -p "$found"
  seeds=tests/fuzz/corpus/$target
  echo "== $target, $seconds s" >&2
  "build-fuzz/tests/fuzz/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -print_final_stats=1 -artifact_prefix="build-fuzz/failures/$target-" \
    "$found" $([[ -d $seeds ]] && echo "$seeds")
done
