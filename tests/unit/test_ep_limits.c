// SPDX-License-Identifier: Apache-2.0
/*
 * Near the ends of the numbers: an epoch whose sequence numbers run out is followed by another with the same mask, and
 * a group whose epochs run out ends with an error. Every good step in between is exact. Deadlines that no clock ever reaches
 * are not taken for short ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/clock.h"
#include "core/mask.h"
#include "core/stamp.h"
#include "lib/backend.h"
#include "lib/pace.h"
#include "lib/rounds.h"

static const struct exchange_case c = {
    .name = "limits", .hidden = 16, .max_tokens = 3, .slots = 2, .topk = 2, .tokens = TOKENS_UNEVEN};

static void set_number(const char *name, uint64_t number)
{
    char text[24];
    snprintf(text, sizeof(text), "%llu", (unsigned long long)number);
    assert_int_equal(setenv(name, text, 1), 0);
}

/* One exchange, which a change of epochs may make void; true if it was good. */
static bool exchange_or_void(struct cluster_rank *self, muster_ep *ep, const struct world *world, uint32_t *epoch)
{
    struct party *p = party_open(world, self->rank);
    muster_status ready = muster_group_wait_ready(self->group, PACE_PATIENCE_MS * UINT64_C(1000));
    expect(ready == MUSTER_OK, "wait_ready: %s", muster_last_error());
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    muster_status status = party_exchange(p, ep);
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    muster_verdict verdict = cluster_verdict(self);
    bool good = verdict.status == MUSTER_OK;
    expect(!good || status == MUSTER_OK, "a good step with an operation that gave %s", muster_status_name(status));
    expect(!good || party_right(p), "%s", p->why);
    *epoch = verdict.epoch;
    party_close(p);
    return good;
}

enum { GOOD_STEPS = 24 };

static _Atomic int ranks_done, ranks_out;

/*
 * Who steps no more ends the epochs, until nobody is left in a step that would wait for it. One abort does not do: it ends
 * one epoch, and a rank that has just waited for the next begins its last step in that.
 */
static void let_all_out(struct cluster_rank *self)
{
    atomic_fetch_add(&ranks_out, 1);
    for (int ms = 0; atomic_load(&ranks_out) < 3; ms += 10) {
        expect(ms < PACE_PATIENCE_MS, "only %d ranks step no more", atomic_load(&ranks_out));
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
        cluster_sleep_ms(10);
    }
}

/*
 * The exchange is told to begin every epoch just before the end of its sequence numbers, so epochs follow each other
 * fast, and still steps get through. How many good steps an epoch has is the agent's affair: it only asks for the next
 * one when it runs, and the numbers in reserve last for long. Inputs are the same in all steps: after a void step ranks
 * differ in their count. Ranks that are done keep stepping for the others' sake, until the last one is.
 */
static void use_up_epochs(struct cluster_rank *self)
{
    muster_ep *ep = rounds_create(self, &c);
    uint32_t first = cluster_await_view(self, 3, 0).epoch, last = first;
    struct pace pace = pace_begin();
    bool done = false;
    for (int good = 0; atomic_load(&ranks_done) < 3;) {
        expect(pace_wall_ms(&pace) < PACE_PATIENCE_MS, "%d good steps, and epoch %u after %u", good, last, first);
        good += exchange_or_void(self, ep, self->context, &last);
        if (!done && good >= GOOD_STEPS && last > first + 2) {
            atomic_fetch_add(&ranks_done, 1);
            done = true;
        }
    }
    let_all_out(self);
    muster_ep_destroy(ep);
}

static struct world *limits_world(void)
{
    return world_make(&c, 3, mask_first(3), 61);
}

static void sequence_numbers_run_out(void **state)
{
    (void)state;
    struct world *world = limits_world();
    struct cluster_options options = {.ranks = 3, .memory_bytes = rounds_memory_bytes(&c, 1, 3)};
    set_number("MUSTER_FIRST_SEQUENCE", STAMP_MAX_SEQUENCE - STAMP_SEQUENCE_RESERVE - 4);
    bool good = cluster_run(&options, use_up_epochs, world);
    unsetenv("MUSTER_FIRST_SEQUENCE");
    world_free(world);
    assert_true(good);
}

/* Six pairs of one step, of which the last ones find the numbers short: that alone ends the epoch. */
static void use_up_pairs(struct cluster_rank *self)
{
    muster_ep *ep = rounds_create(self, &c);
    uint32_t first = cluster_await_view(self, 3, 0).epoch;
    cluster_barrier(self);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    for (int pair = 0; pair < 6; pair++) {
        struct party *p = party_open(self->context, self->rank);
        party_exchange(p, ep); /* void, once the epoch has ended */
        party_close(p);
    }
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    cluster_verdict(self);
    cluster_await_view(self, 3, first);
    cluster_barrier(self);
    muster_ep_destroy(ep);
}

static void pair_numbers_run_out(void **state)
{
    (void)state;
    struct world *world = limits_world();
    struct cluster_options options = {.ranks = 3, .memory_bytes = rounds_memory_bytes(&c, 1, 3)};
    set_number("MUSTER_FIRST_SEQUENCE", STAMP_MAX_SEQUENCE - STAMP_SEQUENCE_RESERVE - 4);
    bool good = cluster_run(&options, use_up_pairs, world);
    unsetenv("MUSTER_FIRST_SEQUENCE");
    world_free(world);
    assert_true(good);
}

/* Steps count too, also those without any operation: each takes two numbers. */
static void use_up_steps(struct cluster_rank *self)
{
    uint32_t first = cluster_await_view(self, 3, 0).epoch, last = first;
    for (int tries = 0; last < first + 3; tries++) {
        expect(tries < 2000, "the epoch is still %u after %d steps", last, tries);
        expect_status(muster_group_wait_ready(self->group, PACE_PATIENCE_MS * UINT64_C(1000)), MUSTER_OK, "wait_ready");
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
        last = cluster_verdict(self).epoch;
        cluster_sleep_ms(1);
    }
    cluster_barrier(self);
}

static void step_numbers_run_out(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = 3, .memory_bytes = 1 << 16};
    set_number("MUSTER_FIRST_SEQUENCE", STAMP_MAX_SEQUENCE - STAMP_SEQUENCE_RESERVE - 4);
    bool good = cluster_run(&options, use_up_steps, NULL);
    unsetenv("MUSTER_FIRST_SEQUENCE");
    assert_true(good);
}

/* Ends epochs until there are none left. */
static void use_up_group(struct cluster_rank *self)
{
    muster_ep *ep = rounds_create(self, &c);
    uint32_t epoch = cluster_await_view(self, 3, 0).epoch;
    expect(epoch <= STAMP_MAX_EPOCH && epoch >= STAMP_MAX_EPOCH - 4, "the first epoch is %u", epoch);
    cluster_barrier(self);
    rounds_exchange(self, ep, self->context);
    cluster_barrier(self);
    muster_status status = MUSTER_OK;
    muster_view view;
    for (int i = 0; i < 4000 && status == MUSTER_OK; i++) {
        if (self->rank == 0)
            muster_group_abort(self->group);
        cluster_sleep_ms(1);
        status = muster_group_view(self->group, &view);
    }
    expect(status == MUSTER_ERR_EXHAUSTED, "after the last epoch the group says %s", muster_status_name(status));
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_ERR_EXHAUSTED, "step_begin");
    muster_ep_destroy(ep);
}

static void epochs_run_out(void **state)
{
    (void)state;
    struct world *world = limits_world();
    struct cluster_options options = {.ranks = 3, .memory_bytes = rounds_memory_bytes(&c, 1, 3)};
    set_number("MUSTER_FIRST_EPOCH", STAMP_MAX_EPOCH - 3);
    bool good = cluster_run(&options, use_up_group, world);
    unsetenv("MUSTER_FIRST_EPOCH");
    world_free(world);
    assert_true(good);
}

/* Whoever takes a deadline for a short one gives up on the rank that comes late, or does not wait for the next view. */
static void wait_without_end(struct cluster_rank *self)
{
    muster_ep *ep = rounds_create(self, &c);
    uint32_t epoch = cluster_await_view(self, 3, 0).epoch;
    for (int round = 0; round < 3; round++) {
        if (round == self->rank)
            cluster_sleep_ms(20);
        rounds_exchange(self, ep, self->context);
        cluster_barrier(self);
        if (round == self->rank)
            expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
        cluster_await_end(self, epoch);
        expect_status(muster_group_wait_ready(self->group, UINT64_MAX), MUSTER_OK, "wait_ready(UINT64_MAX)");
        epoch = cluster_await_view(self, 3, epoch).epoch;
    }
    muster_ep_destroy(ep);
    cluster_barrier(self);
    expect_status(muster_group_leave(self->group), MUSTER_OK, "muster_group_leave");
}

static void deadlines_without_end(void **state)
{
    (void)state;
    /* The middle two wrap to less than a microsecond, and to 36 ms, where they are taken times 1000. */
    static const uint64_t deadlines[] = {UINT64_MAX, UINT64_MAX / 1000 + 1, UINT64_MAX / 1000 + 36000, INT64_MAX,
                                         UINT64_MAX / 1000};
    struct world *world = limits_world();
    for (size_t i = 0; i < sizeof(deadlines) / sizeof(deadlines[0]); i++) {
        struct cluster_options options = {.ranks = 3,
                                          .memory_bytes = rounds_memory_bytes(&c, 1, 3),
                                          .operation_timeout_us = deadlines[i],
                                          .step_timeout_us = deadlines[i],
                                          .start_timeout_us = deadlines[i]};
        assert_true(cluster_run(&options, wait_without_end, world));
    }
    world_free(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sequence_numbers_run_out), cmocka_unit_test(pair_numbers_run_out),
        cmocka_unit_test(step_numbers_run_out),     cmocka_unit_test(epochs_run_out),
        cmocka_unit_test(deadlines_without_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
