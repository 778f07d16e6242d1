// SPDX-License-Identifier: Apache-2.0
/*
 * A rank under limits: creates its group, says what came of it, writes to all of its symmetric memory, and leaves. It takes
 * some steps in between.
 * limit_rank MEBIBYTES [maps|late]: with "maps" the process has used up its mappings before. With "late", in a group of three,
 * rank 2 dies once, and rank 0 has no room for the memory of the one that comes in its place.
 */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "control/group.h"
#include "muster/muster.h"

enum { START_US = 20000000, STEPS = 200 };

/* Neighbours with another protection are mappings of their own. */
static void use_up_mappings(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (size_t)1 << 20;
    char *base = mmap(NULL, pages * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return;
    for (size_t i = 0; i < pages && mprotect(base + i * page, page, PROT_READ) == 0; i += 2) {
    }
}

/* What is traced of them takes more than the test lets a file have. */
static void take_steps(muster_group *group)
{
    muster_verdict verdict;
    for (int i = 0; i < STEPS; i++) {
        muster_step_begin(group, NULL);
        muster_step_end(group, NULL);
        muster_step_verdict(group, &verdict);
    }
}

/* Less than is in use now: what the dead rank leaves is not enough for the next. */
static void narrow_address_space(uint64_t bytes)
{
    struct rlimit limit;
    unsigned long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%llu", &pages) != 1)
        return;
    fclose(file);
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = pages * (rlim_t)sysconf(_SC_PAGESIZE) - bytes / 2;
    setrlimit(RLIMIT_AS, &limit);
}

/* Waits for a view without rank 0 and after rank 2 has come back, or for the group's end. */
static muster_status await_others(muster_group *group)
{
    muster_view view = {.active = 0};
    muster_status status = MUSTER_OK;
    for (int i = 0; i < 1000 && status == MUSTER_OK; i++) {
        if (view.ready && !(view.mask.word[0] & 1) && view.incarnation[2] == 2)
            return MUSTER_OK;
        status = muster_group_wait_ready(group, 20000);
        if (status == MUSTER_OK || status == MUSTER_ERR_AGAIN)
            status = muster_group_view(group, &view);
        usleep(1000);
    }
    return status == MUSTER_OK ? MUSTER_ERR_TIMEOUT : status;
}

static int be_late(muster_group *group, uint64_t bytes)
{
    muster_view view;
    muster_group_view(group, &view);
    if (muster_group_rank(group) == 0)
        narrow_address_space(bytes);
    if (muster_group_rank(group) == 2 && view.incarnation[2] == 1)
        raise(SIGKILL);
    muster_status status = await_others(group);
    printf("late: %s %s\n", muster_status_name(status), status == MUSTER_OK ? "" : muster_last_error());
    fflush(stdout);
    bool wanted = status == (muster_group_rank(group) == 0 ? MUSTER_ERR_MEMORY : MUSTER_OK);
    muster_group_destroy(group);
    return wanted ? 0 : -(int)status;
}

int main(int argc, char **argv)
{
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    muster_group *group;
    config.memory_bytes = strtoull(argc > 1 ? argv[1] : "1", NULL, 10) << 20;
    config.start_timeout_us = START_US;
    if (argc > 2 && strcmp(argv[2], "maps") == 0)
        use_up_mappings();
    muster_status status = muster_group_create(&config, &group);
    printf("%s %s\n", muster_status_name(status), status == MUSTER_OK ? "" : muster_last_error());
    fflush(stdout);
    if (status != MUSTER_OK)
        return -(int)status;
    if (argc > 2 && strcmp(argv[2], "late") == 0)
        return be_late(group, config.memory_bytes);
    take_steps(group);
    memset(group_memory_base(group) + sizeof(struct region_header), 1, config.memory_bytes);
    muster_group_destroy(group);
    printf("left\n");
    return 0;
}
