// SPDX-License-Identifier: Apache-2.0
/*
 * Claims: which places in which stores the groups of this process hold. A store serves one group, with one process in each
 * of its ranks, so a second group in a place that is held would wait for the first one, or be killed with it.
 */
#ifndef CONTROL_CLAIM_H
#define CONTROL_CLAIM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "muster/status.h"

struct claim {
    struct claim *next;
    uint32_t forks; /* fork_count() of the process that made it: a child holds nothing of its parent's */
    int32_t rank;
    ino_t connection; /* of a store that was inherited; 0: the store is known by its name */
    char store[128];
};

/* `claim` stays where it is until it is released. ORDER: a group of this process holds the place. Any thread. */
muster_status claim_take(struct claim *claim, const char *store, int32_t rank);
void claim_release(struct claim *claim);

#endif
