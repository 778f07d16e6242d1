// SPDX-License-Identifier: Apache-2.0
/* Placement: small tables by hand, and properties that must hold for every table, over a sweep and random histories. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "core/mask.h"
#include "muster/placement.h"

enum { MAX_SLOTS = 512, MAX_EXPERTS = 64, UNTOUCHED = -77 };

static uint32_t random_state = 2463534242u;

static uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state % limit;
}

static muster_mask mask_of(uint64_t bits)
{
    return (muster_mask){{bits, 0}};
}

static int copies_of(const int32_t *table, int slots, int32_t expert)
{
    int copies = 0;
    for (int i = 0; i < slots; i++)
        copies += table[i] == expert;
    return copies;
}

static void assert_table(const int32_t *table, const int32_t *expected, size_t count)
{
    for (size_t i = 0; i < count; i++)
        assert_int_equal(table[i], expected[i]);
}

/* ---------------------------------------------------------------------------------------------------------- initial */

static void initial_is_contiguous(void **state)
{
    (void)state;
    int32_t table[12];
    const int32_t even[] = {0, 1, 2, 3, 4, 5};
    assert_int_equal(muster_placement_initial(6, 3, 2, mask_of(7), table), MUSTER_OK);
    assert_table(table, even, 6);
    const int32_t uneven[] = {0, 1, 2, 3, 4, 0, 5, 6, 1}; /* 3 + 2 + 2, then one further copy each of 0 and 1 */
    assert_int_equal(muster_placement_initial(7, 3, 3, mask_of(7), table), MUSTER_OK);
    assert_table(table, uneven, 9);
    const int32_t absent[] = {0, 1, -1, -1, 2, 3};
    assert_int_equal(muster_placement_initial(4, 3, 2, mask_of(5), table), MUSTER_OK);
    assert_table(table, absent, 6);
}

/* What every table must be: complete, empty outside the mask, and free of avoidable twins. */
static void assert_sound(const int32_t *table, int experts, int ranks, int slots, muster_mask mask)
{
    for (int e = 0; e < experts; e++)
        assert_true(copies_of(table, ranks * slots, e) >= 1);
    for (int r = 0; r < ranks; r++)
        for (int i = r * slots; i < (r + 1) * slots; i++)
            if (!mask_has(mask, r))
                assert_int_equal(table[i], -1);
}

static void assert_spread(const int32_t *table, int experts, int ranks, int slots, muster_mask mask)
{
    int least = MAX_SLOTS, most = 0;
    for (int e = 0; e < experts; e++) {
        int copies = copies_of(table, ranks * slots, e);
        least = copies < least ? copies : least;
        most = copies > most ? copies : most;
    }
    for (int r = 0; r < ranks; r++)
        for (int i = 0; mask_has(mask, r) && i < slots; i++)
            assert_true(slots > experts || copies_of(table + r * slots, slots, table[r * slots + i]) == 1);
    assert_true(slots > experts || most - least <= 2);
}

static void initial_tables_are_sound(void **state)
{
    (void)state;
    int32_t table[MAX_SLOTS], again[MAX_SLOTS];
    for (int ranks = 1; ranks <= 8; ranks++)
        for (int slots = 1; slots <= 9; slots++)
            for (int experts = 1; experts <= MAX_EXPERTS; experts++) {
                muster_mask mask = mask_of(1 + random_below((1u << ranks) - 1));
                muster_status status = muster_placement_initial(experts, ranks, slots, mask, table);
                if (mask_count(mask) * slots < experts) {
                    assert_int_equal(status, MUSTER_ERR_CAPACITY);
                    continue;
                }
                assert_int_equal(status, MUSTER_OK);
                assert_sound(table, experts, ranks, slots, mask);
                assert_spread(table, experts, ranks, slots, mask);
                for (int i = 0; i < ranks * slots; i++)
                    assert_true(!mask_has(mask, i / slots) || table[i] >= 0);
                assert_int_equal(muster_placement_initial(experts, ranks, slots, mask, again), MUSTER_OK);
                assert_memory_equal(table, again, (size_t)(ranks * slots) * sizeof(int32_t));
            }
}

/* ----------------------------------------------------------------------------------------------------------- repair */

static void repair_moves_only_what_it_must(void **state)
{
    (void)state;
    uint8_t changed[12];
    int32_t table[] = {0, 1, 4, 2, 3, 5, 4, 5, 0, 1, 2, 3}; /* 6 experts, two copies each, 3 slots on 4 ranks */
    const int32_t two_left[] = {0, 1, 4, 2, 3, 5, -1, -1, -1, 1, 2, 3};
    const uint8_t none[12] = {0};
    assert_int_equal(muster_placement_repair(6, 4, 3, mask_of(11), table, changed), MUSTER_OK);
    assert_table(table, two_left, 12); /* every expert still has a copy */
    assert_memory_equal(changed, none, 12);
    /* 0 and 4 are lost; a twin of 2 and one of 3 make way, on different ranks, so that both load one. */
    const int32_t one_each[] = {-1, -1, -1, 0, 3, 5, -1, -1, -1, 1, 2, 4};
    const uint8_t loaded[12] = {[3] = 1, [11] = 1};
    assert_int_equal(muster_placement_repair(6, 4, 3, mask_of(10), table, changed), MUSTER_OK);
    assert_table(table, one_each, 12);
    assert_memory_equal(changed, loaded, 12);
}

static void newcomers_get_the_scarcest(void **state)
{
    (void)state;
    uint8_t changed[6];
    int32_t table[] = {0, 1, 0, 2, -1, -1};
    const int32_t filled[] = {0, 1, 0, 2, 1, 2};
    const uint8_t loaded[] = {0, 0, 0, 0, 1, 1};
    assert_int_equal(muster_placement_repair(3, 3, 2, mask_of(7), table, changed), MUSTER_OK);
    assert_table(table, filled, 6);
    assert_memory_equal(changed, loaded, 6);
}

static void check_repair(const int32_t *before, const int32_t *after, const uint8_t *changed, int experts, int ranks,
                         int slots, muster_mask mask)
{
    assert_sound(after, experts, ranks, slots, mask);
    for (int r = 0; r < ranks; r++) {
        bool came = mask_has(mask, r);
        for (int i = r * slots; i < (r + 1) * slots; i++)
            came = came && before[i] < 0;
        for (int i = r * slots; i < (r + 1) * slots && mask_has(mask, r); i++) {
            assert_int_equal(changed[i], after[i] != before[i]);
            assert_true(!came || after[i] >= 0);
            if (!changed[i] || came)
                continue;
            /* An expert that had lost its last copy took an empty slot, or that of a copy which was not the last. */
            int survivors = 0;
            for (int j = 0; j < ranks * slots; j++)
                survivors += mask_has(mask, j / slots) && before[j] == after[i];
            assert_int_equal(survivors, 0);
            assert_true(before[i] < 0 || copies_of(after, ranks * slots, before[i]) >= 1);
        }
    }
}

static void repairs_keep_every_expert(void **state)
{
    (void)state;
    int32_t table[MAX_SLOTS], before[MAX_SLOTS];
    uint8_t changed[MAX_SLOTS];
    for (int round = 0; round < 2000; round++) {
        int ranks = 2 + (int)random_below(7), slots = 1 + (int)random_below(8);
        int experts = 1 + (int)random_below((uint32_t)(ranks * slots < MAX_EXPERTS ? ranks * slots : MAX_EXPERTS));
        assert_int_equal(muster_placement_initial(experts, ranks, slots, mask_first(ranks), table), MUSTER_OK);
        for (int change = 0; change < 6; change++) {
            muster_mask mask = mask_of(1 + random_below((1u << ranks) - 1));
            memcpy(before, table, sizeof(before));
            muster_status status = muster_placement_repair(experts, ranks, slots, mask, table, changed);
            if (mask_count(mask) * slots < experts) {
                assert_int_equal(status, MUSTER_ERR_CAPACITY);
                assert_memory_equal(before, table, (size_t)(ranks * slots) * sizeof(int32_t));
                continue;
            }
            assert_int_equal(status, MUSTER_OK);
            check_repair(before, table, changed, experts, ranks, slots, mask);
        }
    }
}

/* ----------------------------------------------------------------------------------------------------------- routes */

static void routes_prefer_home_and_spread(void **state)
{
    (void)state;
    const int32_t table[] = {0, 1, 0, 2, 0, 3}; /* 3 ranks with 2 slots */
    int32_t routes[4];
    for (int32_t rank = 0; rank < 3; rank++) {
        assert_int_equal(muster_placement_routes(4, 3, 2, rank, table, routes), MUSTER_OK);
        assert_int_equal(routes[0], rank * 2);
        assert_int_equal(routes[1], 1);
        assert_int_equal(routes[2], 3);
        assert_int_equal(routes[3], 5);
    }
    const int32_t twins[] = {0, 0, -1, -1, -1, -1}; /* 6 ranks with 1 slot; ranks 2 to 5 take turns */
    for (int32_t rank = 0; rank < 6; rank++) {
        assert_int_equal(muster_placement_routes(1, 6, 1, rank, twins, routes), MUSTER_OK);
        assert_int_equal(routes[0], rank < 2 ? rank : rank % 2);
    }
}

/* ----------------------------------------------------------------------------------------------------------- errors */

static void errors_touch_nothing(void **state)
{
    (void)state;
    int32_t table[4] = {UNTOUCHED, UNTOUCHED, UNTOUCHED, UNTOUCHED};
    uint8_t changed[4] = {9, 9, 9, 9};
    const struct {
        int32_t experts, ranks, slots;
        uint64_t mask;
        muster_status status;
        const char *name;
    } bad[] = {
        {0, 2, 2, 3, MUSTER_ERR_ARGUMENT, "experts"},
        {2, 0, 2, 1, MUSTER_ERR_ARGUMENT, "ranks"},
        {2, 129, 2, 1, MUSTER_ERR_ARGUMENT, "ranks"},
        {2, 2, 0, 3, MUSTER_ERR_ARGUMENT, "slots_per_rank"},
        {2, 2, INT32_MAX, 3, MUSTER_ERR_ARGUMENT, "slots_per_rank"},
        {2, 2, 2, 0, MUSTER_ERR_ARGUMENT, "mask"},
        {2, 2, 2, 4, MUSTER_ERR_ARGUMENT, "mask"},
        {3, 2, 2, 1, MUSTER_ERR_CAPACITY, "experts"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        muster_mask mask = mask_of(bad[i].mask);
        assert_int_equal(muster_placement_initial(bad[i].experts, bad[i].ranks, bad[i].slots, mask, table),
                         bad[i].status);
        assert_non_null(strstr(muster_last_error(), bad[i].name));
        assert_int_equal(muster_placement_repair(bad[i].experts, bad[i].ranks, bad[i].slots, mask, table, changed),
                         bad[i].status);
        assert_int_equal(table[0], UNTOUCHED);
        assert_int_equal(changed[0], 9);
    }
    assert_int_equal(muster_placement_initial(2, 2, 2, mask_of(3), NULL), MUSTER_ERR_ARGUMENT);
    assert_int_equal(muster_placement_repair(2, 2, 2, mask_of(3), table, changed), MUSTER_ERR_ARGUMENT);
    assert_non_null(strstr(muster_last_error(), "slot_to_expert[0] = -77"));
    assert_int_equal(muster_placement_routes(2, 2, 2, 0, table, table), MUSTER_ERR_ARGUMENT);
}

static void routes_refuse_what_has_no_slot(void **state)
{
    (void)state;
    const int32_t table[] = {0, -1};
    int32_t routes[2] = {UNTOUCHED, UNTOUCHED};
    assert_int_equal(muster_placement_routes(2, 2, 1, 0, table, routes), MUSTER_ERR_CAPACITY);
    assert_non_null(strstr(muster_last_error(), "expert 1"));
    assert_int_equal(muster_placement_routes(1, 2, 1, 2, table, routes), MUSTER_ERR_ARGUMENT);
    assert_int_equal(muster_placement_routes(1, 2, 1, -1, table, routes), MUSTER_ERR_ARGUMENT);
    assert_int_equal(muster_placement_routes(1, 2, 1, 0, table, NULL), MUSTER_ERR_ARGUMENT);
    assert_int_equal(routes[0], UNTOUCHED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(initial_is_contiguous),          cmocka_unit_test(initial_tables_are_sound),
        cmocka_unit_test(repair_moves_only_what_it_must), cmocka_unit_test(newcomers_get_the_scarcest),
        cmocka_unit_test(repairs_keep_every_expert),      cmocka_unit_test(routes_prefer_home_and_spread),
        cmocka_unit_test(errors_touch_nothing),           cmocka_unit_test(routes_refuse_what_has_no_slot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
