#!/bin/bash
# Runs clang-tidy with the checks of .clang-tidy over the files of build/compile_commands.json whose
# path matches a pattern; over all of src/ and apps/ without one.
# usage: tools/tidy.sh [REGEX]
set -euo pipefail
cd "$(dirname "$0")/.."

pattern=${1:-'/(src|apps)/.*\.cc$'}
tidy=$(command -v clang-tidy-14 || command -v clang-tidy)
python3 - "$pattern" <<'EOF' | xargs -r -P "$(nproc)" -n 1 "$tidy" -p build --quiet
import json, re, sys
for entry in json.load(open("build/compile_commands.json")):
    if re.search(sys.argv[1], entry["file"]):
        print(entry["file"])
EOF
