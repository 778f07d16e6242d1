// SPDX-License-Identifier: Apache-2.0
/*
 * The smallest rank there is, for the tests of the launcher: finds out who it is, opens its presence, says so, and
 * leaves in good order after some milliseconds. run_rank MILLISECONDS [EXIT-STATUS]. With MUSTER_TEST_FORK in its
 * environment it leaves a child behind that holds its connection.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "control/identity.h"
#include "control/store.h"
#include "core/clock.h"

enum { STORE_LOST_STATUS = 70, NOT_WELCOME_STATUS = 71, CHILD_LIVES_MS = 120000 };

static int serve_time(struct store *store, uint64_t end_ns)
{
    struct store_event event;
    while (clock_ns() < end_ns) {
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
    uint64_t time_ns = argc > 1 ? strtoull(argv[1], NULL, 10) * 1000000 : 0;
    if (identity_find(&config, &me) != MUSTER_OK ||
        store_embedded_open(me.store, me.rank, me.ranks, 10000000, &store) != MUSTER_OK) {
        fprintf(stderr, "not welcome: %s\n", muster_last_error());
        return NOT_WELCOME_STATUS;
    }
    printf("rank %d of %d arrived, incarnation %u\n", me.rank, me.ranks, store->welcome.incarnation);
    fflush(stdout);
    if (getenv("MUSTER_TEST_FORK"))
        leave_a_child();
    int status = serve_time(store, clock_ns() + time_ns);
    if (status)
        printf("the store was lost\n");
    store->ops->leave(store);
    store->ops->close(store);
    return status ? status : argc > 2 ? atoi(argv[2]) : 0;
}
