#!/bin/bash
# Installs what is missing, builds build/caravan, and lets the embedded model answer one instruction.
# usage: ./demo.sh [INSTRUCTION]
set -euo pipefail
cd "$(dirname "$0")"

tools/install_dependencies.sh build
tools/build.sh cpu caravan

instruction=${1:-"Describe a garden in the morning."}
prompt="Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
$instruction

### Response:"

echo
echo "\$ build/caravan run --model models/camel-nano --prompt ... --max-output-len 64"
build/caravan run --model models/camel-nano --prompt "$prompt" --max-output-len 64
