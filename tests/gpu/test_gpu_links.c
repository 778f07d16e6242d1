// SPDX-License-Identifier: Apache-2.0
/*
 * What docs/design.md says of flags and rows (X5), on every link of this host. MUSTER_TEST_ROUNDS=N: so many rows for each
 * pair of blocks (default 5000), when a link is to be tried for longer.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "gpu/links.h"
#include "kernels/runtime.h"

enum { ROUNDS = 5000 };

static const struct runtime *run;

static uint32_t wanted_rounds(void)
{
    const char *text = getenv("MUSTER_TEST_ROUNDS");
    unsigned long rounds = text ? strtoul(text, NULL, 10) : ROUNDS;
    return rounds >= 1 && rounds <= UINT32_MAX ? (uint32_t)rounds : ROUNDS;
}

static struct links_found found_between(int one, int other, enum links_way way)
{
    struct links_found found;
    const char *error = links_try(one, other, way, wanted_rounds(), &found);
    if (error)
        fail_msg("GPU %d and %d: %s", one, other, error);
    if (found.late)
        fail_msg("GPU %d and %d: a flag did not come", one, other);
    printf("GPU %d and %d: %llu of %llu values were read too early\n", one, other, found.wrong, found.checked);
    return found;
}

/* Calls check(one, other) for every two devices that reach each other; for a single one, with itself. */
static void between_all(void (*check)(int one, int other))
{
    int count = run->count();
    if (count == 1)
        check(0, 0);
    for (int one = 0; one < count; one++)
        for (int other = one + 1; other < count; other++)
            if (links_exist(one, other))
                check(one, other);
            else
                printf("GPU %d and %d cannot map each other's memory\n", one, other);
}

static void check_stores(int one, int other)
{
    struct links_found found = found_between(one, other, LINKS_STORES);
    assert_true(found.checked > 0);
    assert_true(found.wrong == 0);
}

static void check_engine(int one, int other)
{
    struct links_found found = found_between(one, other, LINKS_ENGINE);
    assert_true(found.checked > 0);
    assert_true(found.wrong == 0);
}

static void test_a_release_comes_behind_the_stores_of_its_block(void **state)
{
    (void)state;
    between_all(check_stores);
}

static void test_a_fenced_flag_comes_behind_the_row_that_another_warp_had_stored(void **state)
{
    (void)state;
    between_all(check_engine);
}

/* Nothing is promised here. It shows that these tests would see a row that comes too late, on links where some do. */
static void try_unfenced(int one, int other)
{
    found_between(one, other, LINKS_UNFENCED);
}

static void test_without_a_fence_some_rows_may_come_late(void **state)
{
    (void)state;
    between_all(try_unfenced);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_release_comes_behind_the_stores_of_its_block),
        cmocka_unit_test(test_a_fenced_flag_comes_behind_the_row_that_another_warp_had_stored),
        cmocka_unit_test(test_without_a_fence_some_rows_may_come_late),
    };
    if (runtime_load(&run) != MUSTER_OK || run->count() == 0) {
        printf("[  SKIPPED ] there is no CUDA device\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
