// SPDX-License-Identifier: Apache-2.0
/*
 * Views: which expert is where, and loading what this rank lacks.
 *
 * The placement is a function of the view's mask alone: the initial placement over all ranks of the group, dead or
 * alive, repaired for the mask. A rank that joins later knows no history and needs none: it computes what the members
 * compute. A rank that comes back finds its old slots again. The price: after a second death an expert may have to move
 * that a repair of the repair would have left where it was.
 */
#include <string.h>

#include "core/clock.h"
#include "core/mask.h"
#include "core/trace.h"
#include "state.h"

/* How long to wait for an agreed view before looking whether a newer one is to be adopted. */
enum { WAIT_SLICE_US = 500 };

static muster_status place_experts(struct engine *e, muster_mask mask)
{
    int32_t experts = e->weights.model.num_experts;
    muster_status status =
        muster_placement_initial(experts, e->ranks, e->slots_per_rank, mask_first(e->ranks), e->slot_to_expert);
    if (status == MUSTER_OK)
        status = muster_placement_repair(experts, e->ranks, e->slots_per_rank, mask, e->slot_to_expert, NULL);
    if (status == MUSTER_OK)
        status = muster_placement_routes(experts, e->ranks, e->slots_per_rank, e->rank, e->slot_to_expert,
                                         e->expert_to_slot);
    return status;
}

static void load_slot(struct engine *e, int32_t slot, int32_t expert)
{
    for (int32_t layer = 0; layer < e->weights.model.num_hidden_layers; layer++)
        weights_load_expert(&e->weights, layer, slot, expert);
    e->held[slot] = expert;
}

/* Returns how many experts were loaded. What a slot holds already is never read again. */
static int32_t load_slots(struct engine *e)
{
    const int32_t *wanted = e->slot_to_expert + (size_t)e->rank * (size_t)e->slots_per_rank;
    int32_t loaded = 0;
    for (int32_t slot = 0; slot < e->slots_per_rank; slot++)
        if (wanted[slot] >= 0 && wanted[slot] != e->held[slot]) {
            load_slot(e, slot, wanted[slot]);
            loaded += e->weights.model.num_hidden_layers;
        }
    return loaded;
}

static void load_and_count(struct engine *e, uint32_t epoch)
{
    struct engine_statistics *s = &e->statistics;
    uint64_t begin_ns = clock_ns();
    int32_t loaded = load_slots(e);
    s->epoch = epoch;
    s->last_loaded = loaded;
    s->load_begin_ns = begin_ns;
    s->load_end_ns = clock_ns();
    if (e->open)
        s->experts_loaded += (uint64_t)loaded;
    else
        s->experts_opened += (uint64_t)loaded;
    trace_add(TRACE_LOAD, begin_ns, s->load_end_ns - begin_ns, (uint64_t)loaded);
}

muster_status engine_adopt(struct engine *e)
{
    muster_view view;
    muster_status status = muster_group_view(e->group, &view);
    if (status != MUSTER_OK || view.epoch == e->epoch)
        return status;
    status = place_experts(e, view.mask);
    if (status != MUSTER_OK)
        return status;
    load_and_count(e, view.epoch);
    status = muster_group_ready(e->group, view.epoch);
    if (status == MUSTER_OK)
        e->epoch = view.epoch;
    /* The only argument is the epoch: it is refused when a newer view came while the experts were loaded. */
    return status == MUSTER_ERR_ARGUMENT ? MUSTER_ERR_AGAIN : status;
}

static muster_status adopt_and_wait(struct engine *e, uint64_t timeout_us)
{
    muster_status status = engine_adopt(e);
    return status == MUSTER_OK ? muster_group_wait_ready(e->group, timeout_us) : status;
}

muster_status engine_wait_ready(struct engine *e, uint64_t timeout_us)
{
    uint64_t deadline_ns = clock_ns_after_us(timeout_us);
    uint64_t slice_us = timeout_us < WAIT_SLICE_US ? timeout_us : WAIT_SLICE_US;
    muster_status status = adopt_and_wait(e, slice_us);
    while (status == MUSTER_ERR_AGAIN && clock_ns() < deadline_ns)
        status = adopt_and_wait(e, slice_us);
    return status;
}
