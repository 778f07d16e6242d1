// SPDX-License-Identifier: Apache-2.0
/*
 * A tool with a fault in it, on purpose: after a death its ranks go on without the dead rank's experts. Routes to them
 * become "no route", so that they add nothing to the sums, as in systems that mask dead ranks out and carry on.
 * `muster demo` built with this in place of engine/adopt.c has to say that its output is not identical.
 */
#include "core/mask.h"
#include "muster/placement.h"
#include "state.h"

static muster_mask dropping_alive;

/* Every expert stays where it was; nobody takes over what the dead held. */
static muster_status dropping_repair(int32_t experts, int32_t ranks, int32_t slots_per_rank, muster_mask mask,
                                     int32_t *slot_to_expert, uint8_t *changed)
{
    (void)experts, (void)ranks, (void)slots_per_rank, (void)slot_to_expert, (void)changed;
    dropping_alive = mask;
    return MUSTER_OK;
}

static muster_status dropping_routes(int32_t experts, int32_t ranks, int32_t slots_per_rank, int32_t rank,
                                     const int32_t *slot_to_expert, int32_t *expert_to_slot)
{
    muster_status status =
        muster_placement_routes(experts, ranks, slots_per_rank, rank, slot_to_expert, expert_to_slot);
    for (int32_t i = 0; i < experts && status == MUSTER_OK; i++)
        if (!mask_has(dropping_alive, expert_to_slot[i] / slots_per_rank))
            expert_to_slot[i] = -1;
    return status;
}

#define muster_placement_repair dropping_repair
#define muster_placement_routes dropping_routes
#include "../../../engine/adopt.c"
