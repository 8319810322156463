#!/bin/bash
# Installs what Caravan needs on Debian 12 and is not there yet; does nothing when all of it is.
# usage: tools/install_dependencies.sh [build|test]
# "test" adds what test.sh needs, and makes .venv at the root of the tree: the Python packages that
# results are compared with, from PyPI, with the versions in tools/test_requirements.txt. Default
# build, which uses Debian's packages only.
set -euo pipefail
cd "$(dirname "$0")/.."

build_packages=(
  g++ cmake ninja-build ccache pkg-config python3
  libboost1.81-dev libcli11-dev libfmt-dev libxxhash-dev libgtest-dev
  libsnappy-dev libzstd-dev zlib1g-dev    # compressed Parquet files
)
test_packages=(
  git                                     # checks of the tree
  clang libclang-rt-14-dev libomp-14-dev  # libFuzzer targets, and OpenMP for them
  clang-format clang-tidy
  python3-venv                            # .venv
  haproxy                                 # deploy/haproxy.cfg
  chromium chromium-driver                # the server's page
)

# .venv holds the requirements it was made of as its last file, so that a change of the list or an
# interrupted installation makes it anew.
make_test_environment() {
  local requirements=tools/test_requirements.txt
  cmp -s "$requirements" .venv/requirements.txt && return
  echo "Making .venv from $requirements" >&2
  rm -rf .venv
  python3 -m venv .venv >&2
  .venv/bin/pip install --quiet --disable-pip-version-check -r "$requirements" >&2
  cp "$requirements" .venv/requirements.txt
}

case "${1:-build}" in
  build) packages=("${build_packages[@]}") ;;
  test) packages=("${build_packages[@]}" "${test_packages[@]}") ;;
  *)
    echo "usage: $0 [build|test]" >&2
    exit 64
    ;;
esac

install_packages() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "$0: this is not a Debian system; install the equivalents of: ${packages[*]}" >&2
    exit 1
  fi

  local missing=() package status
  for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
  done
  [[ ${#missing[@]} -eq 0 ]] && return

  local as_root=()
  if [[ $(id -u) -ne 0 ]]; then
    if ! command -v sudo >/dev/null; then
      echo "$0: packages are missing and there is no sudo; as root, run:" >&2
      echo "  apt-get update && apt-get install --no-install-recommends ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi

  echo "Installing: ${missing[*]}" >&2
  "${as_root[@]}" apt-get update -qq >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

install_packages
[[ ${1:-build} == build ]] || make_test_environment
