// SPDX-License-Identifier: Apache-2.0
/*
 * One step of a rank in a campaign: four pairs on two exchanges, one expert-major and exact, one rank-major and reduced.
 * Each has its turn twice, so that a step also overwrites what it has sent itself.
 */
#ifndef TOOLS_CHAOS_STEP_H
#define TOOLS_CHAOS_STEP_H

#include "chaos_device.h"
#include "chaos_load.h"
#include "muster/muster.h"

enum { CHAOS_EXCHANGES = 2, CHAOS_PAIRS = 4 };

struct chaos_array {
    muster_tensor tensor;
    int64_t shape[3];
};

struct chaos_pair {
    bool by_rank; /* rank-major, otherwise expert-major */
    int32_t exchange;
    struct chaos_array hidden, topk_slots, topk_weights, out;
    struct chaos_array received, counts, slots, weights; /* the last two in rank-major */
    muster_ep_dispatch_args dispatch;
    muster_ep_combine_args combine;
};

struct chaos_step {
    const struct chaos_shape *shape;
    const struct chaos_device *device;
    int32_t rank;
    muster_group *group;
    muster_ep *ep[CHAOS_EXCHANGES];
    void *graph; /* of a whole step; NULL on the CPU */
    struct chaos_pair pair[CHAOS_PAIRS];
    struct chaos_load load;
    /* On the host: rows on their way in or out, what they should be, and whose they are. */
    unsigned char *rows, *wanted;
    struct chaos_origin *origins;
};

/* What a victim does inside a step, before and after each pair's dispatch. */
struct chaos_trap {
    void (*before_dispatch)(void *context, int32_t pair);
    void (*after_dispatch)(void *context, int32_t pair);
    void *context;
};

/* The exchanges, for the supervisor and for muster_group_config.memory_bytes. */
muster_ep_config chaos_step_config(const struct chaos_shape *shape, int32_t exchange);

/* Takes all memory; before there is a group. */
muster_status chaos_step_open(struct chaos_step *step, const struct chaos_shape *shape,
                              const struct chaos_device *device, int32_t rank);

/* Makes the exchanges, and the graph. */
muster_status chaos_step_join(struct chaos_step *step, muster_group *group);

void chaos_step_close(struct chaos_step *step);

/* Brings the step's tokens to the device. `when.pair` is of no account. */
muster_status chaos_step_load(struct chaos_step *step, const struct chaos_when *when);

/*
 * Begins and ends the step, and enqueues what lies in between; on the CPU that is done when this returns. `trap` may be
 * NULL. Errors: those of the library's calls, but not those that only say that the step is void.
 */
muster_status chaos_step_enqueue(struct chaos_step *step, const struct chaos_trap *trap);

/* The same by way of the graph. */
muster_status chaos_step_replay(struct chaos_step *step);

/* Adds the number of bytes that are not what they should be after a good step. */
muster_status chaos_step_check(struct chaos_step *step, const struct chaos_when *when, uint64_t *wrong);

#endif
