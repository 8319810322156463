#!/bin/bash
# Runs clang-tidy with the checks of .clang-tidy over the files of build/compile_commands.json whose
# path matches a pattern; over all of src/ and apps/ without one. --share N: one file in N, another
# share for every commit; the first line says which.
# usage: tools/tidy.sh [--share N] [REGEX]
set -euo pipefail
cd "$(dirname "$0")/.."

shares=1
if [[ ${1:-} == --share ]]; then
  shares=$2
  shift 2
fi
share=$(($(git rev-list --count HEAD 2>/dev/null || date +%j | sed 's/^0*//') % shares))
pattern=${1:-'/(src|apps)/.*\.cc$'}
tidy=$(command -v clang-tidy-14 || command -v clang-tidy)
echo "clang-tidy: share $share of $shares (every file whose index modulo $shares is $share)"
python3 - "$pattern" "$shares" "$share" <<'EOF' | xargs -r -P "$(nproc)" -n 1 "$tidy" -p build --quiet
import json, re, sys
pattern, shares, share = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
files = sorted({e["file"] for e in json.load(open("build/compile_commands.json")) if re.search(pattern, e["file"])})
print("\n".join(files[share::shares]))
EOF
