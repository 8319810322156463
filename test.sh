#!/bin/bash
# Installs what is missing, builds, and runs every test that needs no GPU:
#   1. the release build's tests, with the checks of the tree (includes, headers, format, files)
#   2. the same tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   3. the tests of the engine and of the server under ThreadSanitizer
#   4. clang-tidy over one file in TIDY_SHARES (default 8), other ones for the next commit; over all
#      of them with TIDY_SHARES=1. Its findings are told and do not fail
#   5. every libFuzzer target for FUZZ_SECONDS (default 60)
# A step that fails does not stop the next one. Ends with what failed tests printed last, the tests
# that were skipped with their reasons, and a summary line; the exit status is 0 when nothing failed.
# Logs of the steps are kept in build/logs.
# usage: ./test.sh
set -uo pipefail
cd "$(dirname "$0")" || exit 1

fuzz_seconds=${FUZZ_SECONDS:-60}
num_passed=0
num_failed=0
num_skipped=0
failures=()
logs=build/logs
mkdir -p "$logs"

record() {  # NAME STATUS
  if [[ $2 -eq 0 ]]; then
    num_passed=$((num_passed + 1))
  else
    num_failed=$((num_failed + 1))
    failures+=("$1")
  fi
}

build() {  # PRESET [TARGET...]: counts only when it fails
  local start=$SECONDS
  echo "== build $1" >&2
  if tools/build.sh "$@"; then
    echo "== build $1: done after $((SECONDS - start)) s" >&2
  else
    record "build $1" 1
    return 1
  fi
}

step() {  # NAME COMMAND...: one check, timed; its output is shown when it fails
  local name=$1 start=$SECONDS status=0
  shift
  echo "== $name" >&2
  "$@" >"$logs/$name.log" 2>&1 || status=$?
  [[ $status -eq 0 ]] || tail -n 60 "$logs/$name.log" >&2
  echo "== $name: exit status $status after $((SECONDS - start)) s" >&2
  record "$name" "$status"
}

run_ctest() {  # PRESET [OPTION...]: counts every test of the suite; one that was skipped did not pass
  local start=$SECONDS log=$logs/ctest-$1.log junit=$PWD/$logs/ctest-$1.xml
  echo "== ctest $1" >&2
  ctest --preset "$@" -j "$(nproc)" --no-tests=error --output-junit "$junit" \
    --test-output-size-passed 1000000 | tee "$log"
  local status=${PIPESTATUS[0]} passed failed skipped
  if read -r passed failed skipped < <(python3 tools/junit_report.py --counts "$junit"); then
    num_passed=$((num_passed + passed))
    num_failed=$((num_failed + failed))
    num_skipped=$((num_skipped + skipped))
    [[ $status -eq 0 ]] || failures+=("ctest $1")
  else
    record "ctest $1" 1
  fi
  echo "== ctest $1: exit status $status after $((SECONDS - start)) s" >&2
}

tools/install_dependencies.sh test || exit 1

build cpu && run_ctest cpu
build asan && run_ctest asan
build tsan engine_test server_test http_server_test && run_ctest tsan -L tsan
# Findings are told and not counted: not every file is free of them yet.
echo "== tidy" >&2
tools/tidy.sh --share "${TIDY_SHARES:-8}" >"$logs/tidy.log" 2>&1 || true
head -n 1 "$logs/tidy.log" >&2
echo "== tidy: $(grep -c 'error: .*warnings-as-errors' "$logs/tidy.log") findings, in $logs/tidy.log" >&2
step "fuzz" tools/fuzz.sh "$fuzz_seconds"

for failure in "${failures[@]}"; do echo "failed: $failure" >&2; done
if [[ $num_failed -ne 0 ]]; then
  python3 tools/junit_report.py --failed "$logs"/ctest-*.xml >&2
fi
python3 tools/junit_report.py --skipped "$logs"/ctest-*.xml >&2
echo "$num_passed passed, $num_failed failed, $num_skipped skipped"
[[ $num_failed -eq 0 ]]
