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
    int64_t *scarcity; /* [2 * leaves]: while a rank is filled, how little each expert is wanted; see fill_rank */
    size_t leaves;
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

static void table_close(struct table *t)
{
    free(t->scarcity);
    free(t->copies);
}

/* Allocates all that placing needs, so that nothing can fail once the caller's table is being changed. */
static muster_status table_open(struct table *t)
{
    for (t->leaves = 1; t->leaves < (size_t)t->experts;)
        t->leaves *= 2;
    t->copies = counters(t->experts);
    t->scarcity = malloc(2 * t->leaves * sizeof(*t->scarcity));
    if (t->copies && t->scarcity)
        return MUSTER_OK;
    table_close(t);
    return error_set(MUSTER_ERR_MEMORY, "placement: no memory for %d experts", t->experts);
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
 * The order in which experts are given further slots of a rank: first one that the rank has not got; of those the one
 * with the fewest copies; of those the first from `next` on, cyclically. A tree finds it: leaf [leaves + expert] holds
 * the expert's copies, HELD more if the rank has it; each node above holds the lesser of its two children.
 */
static const int64_t HELD = INT64_C(1) << 32;

static void scarcity_raise(struct table *t, size_t node)
{
    int64_t *least = t->scarcity;
    least[node] = least[2 * node] < least[2 * node + 1] ? least[2 * node] : least[2 * node + 1];
}

static void scarcity_set(struct table *t, int32_t expert, bool held)
{
    size_t node = t->leaves + (size_t)expert;
    t->scarcity[node] = t->copies[expert] + (held ? HELD : 0);
    while (node /= 2)
        scarcity_raise(t, node);
}

static void scarcity_build(struct table *t)
{
    for (size_t i = 0; i < t->leaves; i++)
        t->scarcity[t->leaves + i] = i < (size_t)t->experts ? t->copies[i] : INT64_MAX;
    for (size_t node = t->leaves - 1; node > 0; node--)
        scarcity_raise(t, node);
}

/* The largest subtree that begins where this one ends; the whole tree behind the last. */
static size_t subtree_after(size_t node)
{
    while (node > 1 && node % 2)
        node /= 2;
    return node > 1 ? node + 1 : 1;
}

/* The first leaf from `next` on, cyclically, that holds the least of all. */
static int32_t scarcest(const struct table *t, int32_t next)
{
    const int64_t *least = t->scarcity;
    size_t node = t->leaves + (size_t)next;
    while (node > 1 && least[node] != least[1])
        node = subtree_after(node);
    while (node < t->leaves)
        node = least[2 * node] == least[node] ? 2 * node : 2 * node + 1;
    return (int32_t)(node - t->leaves);
}

static void scarcity_mark(struct table *t, int rank, bool held)
{
    for (int32_t slot = rank * t->slots; slot < (rank + 1) * t->slots; slot++)
        if (t->expert[slot] >= 0)
            scarcity_set(t, t->expert[slot], held);
}

/* Fills the empty slots of one rank with further copies; returns where the round goes on. */
static int32_t fill_rank(struct table *t, int rank, int32_t next)
{
    scarcity_mark(t, rank, true);
    for (int32_t slot = rank * t->slots; slot < (rank + 1) * t->slots; slot++) {
        if (t->expert[slot] >= 0)
            continue;
        int32_t expert = scarcest(t, next);
        put(t, slot, expert);
        scarcity_set(t, expert, true);
        next = (expert + 1) % t->experts;
    }
    scarcity_mark(t, rank, false);
    return next;
}

static void fill_ranks(struct table *t, muster_mask ranks)
{
    int32_t next = 0;
    scarcity_build(t);
    for (int rank = mask_next(ranks, 0); rank >= 0; rank = mask_next(ranks, rank + 1))
        next = fill_rank(t, rank, next);
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
    struct table t = {
        .experts = experts, .ranks = ranks, .slots = slots_per_rank, .mask = mask, .expert = slot_to_expert};
    status = table_open(&t);
    if (status != MUSTER_OK)
        return status;
    for (int rank = 0; rank < ranks; rank++)
        clear_slots(&t, rank);
    place_contiguous(&t);
    fill_ranks(&t, mask);
    table_close(&t);
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
 * The best slot of each rank for an expert without a copy: its first empty one, else that of the spare copy of which
 * there are most. Copies only become fewer here, so what was found before is a bound for what would be found now.
 */
struct homes {
    int32_t slot[MUSTER_MAX_RANKS]; /* -1: the rank has none left */
    int32_t copies[MUSTER_MAX_RANKS]; /* of the expert in it, when it was found; INT32_MAX for an empty slot */
};

static int32_t spare_copies(const struct table *t, int32_t slot)
{
    return t->expert[slot] < 0 ? INT32_MAX : t->copies[t->expert[slot]];
}

static void find_home(const struct table *t, int rank, struct homes *homes)
{
    homes->slot[rank] = -1;
    homes->copies[rank] = 1; /* an expert's only copy stays */
    for (int32_t slot = rank * t->slots; slot < (rank + 1) * t->slots; slot++)
        if (spare_copies(t, slot) > homes->copies[rank]) {
            homes->slot[rank] = slot;
            homes->copies[rank] = spare_copies(t, slot);
        }
}

/* An empty slot before a spare copy; then the rank that has fewest to load so far, so that the loading is shared. */
static bool better_rank(const struct table *t, const struct homes *homes, int a, int b)
{
    bool a_empty = homes->copies[a] == INT32_MAX, b_empty = homes->copies[b] == INT32_MAX;
    if (a_empty != b_empty)
        return a_empty;
    if (t->loads[a] != t->loads[b])
        return t->loads[a] < t->loads[b];
    return homes->copies[a] > homes->copies[b];
}

/* There always is one: the slots of the mask outnumber the experts that have a copy. */
static int best_rank(const struct table *t, const struct homes *homes)
{
    int best = -1;
    for (int rank = mask_next(t->mask, 0); rank >= 0; rank = mask_next(t->mask, rank + 1))
        if (homes->slot[rank] >= 0 && (best < 0 || better_rank(t, homes, rank, best)))
            best = rank;
    return best;
}

static int32_t home_for_orphan(const struct table *t, struct homes *homes)
{
    for (;;) {
        int rank = best_rank(t, homes);
        if (spare_copies(t, homes->slot[rank]) == homes->copies[rank])
            return homes->slot[rank];
        find_home(t, rank, homes);
    }
}

static void place_orphans(struct table *t)
{
    struct homes homes;
    for (int rank = mask_next(t->mask, 0); rank >= 0; rank = mask_next(t->mask, rank + 1))
        find_home(t, rank, &homes);
    for (int32_t expert = 0; expert < t->experts; expert++) {
        if (t->copies[expert] > 0)
            continue;
        int32_t slot = home_for_orphan(t, &homes);
        put(t, slot, expert);
        find_home(t, slot / t->slots, &homes);
    }
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
    place_orphans(t);
    fill_ranks(t, came);
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
    struct table t = {.experts = experts,
                      .ranks = ranks,
                      .slots = slots_per_rank,
                      .mask = mask,
                      .expert = slot_to_expert,
                      .changed = changed};
    status = table_open(&t);
    if (status != MUSTER_OK)
        return status;
    if (changed)
        memset(changed, 0, (size_t)ranks * (size_t)slots_per_rank);
    repair(&t);
    table_close(&t);
    return MUSTER_OK;
}

/* ---------------------------------------------------------------------------------------------------------- routes */

/* The lowest slot of `rank` itself that holds each expert, -1 for those that it has not got. */
static void pick_own(const struct table *t, int32_t rank, int32_t *expert_to_slot)
{
    for (int32_t expert = 0; expert < t->experts; expert++)
        expert_to_slot[expert] = -1;
    for (int32_t slot = (rank + 1) * t->slots - 1; slot >= rank * t->slots; slot--)
        if (t->expert[slot] >= 0)
            expert_to_slot[t->expert[slot]] = slot;
}

/* Walks the table once; turn[expert] counts down to the copy that this rank is sent to. */
static void pick_routes(const struct table *t, int32_t rank, int32_t *turn, int32_t *expert_to_slot)
{
    pick_own(t, rank, expert_to_slot);
    for (int32_t expert = 0; expert < t->experts; expert++)
        turn[expert] = rank % t->copies[expert];
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
