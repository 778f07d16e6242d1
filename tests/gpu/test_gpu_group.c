// SPDX-License-Identifier: Apache-2.0
/* Groups with a device: views, steps and verdicts that the device decides on, in stream order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <cuda_runtime_api.h>

#include "core/mask.h"
#include "lib/backend.h"
#include "lib/rounds.h"

enum { RANKS = 4, PAUSE_MS = 200 };

static muster_verdict empty_step(struct cluster_rank *self)
{
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    backend_wait();
    return cluster_verdict(self);
}

static void good_steps(struct cluster_rank *self)
{
    muster_verdict none;
    cluster_at("good steps");
    for (uint64_t step = 1; step <= 20; step++) {
        muster_verdict v = empty_step(self);
        expect(v.status == MUSTER_OK && v.step == step && v.epoch == 1, "step %d: %s, epoch %u", (int)step,
               muster_status_name(v.status), v.epoch);
        expect(mask_equal(v.mask, mask_first(RANKS)), "the verdict's mask is wrong");
    }
    expect_status(muster_step_verdict(self->group, &none), MUSTER_ERR_AGAIN, "a verdict of no step");
    cluster_barrier(self);
}

static void steps_are_good(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = RANKS, .memory_bytes = 1 << 20};
    assert_true(cluster_run(&options, good_steps, NULL));
}

/* A step that is open while an epoch ends is void, and so is each that begins before its verdict was read. */
static void void_steps(struct cluster_rank *self)
{
    cluster_at("void steps");
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
    backend_wait();
    cluster_barrier(self);
    if (self->rank == 1)
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
    muster_view view;
    do {
        cluster_sleep_ms(1);
        expect_status(muster_group_view(self->group, &view), MUSTER_OK, "muster_group_view");
    } while (view.epoch == 1);
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    muster_status queued = muster_step_begin(self->group, backend_stream());
    expect_status(queued, MUSTER_OK, "muster_step_begin");
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    backend_wait();
    muster_verdict first = cluster_verdict(self), second = cluster_verdict(self);
    expect(first.status == MUSTER_ERR_PEER && first.reason == MUSTER_REASON_EPOCH, "first: %s, reason %d",
           muster_status_name(first.status), (int)first.reason);
    expect(second.status != MUSTER_OK, "the second is good");
    cluster_await_view(self, RANKS, 1);
    muster_verdict third = empty_step(self);
    expect(third.status == MUSTER_OK && third.epoch > 1, "third: %s, reason %d, epoch %u",
           muster_status_name(third.status), (int)third.reason, third.epoch);
    cluster_barrier(self);
}

static void epochs_end_steps(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = RANKS, .memory_bytes = 1 << 20};
    assert_true(cluster_run(&options, void_steps, NULL));
}

static const struct exchange_case plain = {
    .name = "steps and exchanges", .hidden = 16, .max_tokens = 3, .slots = 2, .topk = 2, .tokens = TOKENS_UNEVEN};

/* Of the view that is installed. */
static void say_ready(struct cluster_rank *self)
{
    muster_view view;
    expect_status(muster_group_view(self->group, &view), MUSTER_OK, "muster_group_view");
    expect_status(muster_group_ready(self->group, view.epoch), MUSTER_OK, "muster_group_ready");
}

/*
 * A step that begins before a void verdict is read, in an epoch that lives, and goes on after that: by then the device has
 * forgotten why the step is void.
 */
static void straddle_a_reading(struct cluster_rank *self, muster_ep *ep)
{
    struct party *p = party_open(self->context, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
    backend_wait(); /* it has begun */
    muster_verdict first = cluster_verdict(self);
    expect(first.reason == MUSTER_REASON_NOT_READY, "first: reason %d", (int)first.reason);
    expect(cudaDeviceSynchronize() == cudaSuccess, "no synchronizing"); /* it forgets on the agent's stream */
    expect_status(muster_ep_dispatch(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch");
    expect_status(muster_ep_combine(ep, &p->combine, backend_stream()), MUSTER_OK, "combine");
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    muster_verdict second = cluster_verdict(self);
    expect(second.status == MUSTER_ERR_VOID && second.reason == MUSTER_REASON_UNREAD, "second: %s, reason %d",
           muster_status_name(second.status), (int)second.reason);
    expect(party_untouched(p), "%s", p->why);
    party_close(p);
}

/* The same, of a step without operations. */
static void straddle_a_reading_with_nothing(struct cluster_rank *self, muster_ep *ep)
{
    (void)ep;
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
    backend_wait(); /* it has begun */
    muster_verdict first = cluster_verdict(self);
    expect(first.reason == MUSTER_REASON_NOT_READY, "first: reason %d", (int)first.reason);
    expect(cudaDeviceSynchronize() == cudaSuccess, "no synchronizing");
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    muster_verdict second = cluster_verdict(self);
    expect(second.status == MUSTER_ERR_VOID && second.reason == MUSTER_REASON_UNREAD, "second: %s, reason %d",
           muster_status_name(second.status), (int)second.reason);
}

/*
 * A dispatch that is a step of its own begins before a void verdict is read. A block of it that comes after that (where the
 * device is simulated, the last one does) finds nothing amiss, and must not wait for what those before it have not done.
 */
static void dispatch_across_a_reading(struct cluster_rank *self, muster_ep *ep)
{
    struct party *p = party_open(self->context, self->rank);
    expect_status(muster_ep_dispatch(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch");
    cluster_pause_ms(self, PAUSE_MS); /* the other blocks have come */
    muster_verdict first;
    expect_status(muster_step_verdict(self->group, &first), MUSTER_OK, "muster_step_verdict");
    expect(first.reason == MUSTER_REASON_NOT_READY, "first: reason %d", (int)first.reason);
    expect(cudaDeviceSynchronize() == cudaSuccess, "no synchronizing"); /* it forgets on the agent's stream */
    expect_status(muster_ep_combine(ep, &p->combine, backend_stream()), MUSTER_OK, "combine");
    muster_verdict second = cluster_verdict(self);
    expect_in_time(second.reason == MUSTER_REASON_UNREAD || second.reason == MUSTER_REASON_ABORT,
                   "second: %s, reason %d", muster_status_name(second.status), (int)second.reason);
    party_close(p);
}

/* Rank 0 is ready before the others, begins a step too early, and does not read its verdict until the epoch has begun. */
static void read_late(struct cluster_rank *self, void (*straddle)(struct cluster_rank *self, muster_ep *ep))
{
    cluster_at("reading a verdict late");
    muster_ep *ep = rounds_create(self, &plain);
    if (self->rank == 0) {
        say_ready(self);
        cluster_pause_ms(self, PAUSE_MS); /* its agent has told the others */
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
        backend_wait();
    }
    cluster_barrier(self);
    if (self->rank != 0)
        say_ready(self);
    uint32_t epoch = cluster_await_view(self, RANKS, 0).epoch;
    if (self->rank == 0)
        straddle(self, ep);
    cluster_await_end(self, epoch);
    say_ready(self);
    cluster_await_view(self, RANKS, epoch);
    rounds_exchange(self, ep, self->context);
    muster_ep_destroy(ep);
}

static void step_across_the_reading(struct cluster_rank *self)
{
    read_late(self, straddle_a_reading);
}

static void empty_step_across_the_reading(struct cluster_rank *self)
{
    read_late(self, straddle_a_reading_with_nothing);
}

static void dispatch_across_the_reading(struct cluster_rank *self)
{
    read_late(self, dispatch_across_a_reading);
}

/*
 * A step that a dispatch has begun, and no combine has ended yet, when its epoch ends. All ranks are ready otherwise, so it alone
 * keeps the next epoch from beginning.
 */
static void leave_a_step_open(struct cluster_rank *self)
{
    cluster_at("a step that is open when its epoch ends");
    muster_ep *ep = rounds_create(self, &plain);
    struct party *p = party_open(self->context, self->rank);
    muster_view view;
    say_ready(self);
    uint32_t epoch = cluster_await_view(self, RANKS, 0).epoch;
    expect_status(muster_ep_dispatch(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch");
    backend_wait();
    cluster_barrier(self);
    if (self->rank == 1)
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
    cluster_await_end(self, epoch);
    say_ready(self);
    if (self->rank == 0) {
        cluster_barrier(self); /* the others have ended theirs */
        cluster_pause_ms(self, PAUSE_MS);
        expect_status(muster_group_view(self->group, &view), MUSTER_OK, "muster_group_view");
        expect(view.epoch > epoch && !view.ready, "epoch %u began while a step of %u was open", view.epoch, epoch);
    }
    expect_status(muster_ep_combine(ep, &p->combine, backend_stream()), MUSTER_OK, "combine");
    muster_verdict verdict = cluster_verdict(self);
    expect(verdict.reason == MUSTER_REASON_EPOCH, "a step whose epoch ended within it: %s, reason %d",
           muster_status_name(verdict.status), (int)verdict.reason);
    if (self->rank != 0)
        cluster_barrier(self);
    party_close(p);
    cluster_await_view(self, RANKS, epoch);
    rounds_exchange(self, ep, self->context);
    muster_ep_destroy(ep);
}

/*
 * An epoch ends when most blocks of a kernel have come, and gone, and one has not entered (MUSTER_SIMT_LATE_MS makes it late):
 * until that has, no other epoch begins, in which it would begin a step alone.
 */
static void end_the_epoch_before_the_last_block(struct cluster_rank *self)
{
    cluster_at("an epoch that ends before the last block of a kernel enters");
    muster_ep *ep = rounds_create(self, &plain);
    struct party *p = party_open(self->context, self->rank);
    say_ready(self);
    uint32_t epoch = cluster_await_view(self, RANKS, 0).epoch;
    expect_status(muster_ep_dispatch_send(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch_send");
    cluster_pause_ms(self, PAUSE_MS);
    cluster_barrier(self);
    if (self->rank == 1)
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
    cluster_await_end(self, epoch);
    say_ready(self);
    while (cudaStreamQuery(backend_stream()) == cudaErrorNotReady) {
        muster_view view;
        expect_status(muster_group_view(self->group, &view), MUSTER_OK, "muster_group_view");
        expect(!(view.ready && view.epoch > epoch) || cudaStreamQuery(backend_stream()) == cudaSuccess,
               "epoch %u began before all blocks of a kernel of %u had entered", view.epoch, epoch);
        cluster_sleep_ms(1);
    }
    expect_status(muster_ep_dispatch_receive(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch_receive");
    expect_status(muster_ep_combine(ep, &p->combine, backend_stream()), MUSTER_OK, "combine");
    muster_verdict verdict = cluster_verdict(self);
    expect(verdict.status != MUSTER_OK, "a step whose epoch ended is good");
    party_close(p);
    cluster_await_view(self, RANKS, epoch);
    rounds_exchange(self, ep, self->context);
    muster_ep_destroy(ep);
}

static bool run_with_world(cluster_function *function)
{
    struct world *world = world_make(&plain, RANKS, mask_first(RANKS), 7);
    struct cluster_options options = {.ranks = RANKS,
                                      .memory_bytes = rounds_memory_bytes(&plain, 1, RANKS),
                                      .manual_ready = 1,
                                      .short_ms = PAUSE_MS};
    bool good = cluster_run(&options, function, world);
    world_free(world);
    return good;
}

static void a_step_that_began_unread_stays_void(void **state)
{
    (void)state;
    assert_true(run_with_world(step_across_the_reading));
    assert_true(run_with_world(empty_step_across_the_reading));
}

static void blocks_that_find_no_failure_do_not_wait_for_those_that_did(void **state)
{
    (void)state;
    assert_true(run_with_world(dispatch_across_the_reading));
}

static void the_next_epoch_waits_for_a_step_that_is_open(void **state)
{
    (void)state;
    assert_true(run_with_world(leave_a_step_open));
}

static void blocks_that_find_another_epoch_begin_no_step_of_it(void **state)
{
    (void)state;
    assert_true(run_with_world(end_the_epoch_before_the_last_block));
}

/* A captured step goes on to be right in the epoch that follows: nothing of a view is frozen in the graph. */
static void captured_steps(struct cluster_rank *self)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStream_t stream = backend_stream();
    cluster_at("captured steps");
    expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess, "no capture");
    expect_status(muster_step_begin(self->group, stream), MUSTER_OK, "muster_step_begin");
    expect_status(muster_step_end(self->group, stream), MUSTER_OK, "muster_step_end");
    expect(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "no graph");
    expect(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess, "no executable graph");
    for (int replay = 0; replay < 3; replay++)
        expect(cudaGraphLaunch(exec, stream) == cudaSuccess, "no launch");
    backend_wait();
    for (int replay = 0; replay < 3; replay++)
        expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict of a replay");
    cluster_barrier(self);
    if (self->rank == 0)
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
    cluster_await_view(self, RANKS, 1);
    expect(cudaGraphLaunch(exec, stream) == cudaSuccess, "no launch");
    backend_wait();
    muster_verdict v = cluster_verdict(self);
    expect(v.status == MUSTER_OK && v.epoch > 1, "after the view change: %s, reason %d, epoch %u",
           muster_status_name(v.status), (int)v.reason, v.epoch);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cluster_barrier(self);
}

static void captured_steps_survive_a_view_change(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = RANKS, .memory_bytes = 1 << 20};
    assert_true(cluster_run(&options, captured_steps, NULL));
}

/* A step that lacks an operation, since it was refused while it was captured, lacks it in every replay. */
static void capture_a_refusal(struct cluster_rank *self)
{
    const struct world *world = self->context;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStream_t stream = backend_stream();
    muster_ep *ep = rounds_create(self, &world->c);
    muster_ep_dispatch_args nothing = MUSTER_EP_DISPATCH_INIT;
    uint32_t epoch = cluster_await_view(self, world->ranks, 0).epoch;
    expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess, "no capture");
    expect_status(muster_step_begin(self->group, stream), MUSTER_OK, "muster_step_begin");
    expect_status(muster_ep_dispatch(ep, &nothing, stream), MUSTER_ERR_ARGUMENT, "a dispatch of nothing");
    expect_status(muster_step_end(self->group, stream), MUSTER_OK, "muster_step_end");
    expect(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "no graph");
    expect(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess, "no executable graph");
    for (int replay = 0; replay < 3; replay++) {
        cluster_barrier(self);
        expect(cudaGraphLaunch(exec, stream) == cudaSuccess, "no launch");
        muster_verdict v = cluster_verdict(self);
        bool told = v.reason == MUSTER_REASON_EPOCH || v.reason == MUSTER_REASON_NOT_READY; /* the other was first */
        expect(told || (v.reason == MUSTER_REASON_ARGUMENT && v.phase == MUSTER_PHASE_DISPATCH),
               "replay %d: %s, reason %d", replay, muster_status_name(v.status), (int)v.reason);
        epoch = cluster_await_view(self, world->ranks, epoch).epoch;
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    rounds_exchange(self, ep, world);
    muster_ep_destroy(ep);
}

static void a_captured_refusal_voids_every_replay(void **state)
{
    (void)state;
    struct world *world = world_make(&plain, 2, mask_first(2), 7);
    struct cluster_options options = {.ranks = 2, .memory_bytes = rounds_memory_bytes(&plain, 1, 2)};
    assert_true(cluster_run(&options, capture_a_refusal, world));
    world_free(world);
}

/* A rank dies: the others agree on a view without it, and their steps go on. */
static void lose_a_rank(struct cluster_rank *self)
{
    cluster_at("losing a rank");
    expect_status(empty_step(self).status, MUSTER_OK, "a step of all");
    cluster_barrier(self);
    if (self->rank == 2)
        cluster_die(self);
    cluster_await_view(self, RANKS - 1, 1);
    muster_verdict v = empty_step(self);
    expect(v.status == MUSTER_OK && !mask_has(v.mask, 2), "after a death: %s, reason %d", muster_status_name(v.status),
           (int)v.reason);
    cluster_barrier(self);
}

static void survivors_go_on(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = RANKS, .memory_bytes = 1 << 20};
    assert_true(cluster_run(&options, lose_a_rank, NULL));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_good),
        cmocka_unit_test(epochs_end_steps),
        cmocka_unit_test(a_step_that_began_unread_stays_void),
        cmocka_unit_test(blocks_that_find_no_failure_do_not_wait_for_those_that_did),
        cmocka_unit_test(the_next_epoch_waits_for_a_step_that_is_open),
        cmocka_unit_test(blocks_that_find_another_epoch_begin_no_step_of_it),
        cmocka_unit_test(captured_steps_survive_a_view_change),
        cmocka_unit_test(a_captured_refusal_voids_every_replay),
        cmocka_unit_test(survivors_go_on),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
