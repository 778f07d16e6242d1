// SPDX-License-Identifier: Apache-2.0
/* Rounds of exchanges on a cluster, every output compared with the oracle. */
#ifndef LIB_ROUNDS_H
#define LIB_ROUNDS_H

#include "lib/cluster.h"
#include "lib/party.h"

/* Symmetric memory for one exchange of each case. */
uint64_t rounds_memory_bytes(const struct exchange_case *cases, int count, int ranks);

/*
 * A cluster of `ranks` that goes through the cases, `rounds` exchanges each with inputs of their own; every second one
 * inside a step that the caller opens. `delay`: in each round another rank comes late.
 */
bool rounds_run(int ranks, const struct exchange_case *cases, int count, int rounds, bool delay);

/* One good exchange of `world` on this rank, from step to verdict. Fails the rank otherwise. */
void rounds_exchange(struct cluster_rank *self, muster_ep *ep, const struct world *world);

/* Creates an exchange for a case; fails the rank if that does not work. */
muster_ep *rounds_create(struct cluster_rank *self, const struct exchange_case *c);

/* After a dispatch's send half, which waits for nobody; but on a device, flat, for the counts of all. */
void rounds_wait_sent(const struct exchange_case *c);

#endif
