// SPDX-License-Identifier: Apache-2.0
/*
 * The promises that are about devices alone, with ranks as threads: 5, a survivor sees no device error because a peer
 * died, and 6, a waiting kernel never traps. What becomes of real processes that die is `muster chaos gpu`.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <cuda_runtime_api.h>

#include "core/mask.h"
#include "kernels/runtime.h"
#include "lib/backend.h"
#include "lib/pace.h"
#include "lib/rounds.h"

enum { RANKS = 4, VICTIM = 2, OPERATION_MS = 1000, STEP_MS = 3000, SLACK_MS = 1500 };

static const struct exchange_case c = {
    .name = "promise on a device", .hidden = 256, .max_tokens = 9, .slots = 2, .topk = 3, .tokens = TOKENS_UNEVEN};

struct worlds {
    const struct world *all, *without;
    int how; /* of the test's own */
};

static struct cluster_options short_deadlines(void)
{
    return (struct cluster_options){.ranks = RANKS,
                                    .memory_bytes = rounds_memory_bytes(&c, 1, RANKS),
                                    .operation_timeout_us = OPERATION_MS * 1000,
                                    .step_timeout_us = STEP_MS * 1000,
                                    .short_ms = OPERATION_MS / 4};
}

static void run_each(cluster_function *function, int ways)
{
    struct world *all = world_make(&c, RANKS, mask_first(RANKS), 1);
    struct world *without = world_make(&c, RANKS, mask_without(mask_first(RANKS), VICTIM), 2);
    struct cluster_options options = short_deadlines();
    for (int how = 0; how < ways; how++) {
        struct worlds worlds = {all, without, how};
        assert_true(cluster_run(&options, function, &worlds));
    }
    world_free(all);
    world_free(without);
}

/* A device that has met an error it cannot leave answers every call with it. */
static void expect_device_well(const char *when)
{
    cudaError_t error = cudaStreamSynchronize(backend_stream());
    if (error == cudaSuccess)
        error = cudaGetLastError();
    if (error == cudaSuccess)
        error = cudaFree(NULL);
    expect(error == cudaSuccess, "%s: the device says %s", when, cudaGetErrorName(error));
}

/* The exchange of a step that is open, enqueued without waiting for it. */
static void enqueue_exchange(struct cluster_rank *self, struct party *p, muster_ep *ep)
{
    expect_status(muster_ep_dispatch(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch");
    expect_status(muster_ep_combine(ep, &p->combine, backend_stream()), MUSTER_OK, "combine");
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
}

/* ---- promise 5: a survivor sees no device error because a peer died ---- */

enum death { DEATH_BEFORE_STEP, DEATH_IN_STEP, DEATH_AFTER_SEND, DEATH_AFTER_DISPATCH, DEATHS };

/* Comes as far as it should; its kernels are over when it counts as exited, as those of a process are. */
static void die_here(struct cluster_rank *self, muster_ep *ep, enum death death)
{
    const struct worlds *w = self->context;
    struct party *p = party_open(w->all, self->rank);
    if (death >= DEATH_IN_STEP)
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    if (death >= DEATH_AFTER_SEND)
        expect_status(muster_ep_dispatch_send(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch_send");
    if (death >= DEATH_AFTER_DISPATCH)
        expect_status(muster_ep_dispatch_receive(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch_receive");
    party_close(p);
    muster_ep_destroy(ep);
    cluster_die(self);
}

static void outlive(struct cluster_rank *self, muster_ep *ep, uint32_t epoch)
{
    const struct worlds *w = self->context;
    struct party *p = party_open(w->all, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    enqueue_exchange(self, p, ep);
    muster_verdict verdict = cluster_verdict(self);
    expect(verdict.status != MUSTER_OK || party_right(p), "a good step that is not: %s", p->why);
    expect_device_well("after a step in which a peer died");
    party_close(p);
    cluster_await_view(self, RANKS - 1, epoch);
    expect_device_well("after the view without it");
    rounds_exchange(self, ep, w->without);
    rounds_exchange(self, ep, w->without);
    expect_device_well("after steps without it");
    muster_ep_destroy(ep);
}

static void lose_a_rank(struct cluster_rank *self)
{
    const struct worlds *w = self->context;
    muster_ep *ep = rounds_create(self, &c);
    uint32_t epoch = cluster_await_view(self, RANKS, 0).epoch;
    rounds_exchange(self, ep, w->all);
    cluster_barrier(self);
    if (self->rank == VICTIM)
        die_here(self, ep, (enum death)w->how);
    outlive(self, ep, epoch);
}

static void promise_5_no_device_error_because_a_peer_died(void **state)
{
    (void)state;
    run_each(lose_a_rank, DEATHS);
}

/*
 * Kernels that are still queued when the view without a rank is installed, and its memory is unmapped with it, must not
 * touch that memory: they void themselves. A kernel that only passes time holds them back until then.
 */
static void meet_unmapped_memory(struct cluster_rank *self, muster_ep *ep, uint32_t epoch)
{
    const struct worlds *w = self->context;
    const struct runtime *runtime;
    struct party *p = party_open(w->all, self->rank);
    expect_status(runtime_load(&runtime), MUSTER_OK, "runtime_load");
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    backend_wait(); /* begun in this view: on a busy machine its kernel could come when the view is gone */
    expect_status(runtime->spin(backend_stream(), UINT64_C(400000000)), MUSTER_OK, "a kernel that passes time");
    enqueue_exchange(self, p, ep);
    cluster_barrier(self);
    cluster_await_end(self, epoch);
    muster_verdict verdict = cluster_verdict(self);
    expect(verdict.reason == MUSTER_REASON_EPOCH, "queued kernels of a view that is gone: %s, reason %d",
           muster_status_name(verdict.status), (int)verdict.reason);
    expect(party_untouched(p), "%s", p->why);
    expect_device_well("after kernels that were queued when a peer's memory went");
    party_close(p);
    cluster_await_view(self, RANKS - 1, epoch);
    rounds_exchange(self, ep, w->without);
    muster_ep_destroy(ep);
}

static void queue_and_lose_a_rank(struct cluster_rank *self)
{
    const struct worlds *w = self->context;
    muster_ep *ep = rounds_create(self, &c);
    uint32_t epoch = cluster_await_view(self, RANKS, 0).epoch;
    rounds_exchange(self, ep, w->all);
    cluster_barrier(self);
    if (self->rank != VICTIM) {
        meet_unmapped_memory(self, ep, epoch);
        return;
    }
    cluster_barrier(self);
    muster_ep_destroy(ep);
    cluster_die(self);
}

static void promise_5_queued_kernels_touch_no_unmapped_memory(void **state)
{
    (void)state;
    run_each(queue_and_lose_a_rank, 1);
}

/*
 * The same for the rank that leaves: its kernels, which wait for a peer that does not come, are called off before the
 * peers' memory is unmapped.
 */
static void leave_with_kernels_at_work(struct cluster_rank *self, muster_ep *ep)
{
    const struct worlds *w = self->context;
    struct party *p = party_open(w->all, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    enqueue_exchange(self, p, ep);
    if (w->how == 0)
        cluster_pause_ms(self, OPERATION_MS / 4); /* they wait by now; otherwise they may not have begun */
    struct pace pace = pace_begin();
    muster_ep_destroy(ep);
    expect_status(muster_group_leave(self->group), MUSTER_OK, "muster_group_leave");
    int ms = pace_ms(&pace);
    expect(ms < cluster_operation_ms(self) + SLACK_MS, "leaving took %d ms", ms);
    expect_device_well("after leaving with kernels at work");
    party_close(p);
    cluster_part(self);
    expect_device_well("after the group's end");
}

static void leave_early(struct cluster_rank *self)
{
    const struct worlds *w = self->context;
    muster_ep *ep = rounds_create(self, &c);
    uint32_t epoch = cluster_await_view(self, RANKS, 0).epoch;
    rounds_exchange(self, ep, w->all);
    cluster_barrier(self);
    if (self->rank == VICTIM) {
        leave_with_kernels_at_work(self, ep);
        return;
    }
    cluster_await_view(self, RANKS - 1, epoch);
    rounds_exchange(self, ep, w->without);
    expect_device_well("after a peer has left");
    muster_ep_destroy(ep);
}

static void promise_5_a_rank_may_leave_with_kernels_at_work(void **state)
{
    (void)state;
    run_each(leave_early, 2);
}

/* ---- promise 6: a waiting kernel never traps; it records why it gave up once, and returns ---- */

/* Each of the three ways in which a wait ends without what it waits for. */
enum exit_way { EXIT_DEADLINE, EXIT_EPOCH, EXIT_REFUSED, EXITS };

/* VICTIM is in the step, and does not send its part. */
static void keep_waiting(struct cluster_rank *self, muster_ep *ep, enum exit_way way, uint32_t epoch)
{
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    backend_wait();
    cluster_barrier(self); /* all have begun */
    cluster_barrier(self); /* the others' kernels are enqueued */
    cluster_pause_ms(self, OPERATION_MS / 4);
    if (way == EXIT_EPOCH)
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
    if (way == EXIT_REFUSED) {
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
        cluster_verdict(self);
    }
    cluster_barrier(self);
    if (way == EXIT_DEADLINE) { /* suspected, and known to stand still */
        muster_ep_destroy(ep);
        cluster_die(self);
    }
    if (way == EXIT_EPOCH) {
        cluster_await_end(self, epoch);
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
        expect(cluster_verdict(self).status != MUSTER_OK, "the aborted step is good");
    }
}

/*
 * Dispatch fails; combine and the rest, which are enqueued behind it, find the step void and do not replace the record.
 */
static void give_up(struct cluster_rank *self, muster_ep *ep, enum exit_way way, uint32_t epoch)
{
    static const muster_reason reasons[EXITS] = {MUSTER_REASON_TIMEOUT, MUSTER_REASON_EPOCH, MUSTER_REASON_REFUSED};
    const struct worlds *w = self->context;
    struct party *p = party_open(w->all, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    backend_wait();
    cluster_barrier(self);
    struct pace pace = pace_begin();
    enqueue_exchange(self, p, ep);
    cluster_barrier(self);
    muster_verdict v = cluster_verdict(self);
    int ms = pace_ms(&pace);
    bool told_by_others = v.reason == MUSTER_REASON_EPOCH; /* a rank that failed before ended the epoch for all */
    expect_in_time(v.reason == reasons[way] || told_by_others, "reason %d, wanted %d", (int)v.reason,
                   (int)reasons[way]);
    expect_function *about_peer = way == EXIT_DEADLINE ? expect_in_time : expect; /* another was later */
    about_peer(v.reason == MUSTER_REASON_EPOCH || v.peer == VICTIM, "reason %d names peer %d", (int)v.reason,
               (int)v.peer);
    expect(v.epoch == epoch, "the record says epoch %u instead of %u", v.epoch, epoch);
    expect_in_time(v.phase == MUSTER_PHASE_DISPATCH, "the record says phase %d", (int)v.phase);
    expect(ms < cluster_operation_ms(self) + cluster_step_ms(self) + SLACK_MS, "the kernel returned after %d ms", ms);
    expect_device_well("after a wait that failed");
    party_close(p);
    cluster_barrier(self);
}

static void wait_in_vain(struct cluster_rank *self)
{
    const struct worlds *w = self->context;
    enum exit_way way = (enum exit_way)w->how;
    muster_ep *ep = rounds_create(self, &c);
    uint32_t epoch = cluster_await_view(self, RANKS, 0).epoch;
    rounds_exchange(self, ep, w->all);
    cluster_barrier(self);
    if (self->rank == VICTIM)
        keep_waiting(self, ep, way, epoch);
    else
        give_up(self, ep, way, epoch);
    cluster_await_view(self, way == EXIT_DEADLINE ? RANKS - 1 : RANKS, epoch);
    rounds_exchange(self, ep, way == EXIT_DEADLINE ? w->without : w->all);
    expect_device_well("after the next exchange");
    muster_ep_destroy(ep);
}

static void promise_6_a_waiting_kernel_never_traps(void **state)
{
    (void)state;
    run_each(wait_in_vain, EXITS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(promise_5_no_device_error_because_a_peer_died),
        cmocka_unit_test(promise_5_queued_kernels_touch_no_unmapped_memory),
        cmocka_unit_test(promise_5_a_rank_may_leave_with_kernels_at_work),
        cmocka_unit_test(promise_6_a_waiting_kernel_never_traps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
