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
#include "lib/cluster.h"

enum { RANKS = 4 };

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_good),
        cmocka_unit_test(epochs_end_steps),
        cmocka_unit_test(captured_steps_survive_a_view_change),
        cmocka_unit_test(survivors_go_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
