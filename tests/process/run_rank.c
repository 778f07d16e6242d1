// SPDX-License-Identifier: Apache-2.0
/*
 * The smallest rank there is, for the tests of the launcher: finds out who it is, opens its presence, says so, and
 * leaves in good order after some milliseconds, or once a file is there. run_rank MILLISECONDS|@FILE [EXIT-STATUS]. With
 * MUSTER_TEST_FORK in its environment it leaves a child behind that holds its connection.
 */
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "control/identity.h"
#include "control/store.h"
#include "core/clock.h"
#include "lib/pace.h"

enum { STORE_LOST_STATUS = 70, NOT_WELCOME_STATUS = 71, CHILD_LIVES_MS = 120000 };

/* For so many milliseconds, or until the file `until` is there. */
static bool is_over(const char *until, uint64_t end_ns)
{
    return until ? access(until, F_OK) == 0 : clock_ns() >= end_ns;
}

static int serve(struct store *store, const char *until, uint64_t end_ns)
{
    struct store_event event;
    while (!is_over(until, end_ns)) {
        struct pollfd readable = {.fd = store->ops->fd(store), .events = POLLIN};
        poll(&readable, 1, 10);
        do {
            store->ops->poll(store, clock_ns(), &event);
            if (event.type == STORE_LOST)
                return STORE_LOST_STATUS;
        } while (event.type != STORE_NOTHING);
    }
    return 0;
}

static void leave_a_child(void)
{
    pid_t child = fork();
    if (child == 0) {
        poll(NULL, 0, CHILD_LIVES_MS);
        _exit(0);
    }
    printf("forked %d\n", (int)child);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    struct identity me;
    struct store *store;
    const char *until = argc > 1 && argv[1][0] == '@' ? argv[1] + 1 : NULL;
    uint64_t time_ns = argc > 1 && !until ? strtoull(argv[1], NULL, 10) * 1000000 : 0;
    if (identity_find(&config, &me) != MUSTER_OK ||
        store_embedded_open(me.store, me.rank, me.ranks, PACE_PATIENCE_MS * UINT64_C(1000), &store) != MUSTER_OK) {
        fprintf(stderr, "not welcome: %s\n", muster_last_error());
        return NOT_WELCOME_STATUS;
    }
    printf("rank %d of %d arrived, incarnation %u\n", me.rank, me.ranks, store->welcome.incarnation);
    fflush(stdout);
    if (getenv("MUSTER_TEST_FORK"))
        leave_a_child();
    int status = serve(store, until, clock_ns() + time_ns);
    if (status)
        printf("the store was lost\n");
    store->ops->leave(store);
    store->ops->close(store);
    return status ? status : argc > 2 ? atoi(argv[2]) : 0;
}
