// SPDX-License-Identifier: Apache-2.0
/*
 * Placements are agreed by computing them: every rank must get the same table, also one of another version. So they are
 * held against the plain algorithm, which looks at every expert for every slot, bit for bit; and at sizes that it could
 * not reach.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <string.h>

#include "core/mask.h"
#include "muster/placement.h"

enum { MAX_SLOTS = 1024, MAX_EXPERTS = 160, LARGE_RANKS = 128, LARGE_SLOTS = 1024, LARGE_EXPERTS = 65536 };

static uint32_t random_state = 88172645u;

static uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state % limit;
}

static muster_mask random_mask(int ranks)
{
    muster_mask mask = {{0, 0}};
    for (int rank = 0; rank < ranks; rank++)
        if (random_below(3))
            mask = mask_with(mask, rank);
    return mask_empty(mask) ? mask_with(mask, (int)random_below((uint32_t)ranks)) : mask;
}

/* ---------------------------------------------------------------------------------------------- the plain algorithm */

struct plain {
    int experts, ranks, slots;
    muster_mask mask;
    int32_t table[MAX_SLOTS];
    uint8_t changed[MAX_SLOTS];
    int copies[MAX_EXPERTS], loads[MUSTER_MAX_RANKS];
};

static bool plain_holds(const struct plain *p, int rank, int expert)
{
    for (int i = rank * p->slots; i < (rank + 1) * p->slots; i++)
        if (p->table[i] == expert)
            return true;
    return false;
}

static void plain_put(struct plain *p, int slot, int expert)
{
    if (p->table[slot] >= 0)
        p->copies[p->table[slot]]--;
    p->table[slot] = expert;
    p->copies[expert]++;
    p->loads[slot / p->slots]++;
    p->changed[slot] = 1;
}

static int plain_scarcest(const struct plain *p, int rank, int next)
{
    int best = -1;
    bool best_held = true;
    for (int i = 0; i < p->experts; i++) {
        int expert = (next + i) % p->experts;
        bool held = plain_holds(p, rank, expert);
        if (best < 0 || held < best_held || (held == best_held && p->copies[expert] < p->copies[best])) {
            best = expert;
            best_held = held;
        }
    }
    return best;
}

static int plain_fill(struct plain *p, int rank, int next)
{
    for (int slot = rank * p->slots; slot < (rank + 1) * p->slots; slot++)
        if (p->table[slot] < 0) {
            int expert = plain_scarcest(p, rank, next);
            plain_put(p, slot, expert);
            next = (expert + 1) % p->experts;
        }
    return next;
}

static void plain_clear(struct plain *p, int rank)
{
    for (int slot = rank * p->slots; slot < (rank + 1) * p->slots; slot++)
        p->table[slot] = -1;
}

static void plain_begin(struct plain *p)
{
    memset(p->copies, 0, sizeof(p->copies));
    memset(p->loads, 0, sizeof(p->loads));
    memset(p->changed, 0, sizeof(p->changed));
}

static void plain_initial(struct plain *p)
{
    int active = mask_count(p->mask), expert = 0, i = 0, next = 0;
    plain_begin(p);
    for (int rank = 0; rank < p->ranks; rank++)
        plain_clear(p, rank);
    for (int rank = mask_next(p->mask, 0); rank >= 0; rank = mask_next(p->mask, rank + 1), i++)
        for (int slot = 0; slot < p->experts / active + (i < p->experts % active); slot++)
            plain_put(p, rank * p->slots + slot, expert++);
    for (int rank = mask_next(p->mask, 0); rank >= 0; rank = mask_next(p->mask, rank + 1))
        next = plain_fill(p, rank, next);
}

static bool plain_better(const struct plain *p, int a, int b)
{
    bool a_empty = p->table[a] < 0, b_empty = p->table[b] < 0;
    int a_loads = p->loads[a / p->slots], b_loads = p->loads[b / p->slots];
    if (a_empty != b_empty)
        return a_empty;
    if (a_loads != b_loads)
        return a_loads < b_loads;
    return !a_empty && p->copies[p->table[a]] > p->copies[p->table[b]];
}

static int plain_home(const struct plain *p)
{
    int best = -1;
    for (int slot = 0; slot < p->ranks * p->slots; slot++) {
        bool spare = p->table[slot] < 0 || p->copies[p->table[slot]] > 1;
        if (mask_has(p->mask, slot / p->slots) && spare && (best < 0 || plain_better(p, slot, best)))
            best = slot;
    }
    return best;
}

static bool plain_is_empty(const struct plain *p, int rank)
{
    for (int slot = rank * p->slots; slot < (rank + 1) * p->slots; slot++)
        if (p->table[slot] >= 0)
            return false;
    return true;
}

static void plain_repair(struct plain *p)
{
    muster_mask came = {{0, 0}};
    int next = 0;
    plain_begin(p);
    for (int rank = 0; rank < p->ranks; rank++) {
        if (!mask_has(p->mask, rank))
            plain_clear(p, rank);
        else if (plain_is_empty(p, rank))
            came = mask_with(came, rank);
    }
    for (int slot = 0; slot < p->ranks * p->slots; slot++)
        if (p->table[slot] >= 0)
            p->copies[p->table[slot]]++;
    for (int expert = 0; expert < p->experts; expert++)
        if (p->copies[expert] == 0)
            plain_put(p, plain_home(p), expert);
    for (int rank = mask_next(came, 0); rank >= 0; rank = mask_next(came, rank + 1))
        next = plain_fill(p, rank, next);
}

/* The expert's copy on `rank` itself, else its (rank modulo copies)-th one. */
static int32_t plain_route(const struct plain *p, int rank, int expert)
{
    int copies = 0;
    for (int slot = 0; slot < p->ranks * p->slots; slot++) {
        copies += p->table[slot] == expert;
        if (p->table[slot] == expert && slot / p->slots == rank)
            return slot;
    }
    for (int slot = 0, turn = rank % copies;; slot++)
        if (p->table[slot] == expert && turn-- == 0)
            return slot;
}

/* --------------------------------------------------------------------------------------------------- the comparison */

/* Small ones often, and some that fill the arrays; now and then more slots on a rank than there are experts. */
static void choose_sizes(struct plain *p)
{
    p->ranks = 1 + (int)random_below(random_below(4) ? 9 : 64);
    p->slots = 1 + (int)random_below(random_below(4) ? 9 : (uint32_t)(MAX_SLOTS / p->ranks));
    int most = p->ranks * p->slots < MAX_EXPERTS ? p->ranks * p->slots : MAX_EXPERTS;
    p->experts = 1 + (int)random_below((uint32_t)most);
}

static bool has_room(const struct plain *p)
{
    return mask_count(p->mask) * p->slots >= p->experts;
}

static void compare_routes(const struct plain *p)
{
    int32_t routes[MAX_EXPERTS];
    int rank = (int)random_below((uint32_t)p->ranks);
    assert_int_equal(muster_placement_routes(p->experts, p->ranks, p->slots, rank, p->table, routes), MUSTER_OK);
    for (int expert = 0; expert < p->experts; expert++)
        assert_int_equal(routes[expert], plain_route(p, rank, expert));
}

static void compare_initial(struct plain *p)
{
    int32_t table[MAX_SLOTS];
    assert_int_equal(muster_placement_initial(p->experts, p->ranks, p->slots, p->mask, table), MUSTER_OK);
    plain_initial(p);
    assert_memory_equal(table, p->table, (size_t)(p->ranks * p->slots) * sizeof(*table));
}

static void compare_repair(struct plain *p)
{
    int32_t table[MAX_SLOTS];
    uint8_t changed[MAX_SLOTS];
    size_t slots = (size_t)(p->ranks * p->slots);
    memcpy(table, p->table, sizeof(table));
    assert_int_equal(muster_placement_repair(p->experts, p->ranks, p->slots, p->mask, table, changed), MUSTER_OK);
    plain_repair(p);
    assert_memory_equal(table, p->table, slots * sizeof(*table));
    assert_memory_equal(changed, p->changed, slots);
    compare_routes(p);
}

static void initial_is_as_plain(void **state)
{
    (void)state;
    static struct plain p;
    for (int round = 0; round < 1000; round++) {
        choose_sizes(&p);
        p.mask = random_mask(p.ranks);
        if (has_room(&p))
            compare_initial(&p);
    }
}

/* Ranks go and come in a history, each table repaired from the one before. */
static void repair_is_as_plain(void **state)
{
    (void)state;
    static struct plain p;
    for (int round = 0; round < 400; round++) {
        choose_sizes(&p);
        p.mask = mask_first(p.ranks);
        compare_initial(&p);
        for (int change = 0; change < 6; change++) {
            p.mask = random_mask(p.ranks);
            if (has_room(&p))
                compare_repair(&p);
        }
    }
}

/* Tables that no history of ours makes: holes, twins on a rank, one expert nearly everywhere. */
static void repair_of_any_table_is_as_plain(void **state)
{
    (void)state;
    static struct plain p;
    for (int round = 0; round < 1000; round++) {
        choose_sizes(&p);
        p.mask = random_mask(p.ranks);
        if (!has_room(&p))
            continue;
        uint32_t kinds = 1 + random_below((uint32_t)p.experts), holes = random_below(4);
        for (int slot = 0; slot < p.ranks * p.slots; slot++)
            p.table[slot] = random_below(4) < holes ? -1 : (int32_t)random_below(kinds);
        compare_repair(&p);
    }
}

/* ------------------------------------------------------------------------------------------------------ large tables */

static int32_t large[LARGE_RANKS * LARGE_SLOTS], routes[LARGE_EXPERTS], copies[LARGE_EXPERTS];

static void count_large(void)
{
    memset(copies, 0, sizeof(copies));
    for (int slot = 0; slot < LARGE_RANKS * LARGE_SLOTS; slot++)
        if (large[slot] >= 0)
            copies[large[slot]]++;
}

/*
 * Steps in proportion to slots * experts would take hours here. Two copies of each expert; one of each after half of the
 * ranks have gone.
 */
static void large_tables_are_made(void **state)
{
    (void)state;
    muster_mask half = mask_first(LARGE_RANKS / 2);
    assert_int_equal(muster_placement_initial(LARGE_EXPERTS, LARGE_RANKS, LARGE_SLOTS, mask_first(LARGE_RANKS), large),
                     MUSTER_OK);
    count_large();
    for (int expert = 0; expert < LARGE_EXPERTS; expert++)
        assert_int_equal(copies[expert], 2);
    assert_int_equal(muster_placement_repair(LARGE_EXPERTS, LARGE_RANKS, LARGE_SLOTS, half, large, NULL), MUSTER_OK);
    count_large();
    for (int expert = 0; expert < LARGE_EXPERTS; expert++)
        assert_int_equal(copies[expert], 1);
    assert_int_equal(muster_placement_routes(LARGE_EXPERTS, LARGE_RANKS, LARGE_SLOTS, 5, large, routes), MUSTER_OK);
    for (int expert = 0; expert < LARGE_EXPERTS; expert++)
        assert_int_equal(large[routes[expert]], expert);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(initial_is_as_plain),
        cmocka_unit_test(repair_is_as_plain),
        cmocka_unit_test(repair_of_any_table_is_as_plain),
        cmocka_unit_test(large_tables_are_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
