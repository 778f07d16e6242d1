// SPDX-License-Identifier: Apache-2.0
/*
 * A rank under limits: creates its group, says what came of it, writes to all of its symmetric memory, and leaves. It takes
 * some steps in between.
 * limit_rank MEBIBYTES [maps]: with "maps" the process has used up its mappings before.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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
    take_steps(group);
    memset(group_memory_base(group) + sizeof(struct region_header), 1, config.memory_bytes);
    muster_group_destroy(group);
    printf("left\n");
    return 0;
}
