# SPDX-License-Identifier: Apache-2.0
# Sourced by the tests of the tool's subcommands: runs them, and looks at what they say. Sets `muster` from the test's first
# argument and `folder`, where the output of the last call is (out, err). A test ends with: exit "$failed"
muster=$1
failed=0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

complain() {
    failed=1
    echo "FAILED: $*"
    sed 's/^/    out: /' "$folder/out" | head -n 12 | cut -c1-400
    sed 's/^/    err: /' "$folder/err" | head -n 12 | cut -c1-400
}

# call STATUS ARGUMENTS...
call() {
    local wanted=$1 got
    shift
    timeout -k 5 300 "$muster" "$@" >"$folder/out" 2>"$folder/err"
    got=$?
    [ "$got" = "$wanted" ] || complain "exit status $got, wanted $wanted: $*"
}

says() { grep -qE -e "$2" "$folder/$1" || complain "there is no \"$2\" in $1"; }
says_not() { grep -qE -e "$2" "$folder/$1" && complain "there is \"$2\" in $1"; }
quiet() { [ ! -s "$folder/err" ] || complain "something is on stderr"; }

# Each line of `out` an object in JSON. Without python3 only the text is looked at.
if command -v python3 >/dev/null 2>&1; then
    parses() { python3 -c 'import json, sys; [json.loads(line) for line in sys.stdin]' <"$folder/out" || complain "no JSON"; }
else
    parses() { says out '^\{.*\}$'; }
fi
lines_are() { [ "$(wc -l <"$folder/out")" = "$1" ] || complain "$(wc -l <"$folder/out") lines, wanted $1"; }

# The objects are told apart by their line's number; a test whose objects have names defines object() again.
object() { sed -n "$1p" "$folder/out"; }

# field OBJECT NAME: a member of it
field() { object "$1" | grep -oE "\"$2\": (\"[^\"]*\"|[^,}]*)" | head -n 1 | cut -d ' ' -f 2- | tr -d '"'; }
is() { [ "$(field "$1" "$2")" = "$3" ] || complain "$1: $2 is \"$(field "$1" "$2")\", wanted \"$3\""; }
above() { awk -v a="$(field "$1" "$2")" -v b="$3" 'BEGIN { exit !(a + 0 > b) }' || complain "$1: $2 is not above $3"; }
below() { awk -v a="$(field "$1" "$2")" -v b="$3" 'BEGIN { exit !(a ~ /^-?[0-9]/ && a + 0 < b) }' || complain "$1: $2 is not below $3"; }
