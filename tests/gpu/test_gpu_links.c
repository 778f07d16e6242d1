// SPDX-License-Identifier: Apache-2.0
/*
 * What docs/design.md says of flags and rows (X5), on every link of this host. MUSTER_TEST_ROUNDS=N: so many rows for each
 * pair of blocks (default 5000), for a link that is to be tried for longer.
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

enum { ROUNDS = 5000, MOST_ROUNDS = 1000000000 };

static const struct runtime *run;
static uint32_t rounds = ROUNDS;

static bool take_rounds(const char *text)
{
    char *end;
    unsigned long wanted = strtoul(text, &end, 10);
    rounds = (uint32_t)wanted;
    return end != text && *end == '\0' && wanted >= 1 && wanted <= MOST_ROUNDS;
}

/* In both directions. ordered: whether every value must be there when its flag is. */
static void check_between(int one, int other, enum links_way way, bool ordered)
{
    struct links_found found;
    const char *error = links_try(one, other, way, rounds, &found);
    if (error)
        fail_msg("GPU %d and %d: %s", one, other, error);
    if (found.late)
        fail_msg("GPU %d and %d: a flag did not come", one, other);
    printf("GPU %d and %d: %llu of %llu values were read too early\n", one, other, found.wrong, found.checked);
    assert_true(found.checked > 0);
    assert_true(!ordered || found.wrong == 0);
}

/* Every two devices that reach each other; if there are none, one with itself. */
static void check_all(enum links_way way, bool ordered)
{
    int count = run->count(), pairs = 0;
    for (int one = 0; one < count; one++)
        for (int other = one + 1; other < count; other++)
            if (links_exist(one, other)) {
                check_between(one, other, way, ordered);
                pairs++;
            }
    if (pairs == 0)
        check_between(0, 0, way, ordered);
}

static void test_a_release_comes_behind_the_stores_of_its_block(void **state)
{
    (void)state;
    check_all(LINKS_STORES, true);
}

static void test_a_fenced_flag_comes_behind_the_row_that_another_warp_had_stored(void **state)
{
    (void)state;
    check_all(LINKS_ENGINE, true);
}

/* Nothing is promised of the order here. Where some rows come late, that shows that the tests above would see it. */
static void test_without_a_fence_some_rows_may_come_late(void **state)
{
    (void)state;
    check_all(LINKS_UNFENCED, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_release_comes_behind_the_stores_of_its_block),
        cmocka_unit_test(test_a_fenced_flag_comes_behind_the_row_that_another_warp_had_stored),
        cmocka_unit_test(test_without_a_fence_some_rows_may_come_late),
    };
    const char *text = getenv("MUSTER_TEST_ROUNDS");
    if (text && !take_rounds(text)) {
        fprintf(stderr, "MUSTER_TEST_ROUNDS: \"%s\" is no number from 1 to %d\n", text, MOST_ROUNDS);
        return 2;
    }
    if (runtime_load(&run) != MUSTER_OK || run->count() == 0) {
        printf("[  SKIPPED ] there is no CUDA device\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
