// SPDX-License-Identifier: Apache-2.0
#include "memory/room.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/error.h"
#include "core/size.h"

enum { PATH_BYTES = 512 };

/* ------------------------------------------------------------------------------------------- numbers in small files */

/* The number behind `name` at the beginning of a line, or the first in the file if `name` is "". False: there is none. */
static bool read_number(const char *path, const char *name, uint64_t *number)
{
    char line[256];
    bool found = false;
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    while (!found && fgets(line, sizeof line, file)) {
        unsigned long long value;
        if (strncmp(line, name, strlen(name)) != 0 || sscanf(line + strlen(name), " %llu", &value) != 1)
            continue;
        *number = value;
        found = true;
    }
    fclose(file);
    return found;
}

/* `proc`: where the kernel tells of processes. */
static void look_at_host(const char *proc, struct room *room)
{
    uint64_t kib;
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/meminfo", proc);
    if (!read_number(path, "MemAvailable:", &kib))
        return;
    room->bytes = size_times(kib, 1024);
    snprintf(room->limit, sizeof room->limit, "the host's memory, MemAvailable in /proc/meminfo");
}

/* ---------------------------------------------------------------------------------------------------------- cgroups */

/* The files of a memory cgroup in one version of the interface. */
struct cgroup_files {
    const char *type; /* of its file system */
    const char *limit, *usage;
    const char *files[2]; /* pages of files, in memory.stat: they are given up before memory is denied */
};

static const struct cgroup_files versions[] = {
    {"cgroup", "memory.limit_in_bytes", "memory.usage_in_bytes", {"total_inactive_file ", "total_active_file "}},
    {"cgroup2", "memory.max", "memory.current", {"inactive_file ", "active_file "}},
};

static bool cgroup_number(const char *folder, const char *file, const char *name, uint64_t *number)
{
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    return read_number(path, name, number);
}

static void look_at_cgroup(const struct cgroup_files *v, const char *folder, struct room *room)
{
    uint64_t limit, used, files, reclaimable = 0;
    if (!cgroup_number(folder, v->limit, "", &limit) || !cgroup_number(folder, v->usage, "", &used))
        return; /* "max", or a root, which has no limit */
    for (int i = 0; i < 2; i++)
        if (cgroup_number(folder, "memory.stat", v->files[i], &files))
            reclaimable = size_add(reclaimable, files);
    used = used > reclaimable ? used - reclaimable : 0;
    uint64_t left = limit > used ? limit - used : 0;
    if (left >= room->bytes)
        return;
    room->bytes = left;
    snprintf(room->limit, sizeof room->limit, "cgroup %.*s, whose %s is %llu", ROOM_TEXT_BYTES - 80, folder, v->limit,
             (unsigned long long)limit);
}

/* From the cgroup of this process up to where the hierarchy is mounted: each one's limit holds. */
static void look_upwards(const struct cgroup_files *v, const char *mounted, const char *own, struct room *room)
{
    char folder[PATH_BYTES];
    size_t top = strlen(mounted);
    if ((size_t)snprintf(folder, sizeof folder, "%s%s", mounted, own) >= sizeof folder)
        return;
    for (;;) {
        look_at_cgroup(v, folder, room);
        char *last = strrchr(folder, '/');
        if (strlen(folder) <= top || !last || (size_t)(last - folder) < top)
            return;
        *last = 0;
    }
}

static bool has_word(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, word, length) == 0 && (at[length] == ',' || !at[length]))
            return true;
    }
    return false;
}

/* The process's cgroup, in a line of /proc/self/cgroup: "4:memory:/path", or "0::/path" for version 2. */
static bool own_path(const char *proc, const struct cgroup_files *v, char path[PATH_BYTES])
{
    char line[PATH_BYTES];
    snprintf(line, sizeof line, "%s/self/cgroup", proc);
    bool second = strcmp(v->type, "cgroup2") == 0, found = false;
    FILE *file = fopen(line, "re");
    if (!file)
        return false;
    while (!found && fgets(line, sizeof line, file)) {
        char *controllers = strchr(line, ':'), *at = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!at)
            continue;
        *at = 0;
        found = second ? !controllers[1] : has_word(controllers + 1, "memory");
        snprintf(path, PATH_BYTES, "%.*s", (int)strcspn(at + 1, "\n"), at + 1);
    }
    fclose(file);
    return found;
}

/* A mount shows the hierarchy from `root` on. A process outside of that sees no more than the mount itself. */
static const char *below(const char *root, const char *path)
{
    size_t length = strcmp(root, "/") == 0 ? 0 : strlen(root);
    if (strncmp(path, root, length) != 0 || (path[length] && path[length] != '/'))
        return "";
    return strcmp(path + length, "/") == 0 ? "" : path + length;
}

/* A line of /proc/self/mountinfo: ID PARENT DEVICE ROOT PLACE OPTIONS [MORE...] - TYPE SOURCE OPTIONS. */
static void look_at_mount(const char *proc, const char *line, struct room *room)
{
    char root[PATH_BYTES], place[PATH_BYTES], type[16], options[PATH_BYTES], path[PATH_BYTES];
    const char *rest = strstr(line, " - ");
    if (!rest || sscanf(line, "%*s %*s %*s %511s %511s", root, place) != 2 ||
        sscanf(rest, " - %15s %*s %511s", type, options) != 2)
        return;
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        const struct cgroup_files *v = &versions[i];
        bool second = strcmp(v->type, "cgroup2") == 0;
        if (strcmp(type, v->type) == 0 && (second || has_word(options, "memory")) && own_path(proc, v, path))
            look_upwards(v, place, below(root, path), room);
    }
}

static void look_at_cgroups(const char *proc, struct room *room)
{
    char *line = NULL, path[PATH_BYTES];
    size_t bytes = 0;
    snprintf(path, sizeof path, "%s/self/mountinfo", proc);
    FILE *file = fopen(path, "re");
    if (!file)
        return;
    while (getline(&line, &bytes, file) > 0)
        if (strstr(line, " - cgroup"))
            look_at_mount(proc, line, room);
    free(line);
    fclose(file);
}

/* ------------------------------------------------------------------------------------------------------- the answer */

void room_find(const char *proc, struct room *room)
{
    *room = (struct room){.bytes = UINT64_MAX, .limit = "limits that this system does not tell"};
    look_at_host(proc, room);
    look_at_cgroups(proc, room);
}

muster_status room_check(uint64_t bytes, const char *what, struct room *room)
{
    room_find("/proc", room);
    if (bytes <= room->bytes)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_MEMORY, "%s: %llu bytes are needed, and %llu are left of %s", what,
                     (unsigned long long)bytes, (unsigned long long)room->bytes, room->limit);
}

/* ----------------------------------------------------------------------------- what could not be taken, or mapped */

void room_explain_take(const char *proc, int error, char text[ROOM_TEXT_BYTES])
{
    char path[PATH_BYTES];
    uint64_t strict = 0, limit = 0, committed = 0;
    snprintf(path, sizeof path, "%s/sys/vm/overcommit_memory", proc);
    read_number(path, "", &strict);
    snprintf(path, sizeof path, "%s/meminfo", proc);
    if (strict == 2 && read_number(path, "CommitLimit:", &limit) && read_number(path, "Committed_AS:", &committed))
        snprintf(text, ROOM_TEXT_BYTES, "vm.overcommit_memory is 2, and %llu of %llu kB may be promised yet",
                 (unsigned long long)(limit > committed ? limit - committed : 0), (unsigned long long)limit);
    else
        snprintf(text, ROOM_TEXT_BYTES, "%s", strerror(error));
}

static uint64_t own_mappings(void)
{
    uint64_t lines = 0;
    FILE *file = fopen("/proc/self/maps", "re");
    if (!file)
        return 0;
    for (int c = getc(file); c != EOF; c = getc(file))
        lines += c == '\n';
    fclose(file);
    return lines;
}

static bool beyond_address_space(uint64_t bytes, char text[ROOM_TEXT_BYTES])
{
    struct rlimit limit;
    uint64_t pages = 0;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return false;
    read_number("/proc/self/statm", "", &pages);
    uint64_t used = pages * (uint64_t)sysconf(_SC_PAGESIZE);
    if (size_add(used, bytes) <= limit.rlim_cur)
        return false;
    snprintf(text, ROOM_TEXT_BYTES, "RLIMIT_AS (ulimit -v) is %llu bytes, of which %llu are in use",
             (unsigned long long)limit.rlim_cur, (unsigned long long)used);
    return true;
}

/* Opening a file takes no mapping, so this may be asked when there are none left. */
static bool beyond_mappings(char text[ROOM_TEXT_BYTES])
{
    uint64_t most, mappings = own_mappings();
    if (!read_number("/proc/sys/vm/max_map_count", "", &most) || mappings + 1 < most)
        return false;
    snprintf(text, ROOM_TEXT_BYTES, "vm.max_map_count is %llu, and this process has %llu mappings",
             (unsigned long long)most, (unsigned long long)mappings);
    return true;
}

static bool beyond_locked(int error, char text[ROOM_TEXT_BYTES])
{
    struct rlimit limit;
    if (error != EAGAIN || getrlimit(RLIMIT_MEMLOCK, &limit) != 0)
        return false;
    snprintf(text, ROOM_TEXT_BYTES, "RLIMIT_MEMLOCK (ulimit -l) is %llu bytes, and the program locks what it maps",
             (unsigned long long)limit.rlim_cur);
    return true;
}

void room_explain_map(int error, uint64_t bytes, char text[ROOM_TEXT_BYTES])
{
    if (beyond_locked(error, text) || beyond_address_space(bytes, text) || beyond_mappings(text))
        return;
    snprintf(text, ROOM_TEXT_BYTES, "%s", strerror(error));
}
