// SPDX-License-Identifier: Apache-2.0
/*
 * The life of a group beyond one set of processes: all go and others come, newcomers have another history than those who are
 * there, some leave while others still work, and what was good here may be void there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "core/clock.h"
#include "core/mask.h"
#include "lib/backend.h"
#include "lib/rounds.h"

static const struct exchange_case c = {.name = "life", .hidden = 16, .max_tokens = 4, .slots = 2, .topk = 2};
static const struct exchange_case other = {.name = "other", .hidden = 16, .max_tokens = 4, .slots = 2, .topk = 2};

static struct cluster_options options(int ranks, int exchanges)
{
    return (struct cluster_options){.ranks = ranks,
                                    .memory_bytes = (uint64_t)exchanges * (rounds_memory_bytes(&c, 1, ranks) + 4096),
                                    .no_groups = 1};
}

static void join(struct cluster_rank *self)
{
    muster_group_config config = cluster_config(self);
    expect_status(cluster_join(self, &config), MUSTER_OK, "muster_group_create");
}

static muster_view view_of(struct cluster_rank *self)
{
    muster_view view;
    expect_status(muster_group_view(self->group, &view), MUSTER_OK, "muster_group_view");
    return view;
}

/* ---- all go, and others come ---- */

static void goes_and_comes(struct cluster_rank *self)
{
    uint32_t epoch = 0;
    for (int life = 1; life <= 4; life++) {
        join(self);
        muster_ep *ep = rounds_create(self, &c);
        rounds_exchange(self, ep, self->context);
        muster_view view = view_of(self);
        expect(view.epoch > epoch, "epoch %u follows epoch %u", view.epoch, epoch);
        expect(view.incarnation[self->rank] == (uint32_t)life, "incarnation %u", view.incarnation[self->rank]);
        epoch = view.epoch;
        muster_ep_destroy(ep);
        cluster_part(self);
        cluster_barrier(self); /* who comes before the last has gone joins those who are left */
    }
}

static void a_group_is_founded_again_when_all_have_gone(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks += 2) {
        struct world *world = world_make(&c, ranks, mask_first(ranks), 5);
        struct cluster_options o = options(ranks, 1);
        assert_true(cluster_run(&o, goes_and_comes, world));
        world_free(world);
    }
}

/* As programs of a script follow each other: nobody waits for the others to end theirs, and each is another one. */
static void programs_follow(struct cluster_rank *self)
{
    muster_group_config config = cluster_config(self);
    muster_ep_config exchange = case_config(&c);
    for (int program = 0; program < 4; program++) {
        config.memory_bytes += 4096;
        exchange.max_tokens = 4 - program % 2;
        expect_status(cluster_join(self, &config), MUSTER_OK, "muster_group_create");
        muster_ep *ep = NULL;
        expect_status(muster_ep_create(self->group, &exchange, &ep), MUSTER_OK, "muster_ep_create");
        cluster_sleep_ms((self->rank + program) % 3 * 30);
        muster_ep_destroy(ep);
        cluster_part(self);
    }
}

static void programs_of_a_script_follow_each_other(void **state)
{
    (void)state;
    struct cluster_options o = options(3, 1);
    assert_true(cluster_run(&o, programs_follow, NULL));
}

/* ---- what a process said goes with it ---- */

static void comes_otherwise(struct cluster_rank *self)
{
    muster_group_config config = cluster_config(self);
    for (int life = 0; life < 3; life++) {
        config.memory_bytes += 4096;
        config.min_ranks = 1 + life % 2;
        expect_status(cluster_join(self, &config), MUSTER_OK, "muster_group_create");
        cluster_barrier(self);
        cluster_part(self);
    }
}

static void configurations_of_processes_that_have_gone_do_not_count(void **state)
{
    (void)state;
    struct cluster_options o = options(2, 1);
    assert_true(cluster_run(&o, comes_otherwise, NULL));
}

/* Rank 1 goes while rank 2 has gone for good: it is let in again without a word of rank 2. */
static void one_comes_while_another_is_gone(struct cluster_rank *self)
{
    join(self);
    if (self->rank == 2)
        cluster_part(self);
    cluster_barrier(self);
    if (self->rank == 1) {
        cluster_await_view(self, 2, 1);
        cluster_part(self);
        join(self);
    }
    if (self->rank != 2)
        cluster_await_view(self, 2, 2);
    cluster_barrier(self);
}

static void a_newcomer_does_not_wait_for_the_dead(void **state)
{
    (void)state;
    struct cluster_options o = options(3, 1);
    assert_true(cluster_run(&o, one_comes_while_another_is_gone, NULL));
}

/* The last process of a group takes long to exit, and the next group has another configuration. */
static void the_last_one_exits_slowly(struct cluster_rank *self)
{
    muster_group_config next = cluster_config(self);
    next.memory_bytes += 4096;
    join(self);
    cluster_barrier(self);
    if (self->rank == 0)
        cluster_part(self);
    cluster_barrier(self);
    if (self->rank == 1) {
        cluster_cut(self);
        cluster_part(self);
    }
    cluster_barrier(self);
    if (self->rank == 1) {
        cluster_sleep_ms(2500); /* longer than a difference with living members is put up with */
        cluster_fence(self->cluster, 1, self->incarnation);
    }
    expect_status(cluster_join(self, &next), MUSTER_OK, "muster_group_create");
    expect(view_of(self).active == 2, "a group of %d", view_of(self).active);
    cluster_barrier(self);
}

static void who_is_about_to_exit_is_not_compared(void **state)
{
    (void)state;
    struct cluster_options o = options(2, 1);
    assert_true(cluster_run(&o, the_last_one_exits_slowly, NULL));
}

/* ---- objects ---- */

static muster_status create(struct cluster_rank *self, muster_ep **ep)
{
    muster_ep_config config = case_config(&c);
    return muster_ep_create(self->group, &config, ep);
}

/* Ranks 0 and 1 have destroyed one exchange and made another; a new process of rank 2 makes its first. */
static void newcomer_with_another_history(struct cluster_rank *self)
{
    muster_ep *ep = NULL;
    join(self);
    muster_ep *first = rounds_create(self, &c);
    muster_ep_destroy(first);
    ep = rounds_create(self, &other);
    cluster_barrier(self);
    if (self->rank == 2) {
        muster_ep_destroy(ep);
        cluster_part(self);
        join(self);
        uint64_t start_ns = clock_ns();
        ep = NULL;
        muster_status status = create(self, &ep);
        expect(status == MUSTER_ERR_MISMATCH, "a newcomer's first exchange gave %s", muster_status_name(status));
        expect(!ep, "there is an exchange");
        expect(strstr(muster_last_error(), "ep0") && strstr(muster_last_error(), "ep1 (offset "),
               "\"%s\" does not say it", muster_last_error());
        expect(clock_ns() - start_ns < UINT64_C(10000000000), "it waited out the start timeout");
    }
    cluster_barrier(self);
    muster_ep_destroy(ep);
}

static void a_newcomer_with_another_history_is_told(void **state)
{
    (void)state;
    struct cluster_options o = options(3, 2);
    assert_true(cluster_run(&o, newcomer_with_another_history, NULL));
}

/* The newcomer makes and destroys what the others did: then it has the same at the same place. */
static void newcomer_with_the_same_history(struct cluster_rank *self)
{
    join(self);
    muster_ep *ep = rounds_create(self, &c);
    cluster_barrier(self);
    if (self->rank == 2) {
        muster_ep_destroy(ep);
        cluster_part(self);
        join(self);
        ep = rounds_create(self, &c);
    }
    cluster_await_view(self, 3, 1);
    cluster_barrier(self);
    rounds_exchange(self, ep, self->context);
    cluster_barrier(self);
    muster_ep_destroy(ep);
}

static void a_newcomer_with_the_same_history_takes_part(void **state)
{
    (void)state;
    struct world *world = world_make(&c, 3, mask_first(3), 7);
    struct cluster_options o = options(3, 1);
    assert_true(cluster_run(&o, newcomer_with_the_same_history, world));
    world_free(world);
}

/* More of them than one rank may have keys in the store. */
static void many_objects(struct cluster_rank *self)
{
    join(self);
    for (int i = 0; i < 400; i++) {
        muster_ep *ep = rounds_create(self, &c);
        muster_ep_destroy(ep);
    }
}

static void objects_come_and_go(void **state)
{
    (void)state;
    struct cluster_options o = options(2, 410);
    assert_true(cluster_run(&o, many_objects, NULL));
}

enum { MOST_OBJECTS = 200 };

static void too_many_objects(struct cluster_rank *self)
{
    muster_ep *ep[MOST_OBJECTS], *more = NULL;
    join(self);
    for (int i = 0; i < MOST_OBJECTS; i++)
        ep[i] = rounds_create(self, &c);
    for (int i = 0; i < 20; i++) {
        expect_status(create(self, &more), MUSTER_ERR_UNSUPPORTED, "one exchange more");
        expect(strstr(muster_last_error(), "200"), "\"%s\" does not name the limit", muster_last_error());
        muster_ep_destroy(ep[i]);
        ep[i] = rounds_create(self, &c);
    }
    for (int i = 0; i < MOST_OBJECTS; i++)
        muster_ep_destroy(ep[i]);
    expect_status(create(self, &more), MUSTER_OK, "another one");
    muster_ep_destroy(more);
}

static void more_objects_than_the_store_keeps_are_refused(void **state)
{
    (void)state;
    struct cluster_options o = options(2, MOST_OBJECTS + 30);
    assert_true(cluster_run(&o, too_many_objects, NULL));
}

/* ---- leaving ---- */

enum { LEAVE_STEPS = 5 };

/* One rank is slow where the others have all that they need of it, and it has not taken all that it needs of them. */
static muster_status combine_slowly(struct cluster_rank *self, struct party *p, muster_ep *ep)
{
    muster_status status = muster_ep_combine_send(ep, &p->combine, backend_stream());
    if (self->rank == 1) {
        backend_wait();
        cluster_sleep_ms(20);
    }
    return status == MUSTER_OK ? muster_ep_combine_receive(ep, &p->combine, backend_stream()) : status;
}

/* All go through the same steps and leave. */
static void works_and_leaves(struct cluster_rank *self)
{
    const struct world *world = self->context;
    join(self);
    muster_ep *ep = rounds_create(self, &c);
    for (int i = 0; i < LEAVE_STEPS; i++) {
        struct party *p = party_open(world, self->rank);
        cluster_at("a step before leaving");
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
        muster_status status = party_dispatch(p, ep);
        party_experts(p);
        status = status == MUSTER_OK ? combine_slowly(self, p, ep) : status;
        if (self->rank == 1)
            cluster_sleep_ms(20);
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
        muster_verdict verdict = cluster_verdict(self);
        expect(status == MUSTER_OK && verdict.status == MUSTER_OK, "step %d: %s, reason %d", i,
               muster_status_name(verdict.status), (int)verdict.reason);
        party_close(p);
    }
    muster_ep_destroy(ep);
    cluster_part(self);
}

static void leaving_voids_nobodys_last_step(void **state)
{
    (void)state;
    struct world *world = world_make(&c, 3, mask_first(3), 9);
    struct cluster_options o = options(3, 1);
    for (int i = 0; i < 5; i++)
        assert_true(cluster_run(&o, works_and_leaves, world));
    world_free(world);
}

/* Rank 1 never ends its step: rank 0 waits for it no longer than the deadline. */
static void leaves_one_behind(struct cluster_rank *self)
{
    muster_group_config config = cluster_config(self);
    config.operation_timeout_us = 300000;
    expect_status(cluster_join(self, &config), MUSTER_OK, "muster_group_create");
    muster_ep *ep = rounds_create(self, &c);
    struct party *p = party_open(self->context, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
    expect_status(party_exchange(p, ep), MUSTER_OK, "an exchange");
    if (self->rank == 0) {
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
        backend_wait();
        uint64_t start_ns = clock_ns();
        expect_status(muster_group_leave(self->group), MUSTER_OK, "muster_group_leave");
        uint64_t ms = (clock_ns() - start_ns) / 1000000;
        expect(ms >= 290, "it left after %d ms, while a member was in its last step", (int)ms);
    }
    cluster_barrier(self);
    if (self->rank == 1) /* its work was done, and is exact for both, whoever has left since */
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    party_close(p);
    muster_ep_destroy(ep);
}

static void leaving_does_not_wait_for_ever(void **state)
{
    (void)state;
    struct world *world = world_make(&c, 2, mask_first(2), 9);
    struct cluster_options o = options(2, 1);
    assert_true(cluster_run(&o, leaves_one_behind, world));
    world_free(world);
}

/* ---- progress ---- */

/* Rank 1 calls its second step off before it ends: good on rank 0, void on rank 1. Both go on from the first. */
static void good_here_void_there(struct cluster_rank *self)
{
    join(self);
    muster_ep *ep = rounds_create(self, &c);
    expect(view_of(self).progress_most == 0, "a group begins with progress %d", (int)view_of(self).progress_most);
    rounds_exchange(self, ep, self->context);
    struct party *p = party_open(self->context, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
    expect_status(party_exchange(p, ep), MUSTER_OK, "an exchange");
    cluster_barrier(self);
    if (self->rank == 0)
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    backend_wait();
    cluster_barrier(self);
    if (self->rank == 1) {
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
        cluster_await_end(self, 1);
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    }
    expect((cluster_verdict(self).status == MUSTER_OK) == (self->rank == 0), "rank %d has the wrong verdict",
           self->rank);
    muster_view view = cluster_await_view(self, 2, 1);
    expect(view.progress_least == 1 && view.progress_most == 2, "progress %d to %d", (int)view.progress_least,
           (int)view.progress_most);
    party_close(p);
    rounds_exchange(self, ep, self->context); /* both repeat the second */
    cluster_barrier(self);
    if (self->rank == 1)
        muster_group_abort(self->group);
    view = cluster_await_view(self, 2, view.epoch);
    expect(view.progress_least == 2 && view.progress_most == 2, "then progress %d to %d", (int)view.progress_least,
           (int)view.progress_most);
    cluster_barrier(self);
    muster_ep_destroy(ep);
}

static void the_view_tells_who_is_ahead(void **state)
{
    (void)state;
    struct world *world = world_make(&c, 2, mask_first(2), 3);
    struct cluster_options o = options(2, 1);
    assert_true(cluster_run(&o, good_here_void_there, world));
    world_free(world);
}

enum { BATCHES = 60 };

/*
 * Each batch has inputs of its own and goes through one of two exchanges, in turn. Every rank calls some of its steps off when
 * it has done its part, so that a batch is good on others and void there.
 */
static void batches_in_turn(struct cluster_rank *self)
{
    struct world *const *worlds = self->context;
    uint32_t epoch = 0;
    int ahead = 0, calls = 0;
    join(self);
    muster_ep *ep[2] = {rounds_create(self, &c), rounds_create(self, &other)};
    for (uint64_t batch = 0; batch < BATCHES;) {
        cluster_at("batches in turn");
        expect_status(muster_group_wait_ready(self->group, 30000000), MUSTER_OK, "muster_group_wait_ready");
        muster_view view = view_of(self);
        ahead += epoch && view.epoch != epoch && batch > view.progress_least;
        batch = view.epoch != epoch ? view.progress_least : batch;
        epoch = view.epoch;
        struct party *p = party_open(worlds[batch], self->rank);
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
        party_exchange(p, ep[batch % 2]);
        if (batch >= 7 * (uint64_t)calls + (uint64_t)self->rank && batch < BATCHES - 7) {
            calls++;
            expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
        }
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
        bool good = cluster_verdict(self).status == MUSTER_OK;
        expect(!good || party_right(p), "batch %d: %s", (int)batch, p->why);
        party_close(p);
        batch += good;
    }
    expect(ahead || test_backend, "rank %d was never ahead of the others", self->rank);
    cluster_barrier(self);
    for (int i = 0; i < 2; i++)
        muster_ep_destroy(ep[i]);
}

static void all_go_on_from_the_same_batch(void **state)
{
    (void)state;
    struct world *worlds[BATCHES];
    struct cluster_options o = options(3, 2);
    for (int i = 0; i < BATCHES; i++)
        worlds[i] = world_make(i % 2 ? &other : &c, 3, mask_first(3), 100 + (uint64_t)i);
    assert_true(cluster_run(&o, batches_in_turn, worlds));
    for (int i = 0; i < BATCHES; i++)
        world_free(worlds[i]);
}

/* Nobody can begin the next epoch while these steps are open; rank 1 aborts twice, rank 0 when the epoch has ended. */
static void aborts_late(struct cluster_rank *self)
{
    join(self);
    muster_ep *ep = rounds_create(self, &c);
    struct party *p = party_open(self->context, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
    expect_status(party_exchange(p, ep), MUSTER_OK, "an exchange");
    backend_wait();
    cluster_barrier(self);
    if (self->rank == 1)
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
    cluster_await_end(self, 1);
    expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    muster_verdict verdict = cluster_verdict(self);
    expect(verdict.status == MUSTER_ERR_VOID || verdict.status == MUSTER_ERR_PEER, "the step ended with %s",
           muster_status_name(verdict.status));
    muster_view view = cluster_await_view(self, 2, 1);
    expect(view.progress_most == 0, "a step that was aborted counts as progress");
    party_close(p);
    rounds_exchange(self, ep, self->context);
    expect(view_of(self).epoch == view.epoch, "a late abort has ended the epoch after its own");
    cluster_barrier(self);
    muster_ep_destroy(ep);
}

static void an_abort_voids_the_open_step_whenever_it_comes(void **state)
{
    (void)state;
    struct world *world = world_make(&c, 2, mask_first(2), 3);
    struct cluster_options o = options(2, 1);
    assert_true(cluster_run(&o, aborts_late, world));
    world_free(world);
}

/* A newcomer counts on from where the others are; what a caller says is told as it is. */
static void newcomer_goes_on(struct cluster_rank *self)
{
    join(self);
    muster_ep *ep = rounds_create(self, &c);
    for (int i = 0; i < 3; i++)
        rounds_exchange(self, ep, self->context);
    cluster_barrier(self);
    if (self->rank == 1) {
        muster_ep_destroy(ep);
        cluster_part(self);
        join(self);
        ep = rounds_create(self, &c);
    }
    muster_view view = cluster_await_view(self, 2, 2);
    expect(view.progress_least == 3 && view.progress_most == 3, "progress %d to %d", (int)view.progress_least,
           (int)view.progress_most);
    cluster_barrier(self);
    rounds_exchange(self, ep, self->context);
    expect_status(muster_group_set_progress(self->group, 100 + (uint64_t)self->rank), MUSTER_OK, "set_progress");
    cluster_barrier(self);
    if (self->rank == 0)
        muster_group_abort(self->group);
    view = cluster_await_view(self, 2, view.epoch);
    expect(view.progress_least == 100 && view.progress_most == 101, "progress %d to %d", (int)view.progress_least,
           (int)view.progress_most);
    expect_status(muster_group_set_progress(self->group, UINT64_MAX), MUSTER_ERR_ARGUMENT, "2^64 - 1");
    cluster_barrier(self);
    muster_ep_destroy(ep);
}

static void a_newcomer_counts_on_from_the_others(void **state)
{
    (void)state;
    struct world *world = world_make(&c, 2, mask_first(2), 3);
    struct cluster_options o = options(2, 1);
    assert_true(cluster_run(&o, newcomer_goes_on, world));
    world_free(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_group_is_founded_again_when_all_have_gone),
        cmocka_unit_test(programs_of_a_script_follow_each_other),
        cmocka_unit_test(configurations_of_processes_that_have_gone_do_not_count),
        cmocka_unit_test(a_newcomer_does_not_wait_for_the_dead),
        cmocka_unit_test(who_is_about_to_exit_is_not_compared),
        cmocka_unit_test(a_newcomer_with_another_history_is_told),
        cmocka_unit_test(a_newcomer_with_the_same_history_takes_part),
        cmocka_unit_test(objects_come_and_go),
        cmocka_unit_test(more_objects_than_the_store_keeps_are_refused),
        cmocka_unit_test(leaving_voids_nobodys_last_step),
        cmocka_unit_test(leaving_does_not_wait_for_ever),
        cmocka_unit_test(the_view_tells_who_is_ahead),
        cmocka_unit_test(all_go_on_from_the_same_batch),
        cmocka_unit_test(an_abort_voids_the_open_step_whenever_it_comes),
        cmocka_unit_test(a_newcomer_counts_on_from_the_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
