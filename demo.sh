#!/bin/bash
# Installs what is missing, builds build/caravan, and lets the embedded model answer one instruction.
# Ends with the text (stdout) and the speed line (stderr).
# usage: ./demo.sh [INSTRUCTION]
set -euo pipefail
cd "$(dirname "$0")"

tools/install_dependencies.sh build
tools/build.sh cpu caravan

command=(build/caravan run --model models/camel-nano --template camel
  --instruction "${1:-Describe a garden in the morning.}" --max-output-len 64)
printf '\n$' >&2
printf ' %q' "${command[@]}" >&2
printf '\n' >&2
exec "${command[@]}"
