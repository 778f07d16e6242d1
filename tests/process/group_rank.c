// SPDX-License-Identifier: Apache-2.0
/*
 * A rank that forms a real group, for the tests of the launcher: says when it has joined, waits until no more than
 * ACTIVE ranks are left, says so, and leaves. group_rank ACTIVE [EXIT-STATUS]
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/clock.h"
#include "muster/group.h"

enum { NO_GROUP_STATUS = 72, TOO_LATE_STATUS = 73, POLL_MS = 5, MEMORY_BYTES = 65536 };

static const uint64_t PATIENCE_NS = UINT64_C(40000000000);

/* How many are left, once they are few enough; 0 with muster_last_error() if the group ends, or it takes too long. */
static int await_active(muster_group *group, int wanted)
{
    uint64_t end_ns = clock_ns() + PATIENCE_NS;
    muster_view view;
    while (clock_ns() < end_ns) {
        if (muster_group_view(group, &view) != MUSTER_OK)
            return 0;
        if (view.active <= wanted)
            return view.active;
        poll(NULL, 0, POLL_MS);
    }
    return 0;
}

int main(int argc, char **argv)
{
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    muster_group *group;
    config.memory_bytes = MEMORY_BYTES;
    if (muster_group_create(&config, &group) != MUSTER_OK) {
        fprintf(stderr, "no group: %s\n", muster_last_error());
        return NO_GROUP_STATUS;
    }
    printf("rank %d joined, process %d\n", muster_group_rank(group), (int)getpid());
    fflush(stdout);
    int active = await_active(group, argc > 1 ? atoi(argv[1]) : 0);
    if (active)
        printf("rank %d: %d left\n", muster_group_rank(group), active);
    else
        fprintf(stderr, "rank %d gives up: %s\n", muster_group_rank(group), muster_last_error());
    muster_group_destroy(group);
    return !active ? TOO_LATE_STATUS : argc > 2 ? atoi(argv[2]) : 0;
}
