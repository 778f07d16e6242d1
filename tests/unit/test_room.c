// SPDX-License-Identifier: Apache-2.0
/* What is left of memory, as the kernel tells it: files of a made-up /proc and of cgroups of both versions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory/room.h"
#include "memory/shm.h"

#define MIB (UINT64_C(1) << 20)

static char base[64];

/* Writes a file below `base`, with the folders that lead to it. */
static void put(const char *path, const char *text)
{
    char whole[512];
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    for (char *slash = strchr(whole + strlen(base) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(whole, 0700);
        *slash = '/';
    }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void put_number(const char *path, uint64_t number)
{
    char text[32];
    snprintf(text, sizeof text, "%llu\n", (unsigned long long)number);
    put(path, text);
}

static int open_base(void **state)
{
    (void)state;
    strcpy(base, "/tmp/muster-test-room-XXXXXX");
    if (!mkdtemp(base))
        return -1;
    put("proc/meminfo", "MemTotal:       4194304 kB\nMemFree:            100 kB\nMemAvailable:    1048576 kB\n");
    put("proc/self/cgroup", "");
    put("proc/self/mountinfo", "");
    return 0;
}

static int close_base(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", base);
    return system(command);
}

static void expect_room(uint64_t bytes, const char *limit)
{
    struct room room;
    char proc[128];
    snprintf(proc, sizeof proc, "%s/proc", base);
    room_find(proc, &room);
    assert_int_equal(room.bytes, bytes);
    if (!strstr(room.limit, limit))
        print_error("\"%s\" is not in \"%s\"\n", limit, room.limit);
    assert_non_null(strstr(room.limit, limit));
}

/* A mount of a hierarchy at the folder cgroup/NAME, which shows it from `root` on. */
static void mount_at(const char *name, const char *root, const char *type, const char *options)
{
    char text[512];
    snprintf(text, sizeof text,
             "22 1 0:20 / /proc rw,nosuid - proc proc rw\n"
             "35 31 0:32 %s %s/cgroup/%s rw,relatime shared:9 master:3 - %s %s rw%s\n",
             root, base, name, type, type, options);
    put("proc/self/mountinfo", text);
}

static void the_host_has_a_limit(void **state)
{
    (void)state;
    expect_room(1024 * MIB, "MemAvailable");
}

static void what_is_not_told_is_no_limit(void **state)
{
    (void)state;
    put("proc/meminfo", "MemTotal: 1 kB\n");
    expect_room(UINT64_MAX, "");
}

static void version_2_has_a_limit_at_each_level(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/outer/inner\n");
    mount_at("two", "/", "cgroup2", ",nsdelegate");
    put("cgroup/two/outer/inner/memory.max", "max\n");
    put_number("cgroup/two/outer/inner/memory.current", 50 * MIB);
    expect_room(1024 * MIB, "MemAvailable"); /* neither has a limit */
    put_number("cgroup/two/outer/memory.max", 300 * MIB);
    put_number("cgroup/two/outer/memory.current", 100 * MIB);
    expect_room(200 * MIB, "outer, whose memory.max is 314572800");
    put("cgroup/two/outer/memory.stat", "anon 1\ninactive_file 1048576\nactive_file 2097152\nfile 99999999\n");
    expect_room(203 * MIB, "outer, whose");
    put_number("cgroup/two/outer/inner/memory.max", 60 * MIB);
    expect_room(10 * MIB, "inner, whose memory.max is 62914560");
    put_number("cgroup/two/outer/inner/memory.current", 70 * MIB); /* a limit may be set below what is in use */
    expect_room(0, "inner");
}

static void version_1_has_a_limit_at_each_level(void **state)
{
    (void)state;
    put("proc/self/cgroup", "5:cpu,cpuacct:/elsewhere\n4:hugetlb,memory:/outer/inner\n0::/unified\n");
    mount_at("one", "/", "cgroup", ",hugetlb,memory");
    put_number("cgroup/one/memory.limit_in_bytes", UINT64_C(9223372036854771712)); /* none */
    put_number("cgroup/one/memory.usage_in_bytes", 900 * MIB);
    put_number("cgroup/one/outer/inner/memory.limit_in_bytes", UINT64_C(9223372036854771712));
    put_number("cgroup/one/outer/inner/memory.usage_in_bytes", 5 * MIB);
    expect_room(1024 * MIB, "MemAvailable");
    put_number("cgroup/one/outer/memory.limit_in_bytes", 64 * MIB);
    put_number("cgroup/one/outer/memory.usage_in_bytes", 60 * MIB);
    put("cgroup/one/outer/memory.stat", "inactive_file 1\ntotal_inactive_file 2097152\ntotal_active_file 1048576\n");
    expect_room(7 * MIB, "outer, whose memory.limit_in_bytes is 67108864");
}

/* In a container the mount begins somewhere in the hierarchy, and what lies above is not to be seen. */
static void a_mount_may_begin_further_down(void **state)
{
    (void)state;
    put("proc/self/cgroup", "4:memory:/docker/abc/job\n");
    mount_at("part", "/docker/abc", "cgroup", ",memory");
    put_number("cgroup/part/memory.limit_in_bytes", 80 * MIB);
    put_number("cgroup/part/memory.usage_in_bytes", 20 * MIB);
    put_number("cgroup/part/job/memory.limit_in_bytes", 40 * MIB);
    put_number("cgroup/part/job/memory.usage_in_bytes", 10 * MIB);
    expect_room(30 * MIB, "/job, whose");
    put("proc/self/cgroup", "4:memory:/docker/abcdef\n"); /* outside of what is mounted */
    expect_room(60 * MIB, "/part, whose");
}

static void other_hierarchies_do_not_count(void **state)
{
    (void)state;
    put("proc/self/cgroup", "4:memory:/a\n3:cpu:/a\n");
    mount_at("cpu", "/", "cgroup", ",cpu");
    put_number("cgroup/cpu/a/memory.limit_in_bytes", 1);
    put_number("cgroup/cpu/a/memory.usage_in_bytes", 0);
    expect_room(1024 * MIB, "MemAvailable");
}

static void expect_reason(const char *reason)
{
    char proc[128], text[ROOM_TEXT_BYTES];
    snprintf(proc, sizeof proc, "%s/proc", base);
    room_explain_take(proc, ENOMEM, text);
    assert_string_equal(text, reason);
}

static void strict_accounting_is_named(void **state)
{
    (void)state;
    expect_reason(strerror(ENOMEM));
    put("proc/sys/vm/overcommit_memory", "0\n");
    put("proc/meminfo", "MemAvailable: 9 kB\nCommitLimit:     1000 kB\nCommitted_AS:     900 kB\n");
    expect_reason(strerror(ENOMEM));
    put("proc/sys/vm/overcommit_memory", "2\n");
    expect_reason("vm.overcommit_memory is 2, and 100 of 1000 kB may be promised yet");
}

/* What a region promises is there: every page of it. */
static void regions_are_taken_as_a_whole(void **state)
{
    (void)state;
    struct shm_region region;
    struct stat status;
    assert_int_equal(shm_create(33 * MIB, 4, &region), MUSTER_OK);
    assert_int_equal(fstat(region.fd, &status), 0);
    assert_int_equal((uint64_t)status.st_size, 33 * MIB);
    assert_true((uint64_t)status.st_blocks * 512 >= 33 * MIB);
    for (uint64_t at = 0; at < region.bytes; at += 4096)
        assert_int_equal(region.base[at], 0);
    shm_destroy(&region);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_host_has_a_limit, open_base, close_base),
        cmocka_unit_test_setup_teardown(what_is_not_told_is_no_limit, open_base, close_base),
        cmocka_unit_test_setup_teardown(version_2_has_a_limit_at_each_level, open_base, close_base),
        cmocka_unit_test_setup_teardown(version_1_has_a_limit_at_each_level, open_base, close_base),
        cmocka_unit_test_setup_teardown(a_mount_may_begin_further_down, open_base, close_base),
        cmocka_unit_test_setup_teardown(other_hierarchies_do_not_count, open_base, close_base),
        cmocka_unit_test_setup_teardown(strict_accounting_is_named, open_base, close_base),
        cmocka_unit_test(regions_are_taken_as_a_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
