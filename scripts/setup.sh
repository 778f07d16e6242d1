#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian or Ubuntu packages that a target needs, where it may; otherwise prints the one line to run.
# Usage: scripts/setup.sh build|test|lint|fuzz|bench
set -u

build="gcc libc6-dev make cmake pkg-config libcmocka-dev libjansson-dev libxxhash-dev libdlpack-dev"
case "${1:-build}" in
build) packages=$build ;;
test) packages="$build g++ libboost-context-dev" ;;
lint) packages="clang-format cppcheck universal-ctags git" ;;
fuzz) packages="$build clang libclang-rt-14-dev" ;;
bench) packages="$build openmpi-bin libopenmpi-dev" ;;
*)
    echo "usage: scripts/setup.sh build|test|lint|fuzz|bench" >&2
    exit 2
    ;;
esac

# Newer releases ship libFuzzer's runtime beside a newer clang.
if [ "${1:-}" = fuzz ] && ! apt-cache show libclang-rt-14-dev >/dev/null 2>&1; then
    packages="$build clang libclang-rt-dev"
fi

command -v dpkg-query >/dev/null 2>&1 || exit 0 # another kind of system: CMake will say what is missing

missing=""
for package in $packages; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)
    [ "$status" = "install ok installed" ] || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ]; then
    sudo=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    sudo="sudo"
else
    echo "Some packages are missing. Please run:" >&2
    echo "    sudo apt-get install -y$missing" >&2
    exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
$sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 && exit 0
# shellcheck disable=SC2086
$sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
