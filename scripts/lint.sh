#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Format, static analysis, and the length of functions.
set -u
cd "$(dirname "$0")/.." || exit 1
failed=0

mapfile -t sources < <(git ls-files --cached --others --exclude-standard '*.c' '*.h' '*.cu' '*.cuh' '*.cpp')

echo "format: ${#sources[@]} files"
clang-format --dry-run -Werror "${sources[@]}" || failed=1

# cppcheck does not know vector types, whose lanes are filled one by one, nor that a call fills an array.
echo "cppcheck"
timeout 170 cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,portability --inline-suppr -j "$(nproc)" \
    --suppress=uninitvar:src/kernels/cpu/rows_lanes.h --suppress=uninitvar:src/kernels/cpu/exchange.c --suppress=missingIncludeSystem --suppress=normalCheckLevelMaxBranches -D_GNU_SOURCE -D__linux__ \
    -I include -I src -I engine src engine tools examples || failed=1

# Functions are meant to be held in mind: at most 70 lines in the library, the engine and the tool.
echo "function length"
long=$(git ls-files --cached --others --exclude-standard 'src/*.c' 'src/*.cu' 'src/*.cuh' 'engine/*.c' \
    'tools/*.c' 'examples/*.c' |
    ctags -L - --fields=+ne --langmap=C++:+.cu.cuh --kinds-C=f --kinds-C++=f -f - 2>/dev/null |
    awk -F'\t' '{ line = 0; end = 0
                  for (i = 4; i <= NF; i++) {
                      if ($i ~ /^line:/) line = substr($i, 6)
                      if ($i ~ /^end:/) end = substr($i, 5)
                  }
                  if (end - line + 1 > 70) printf "%s:%d: %s has %d lines, the limit is 70\n", $2, line, $1, end - line + 1 }')
if [ -n "$long" ]; then
    echo "$long"
    failed=1
fi

[ "$failed" = 0 ] && echo "lint: clean"
exit "$failed"
