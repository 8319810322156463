#!/bin/bash
# Formats every C++ file in place with clang-format 14; --check only lists the files that would
# change and exits 1 when there are any.
# usage: tools/format.sh [--check]
set -euo pipefail
cd "$(dirname "$0")/.."

format=$(command -v clang-format-14 || command -v clang-format)
folders=()
for folder in src include apps bench tests examples; do
  if [[ -d $folder ]]; then folders+=("$folder"); fi
done

list_files() {
  find "${folders[@]}" -name '*.h' -o -name '*.inl' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' | LC_ALL=C sort
}

if [[ ${1:-} == --check ]]; then
  changed=$(list_files | xargs -r "$format" --dry-run 2>&1 | sed -n 's/^\([^:]*\):.*code should be.*/\1/p' | uniq)
  [[ -z $changed ]] && exit 0
  echo "not formatted; run tools/format.sh:"
  echo "$changed"
  exit 1
fi
list_files | xargs -r "$format" -i
