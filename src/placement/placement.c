// SPDX-License-Identifier: Apache-2.0
/*
 * Which slot holds which expert. Every rank computes it for itself, so every choice has a fixed order and nothing is
 * drawn: the same inputs give the same table everywhere.
 */
#include "muster/placement.h"

#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/mask.h"

/* One layer's table, and what is counted along the way. */
struct table {
    int32_t experts, ranks, slots;
    muster_mask mask;
    int32_t *expert; /* [ranks * slots]: the caller's slot_to_expert */
    uint8_t *changed; /* [ranks * slots], or NULL */
    int32_t *copies; /* [experts] */
    int32_t loads[MUSTER_MAX_RANKS]; /* slots of each rank that were given another expert */
};

static muster_status check_sizes(int32_t experts, int32_t ranks, int32_t slots)
{
    if (experts < 1)
        return error_set(MUSTER_ERR_ARGUMENT, "experts = %d, must be at least 1", experts);
    if (ranks < 1 || ranks > MUSTER_MAX_RANKS)
        return error_set(MUSTER_ERR_ARGUMENT, "ranks = %d, must be 1 to %d", ranks, MUSTER_MAX_RANKS);
    if (slots < 1 || slots > INT32_MAX / ranks)
        return error_set(MUSTER_ERR_ARGUMENT, "slots_per_rank = %d, must be 1 to %d", slots, INT32_MAX / ranks);
    return MUSTER_OK;
}

static muster_status check_mask(int32_t experts, int32_t ranks, int32_t slots, muster_mask mask)
{
    int stranger = mask_next(mask_minus(mask, mask_first(ranks)), 0);
    if (stranger >= 0)
        return error_set(MUSTER_ERR_ARGUMENT, "mask holds rank %d, ranks go to %d", stranger, ranks - 1);
    if (mask_empty(mask))
        return error_set(MUSTER_ERR_ARGUMENT, "mask is empty, must hold at least one rank");
    if ((int64_t)mask_count(mask) * slots < experts)
        return error_set(MUSTER_ERR_CAPACITY, "%d active ranks with %d slots each cannot hold %d experts",
                         mask_count(mask), slots, experts);
    return MUSTER_OK;
}

static muster_status check_entries(int32_t experts, int32_t count, const int32_t *slot_to_expert)
{
    if (!slot_to_expert)
        return error_set(MUSTER_ERR_ARGUMENT, "slot_to_expert: must not be NULL");
    for (int32_t i = 0; i < count; i++)
        if (slot_to_expert[i] < -1 || slot_to_expert[i] >= experts)
            return error_set(MUSTER_ERR_ARGUMENT, "slot_to_expert[%d] = %d, must be -1 to %d", i, slot_to_expert[i],
                             experts - 1);
    return MUSTER_OK;
}

static int32_t *counters(int32_t count)
{
    int32_t *made = calloc((size_t)count, sizeof(*made));
    if (!made)
        error_set(MUSTER_ERR_MEMORY, "placement: no memory for %d counters", count);
    return made;
}

static bool rank_holds(const struct table *t, int rank, int32_t expert)
{
    const int32_t *slot = t->expert + (size_t)rank * (size_t)t->slots;
    for (int32_t i = 0; i < t->slots; i++)
        if (slot[i] == expert)
            return true;
    return false;
}

static void put(struct table *t, int32_t slot, int32_t expert)
{
    if (t->expert[slot] >= 0)
        t->copies[t->expert[slot]]--;
    t->expert[slot] = expert;
    t->copies[expert]++;
    t->loads[slot / t->slots]++;
    if (t->changed)
        t->changed[slot] = 1;
}

/*
 * The expert that a further slot of `rank` should hold: one that the rank has not got, if there is one; of those the
 * one with the fewest copies; of those the first from `next` on, cyclically.
 */
static int32_t scarcest(const struct table *t, int rank, int32_t next)
{
    int32_t best = -1;
    bool best_held = true;
    for (int32_t i = 0; i < t->experts; i++) {
        int32_t expert = (int32_t)(((int64_t)next + i) % t->experts);
        bool held = rank_holds(t, rank, expert);
        if (best < 0 || held < best_held || (held == best_held && t->copies[expert] < t->copies[best])) {
            best = expert;
            best_held = held;
        }
    }
    return best;
}

/* Fills the empty slots of one rank with further copies; returns where the round goes on. */
static int32_t fill_rank(struct table *t, int rank, int32_t next)
{
    for (int32_t slot = rank * t->slots; slot < (rank + 1) * t->slots; slot++) {
        if (t->expert[slot] >= 0)
            continue;
        int32_t expert = scarcest(t, rank, next);
        put(t, slot, expert);
        next = (expert + 1) % t->experts;
    }
    return next;
}

static void clear_slots(struct table *t, int rank)
{
    for (int32_t slot = rank * t->slots; slot < (rank + 1) * t->slots; slot++)
        t->expert[slot] = -1;
}

/* --------------------------------------------------------------------------------------------------------- initial */

static void place_contiguous(struct table *t)
{
    int32_t active = mask_count(t->mask), next = 0, i = 0;
    for (int rank = mask_next(t->mask, 0); rank >= 0; rank = mask_next(t->mask, rank + 1), i++) {
        int32_t share = t->experts / active + (i < t->experts % active);
        for (int32_t slot = 0; slot < share; slot++)
            put(t, rank * t->slots + slot, next++);
    }
}

muster_status muster_placement_initial(int32_t experts, int32_t ranks, int32_t slots_per_rank, muster_mask mask,
                                       int32_t *slot_to_expert)
{
    muster_status status = check_sizes(experts, ranks, slots_per_rank);
    if (status == MUSTER_OK)
        status = check_mask(experts, ranks, slots_per_rank, mask);
    if (status != MUSTER_OK)
        return status;
    if (!slot_to_expert)
        return error_set(MUSTER_ERR_ARGUMENT, "slot_to_expert: must not be NULL");
    struct table t = {experts, ranks, slots_per_rank, mask, slot_to_expert, NULL, counters(experts), {0}};
    if (!t.copies)
        return MUSTER_ERR_MEMORY;
    for (int rank = 0; rank < ranks; rank++)
        clear_slots(&t, rank);
    place_contiguous(&t);
    int32_t next = 0;
    for (int rank = mask_next(mask, 0); rank >= 0; rank = mask_next(mask, rank + 1))
        next = fill_rank(&t, rank, next);
    free(t.copies);
    return MUSTER_OK;
}

/* ---------------------------------------------------------------------------------------------------------- repair */

static bool rank_is_empty(const struct table *t, int rank)
{
    for (int32_t slot = rank * t->slots; slot < (rank + 1) * t->slots; slot++)
        if (t->expert[slot] >= 0)
            return false;
    return true;
}

static void count_copies(struct table *t)
{
    for (int32_t slot = 0; slot < t->ranks * t->slots; slot++)
        if (t->expert[slot] >= 0)
            t->copies[t->expert[slot]]++;
}

/*
 * Whether slot a is the better one to give to an expert without a copy: an empty one before a spare copy; then one of
 * the rank that has fewest to load so far, so that the loading is shared; then the spare of which there are most.
 */
static bool better_home(const struct table *t, int32_t a, int32_t b)
{
    bool a_empty = t->expert[a] < 0, b_empty = t->expert[b] < 0;
    int32_t a_loads = t->loads[a / t->slots], b_loads = t->loads[b / t->slots];
    if (a_empty != b_empty)
        return a_empty;
    if (a_loads != b_loads)
        return a_loads < b_loads;
    return !a_empty && t->copies[t->expert[a]] > t->copies[t->expert[b]];
}

/* There always is one: the slots of the mask outnumber the experts that have a copy. */
static int32_t home_for_orphan(const struct table *t)
{
    int32_t best = -1;
    for (int rank = mask_next(t->mask, 0); rank >= 0; rank = mask_next(t->mask, rank + 1))
        for (int32_t slot = rank * t->slots; slot < (rank + 1) * t->slots; slot++) {
            bool spare = t->expert[slot] < 0 || t->copies[t->expert[slot]] > 1;
            if (spare && (best < 0 || better_home(t, slot, best)))
                best = slot;
        }
    return best;
}

static void repair(struct table *t)
{
    muster_mask came = {{0, 0}};
    for (int rank = 0; rank < t->ranks; rank++) {
        if (!mask_has(t->mask, rank))
            clear_slots(t, rank);
        else if (rank_is_empty(t, rank))
            came = mask_with(came, rank);
    }
    count_copies(t);
    for (int32_t expert = 0; expert < t->experts; expert++)
        if (t->copies[expert] == 0)
            put(t, home_for_orphan(t), expert);
    int32_t next = 0;
    for (int rank = mask_next(came, 0); rank >= 0; rank = mask_next(came, rank + 1))
        next = fill_rank(t, rank, next);
}

muster_status muster_placement_repair(int32_t experts, int32_t ranks, int32_t slots_per_rank, muster_mask mask,
                                      int32_t *slot_to_expert, uint8_t *changed)
{
    muster_status status = check_sizes(experts, ranks, slots_per_rank);
    if (status == MUSTER_OK)
        status = check_mask(experts, ranks, slots_per_rank, mask);
    if (status == MUSTER_OK)
        status = check_entries(experts, ranks * slots_per_rank, slot_to_expert);
    if (status != MUSTER_OK)
        return status;
    struct table t = {experts, ranks, slots_per_rank, mask, slot_to_expert, changed, counters(experts), {0}};
    if (!t.copies)
        return MUSTER_ERR_MEMORY;
    if (changed)
        memset(changed, 0, (size_t)ranks * (size_t)slots_per_rank);
    repair(&t);
    free(t.copies);
    return MUSTER_OK;
}

/* ---------------------------------------------------------------------------------------------------------- routes */

static int32_t own_copy(const struct table *t, int32_t rank, int32_t expert)
{
    for (int32_t slot = rank * t->slots; slot < (rank + 1) * t->slots; slot++)
        if (t->expert[slot] == expert)
            return slot;
    return -1;
}

/* Walks the table once; turn[expert] counts down to the copy that this rank is sent to. */
static void pick_routes(const struct table *t, int32_t rank, int32_t *turn, int32_t *expert_to_slot)
{
    for (int32_t expert = 0; expert < t->experts; expert++) {
        turn[expert] = rank % t->copies[expert];
        expert_to_slot[expert] = own_copy(t, rank, expert);
    }
    for (int32_t slot = 0; slot < t->ranks * t->slots; slot++) {
        int32_t expert = t->expert[slot];
        if (expert >= 0 && expert_to_slot[expert] < 0 && turn[expert]-- == 0)
            expert_to_slot[expert] = slot;
    }
}

static muster_status check_routes(int32_t ranks, int32_t rank, const int32_t *expert_to_slot)
{
    if (rank < 0 || rank >= ranks)
        return error_set(MUSTER_ERR_ARGUMENT, "rank = %d, must be 0 to %d", rank, ranks - 1);
    if (!expert_to_slot)
        return error_set(MUSTER_ERR_ARGUMENT, "expert_to_slot: must not be NULL");
    return MUSTER_OK;
}

static muster_status check_copies(const struct table *t)
{
    for (int32_t expert = 0; expert < t->experts; expert++)
        if (t->copies[expert] == 0)
            return error_set(MUSTER_ERR_CAPACITY, "expert %d has no slot", expert);
    return MUSTER_OK;
}

muster_status muster_placement_routes(int32_t experts, int32_t ranks, int32_t slots_per_rank, int32_t rank,
                                      const int32_t *slot_to_expert, int32_t *expert_to_slot)
{
    muster_status status = check_sizes(experts, ranks, slots_per_rank);
    if (status == MUSTER_OK)
        status = check_entries(experts, ranks * slots_per_rank, slot_to_expert);
    if (status == MUSTER_OK)
        status = check_routes(ranks, rank, expert_to_slot);
    if (status != MUSTER_OK)
        return status;
    struct table t = {.experts = experts, .ranks = ranks, .slots = slots_per_rank};
    int32_t *turn = counters(experts);
    t.expert = (int32_t *)slot_to_expert; /* only read */
    t.copies = turn ? counters(experts) : NULL;
    status = t.copies ? MUSTER_OK : MUSTER_ERR_MEMORY;
    if (status == MUSTER_OK) {
        count_copies(&t);
        status = check_copies(&t);
    }
    if (status == MUSTER_OK)
        pick_routes(&t, rank, turn, expert_to_slot);
    free(t.copies);
    free(turn);
    return status;
}
