#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Ranks that are short of something: memory, address space, mappings, a reader of what they write. Each says which limit is in
# its way, at once, and none is ended by the kernel. test_limits.sh MUSTER PROGRAMS-FOLDER
set -u
tool=$(realpath -e "$1") && rank=$(realpath -e "$2/limit_rank") || exit 1
. "$(dirname "$0")/checks.sh" "$tool"
cd "$folder" || exit 1
group=

# run STATUS COMMAND...: in a shell of its own, whose limits are its own; `says` looks at what it put out.
run() {
    local wanted=$1 got
    shift
    timeout -k 5 60 bash -c "$*" >out 2>err
    got=$?
    [ "$got" = "$wanted" ] || complain "exit status $got, wanted $wanted: $*"
    says_not err 'rank [01] .* was killed by SIG(KILL|BUS|SEGV|PIPE|XFSZ)'
}

# SECONDS is whole; nothing here may come near the 20 s for which a rank waits for others.
begin() { begun=$SECONDS; }
soon() { [ $((SECONDS - begun)) -lt 15 ] || complain "it took $((SECONDS - begun)) s"; }

test_file_size() {
    begin
    run 21 "ulimit -f 1024; '$tool' run -n 1 '$rank' 64"
    says out 'MUSTER_ERR_MEMORY .*bytes are needed, and RLIMIT_FSIZE \(ulimit -f\) is 1048576'
    run 0 "ulimit -f 1024; '$tool' run -n 2 '$rank' 0"
    says out 'left'
    soon
}

# Three peers of 64 MiB do not fit beside the rank's own memory.
test_address_space() {
    begin
    run 21 "ulimit -v 240000; '$tool' run -n 4 '$rank' 64"
    says out 'MUSTER_ERR_MEMORY memory of rank [0-3]: cannot map .* a peer.s .*RLIMIT_AS \(ulimit -v\) is 245760000 bytes, of which'
    run 21 "ulimit -v 100000; '$tool' run -n 1 '$rank' 100"
    says out 'MUSTER_ERR_MEMORY cannot map .* this rank.s .*RLIMIT_AS'
    soon
}

# A rank that has no room for a newcomer leaves, and the others go on with it.
test_newcomer() {
    begin
    run 0 "'$tool' run -n 3 --respawn '$rank' 64 late"
    says out '\[0\] late: MUSTER_ERR_MEMORY memory of rank 2: cannot map .* a peer.s .*RLIMIT_AS'
    says out '\[1\] late: MUSTER_OK'
    says out '\[2\] late: MUSTER_OK'
    soon
}

test_mappings() {
    begin
    [ "$(cat /proc/sys/vm/max_map_count)" -lt 500000 ] || { echo "skipped: too many mappings are allowed here" && return; }
    run 21 "'$tool' run -n 1 '$rank' 1 maps"
    says out "MUSTER_ERR_MEMORY .*vm.max_map_count is $(cat /proc/sys/vm/max_map_count), and this process has"
    soon
}

test_host() {
    begin
    run 21 "'$tool' run -n 1 '$rank' 100000000"
    says out 'MUSTER_ERR_MEMORY config.memory_bytes: .*104857600[0-9]* bytes are needed, and [0-9]* are left of .*(MemAvailable|memory\.)'
    soon
}

# group_open MEBIBYTES: a memory cgroup below that of this shell, in either version. False: none can be made here.
group_open() {
    local own
    own=$(sed -n 's/^[0-9]*:\([^:]*,\)*memory\(,[^:]*\)*:\(.*\)/\3/p' /proc/self/cgroup)
    group=$(awk '$(NF-2) == "cgroup" && $NF ~ /(^|,)memory(,|$)/ { print $5; exit }' /proc/self/mountinfo)${own%/}/muster-test-$$
    limit=memory.limit_in_bytes
    if [ -z "$own" ]; then
        group=$(awk '$(NF-2) == "cgroup2" { print $5; exit }' /proc/self/mountinfo)/muster-test-$$
        limit=memory.max
    fi
    mkdir -p "$group/inner" 2>/dev/null && [ -e "$group/$limit" ] && echo $(($1 << 20)) 2>/dev/null >"$group/$limit"
}

group_close() {
    local i
    for i in $(seq 100); do
        rmdir "$group/inner" "$group" 2>/dev/null && break
        [ -d "$group" ] || break
        sleep 0.1
    done
}

# Whether the kernel has killed anybody there.
nobody_killed() {
    local kills
    kills=$(cat "$group"/memory.oom_control "$group"/memory.events 2>/dev/null | awk '$1 == "oom_kill" { n += $2 } END { print n + 0 }')
    [ "$kills" = 0 ] || complain "the kernel has killed $kills processes"
}

# The limit is that of a cgroup above the ranks' own. Each rank alone would have room, and both together have not.
test_cgroup() {
    begin
    if ! group_open 96; then
        echo "skipped: a memory cgroup cannot be made here"
        group_close
        return
    fi
    run 1 "echo \$\$ >'$group/inner/cgroup.procs'; '$tool' run -n 2 --min-ranks 2 '$rank' 80"
    says out "MUSTER_ERR_MEMORY config.memory_bytes: .* bytes are needed, and [0-9]* are left of cgroup $group, whose $limit is 100663296"
    nobody_killed
    run 21 "echo \$\$ >'$group/inner/cgroup.procs'; '$tool' run -n 1 '$rank' 200"
    says out "are left of cgroup $group, whose $limit is 100663296"
    nobody_killed
    run 0 "echo \$\$ >'$group/inner/cgroup.procs'; '$tool' run -n 2 '$rank' 16"
    says out '\[0\] left'
    says out '\[1\] left'
    nobody_killed
    group_close
    soon
}

# What the library tells nobody reads, or nobody can store: the rank goes on.
test_output() {
    begin
    export MUSTER_UNKNOWN_SETTING=1
    run 0 "'$tool' run -n 1 '$rank' 1"
    says err 'unknown setting MUSTER_UNKNOWN_SETTING'
    mkfifo pipe
    run 0 "'$tool' run -n 1 bash -c 'exec 3<>pipe 2>pipe 3<&-; exec \"\$0\" 1' '$rank'"
    says out 'left'
    run 21 "'$tool' run -n 1 bash -c 'exec 2>>full; ulimit -f 0; exec \"\$0\" 0' '$rank'" # nor is there any memory
    says out 'MUSTER_ERR_MEMORY .*RLIMIT_FSIZE'
    [ ! -s full ] || complain "more was written than may be"
    MUSTER_TRACE=trace.json run 0 "'$tool' run -n 1 bash -c 'ulimit -f 9; exec \"\$0\" 0' '$rank'"
    says out 'left'
    [ "$(stat -c %s trace.json)" = 9216 ] || complain "the trace has $(stat -c %s trace.json) bytes, and not all that may be written"
    unset MUSTER_UNKNOWN_SETTING
    soon
}

trap '[ -z "$group" ] || group_close; rm -rf "$folder"' EXIT
for name in $(declare -F | sed -n 's/^declare -f \(test_.*\)/\1/p'); do
    [ $# -gt 2 ] && [ "$3" != "$name" ] && continue
    start=$SECONDS
    "$name"
    echo "$name: $((SECONDS - start)) s"
done
exit "$failed"
