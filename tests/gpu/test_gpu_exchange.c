// SPDX-License-Identifier: Apache-2.0
/*
 * Exchanges as only a device can have them: inside captured graphs, on the default stream, with counts that are written
 * in stream order; and what a device refuses. What they compute is in test_ep_exchange, which runs on devices too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <cuda_runtime_api.h>
#include <string.h>

#include "core/mask.h"
#include "lib/backend.h"
#include "lib/rounds.h"

enum { RANKS = 4, DEAD = 2, REPLAYS = 5, MAX_SLOTS = 16384 };

static const struct exchange_case masked = {
    .name = "masked on a device", .hidden = 64, .max_tokens = 6, .slots = 2, .topk = 3, .masked = 1};
static const struct exchange_case rank_major = {.name = "captured, in place",
                                                .hidden = 64,
                                                .max_tokens = 6,
                                                .slots = 2,
                                                .topk = 3,
                                                .layout = MUSTER_EP_RANK_MAJOR,
                                                .combine = MUSTER_EP_REDUCED};

static const struct exchange_case too_many_slots = {
    .name = "slots", .hidden = 8, .max_tokens = 1, .slots = MAX_SLOTS + 1, .topk = 1};

/* What they take, and a row, a block of many GPUs has, but not of all. */
static const struct exchange_case many_slots = {
    .name = "many slots", .hidden = 8192, .max_tokens = 1, .slots = 12000, .topk = 1};

struct worlds {
    const struct exchange_case *c;
    struct world *all, *without;
};

static void run_with(const struct exchange_case *c, int ranks, bool checks, cluster_function *function)
{
    struct cluster_options options = {.ranks = ranks,
                                      .memory_bytes = rounds_memory_bytes(c, 1, ranks),
                                      .no_fault_tolerance = !checks};
    struct worlds w = {c, world_make(c, ranks, mask_first(ranks), 1), NULL};
    w.without = world_make(c, ranks, ranks > DEAD ? mask_without(mask_first(ranks), DEAD) : mask_first(ranks), 2);
    assert_true(cluster_run(&options, function, &w));
    world_free(w.all);
    world_free(w.without);
}

static void run(const struct exchange_case *c, int ranks, cluster_function *function)
{
    run_with(c, ranks, true, function);
}

static void must(cudaError_t error, const char *what)
{
    expect(error == cudaSuccess, "%s: %s", what, cudaGetErrorName(error));
}

/* ---- graphs ---- */

/* Captures one pair; the results that combine sends are those that lie in the party's array when the graph runs. */
static cudaGraphExec_t capture_pair(struct cluster_rank *self, struct party *p, muster_ep *ep, bool in_step)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStream_t stream = backend_stream();
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin of capture");
    if (in_step)
        expect_status(muster_step_begin(self->group, stream), MUSTER_OK, "step_begin");
    expect_status(muster_ep_dispatch(ep, &p->dispatch, stream), MUSTER_OK, "dispatch");
    expect_status(muster_ep_combine(ep, &p->combine, stream), MUSTER_OK, "combine");
    if (in_step)
        expect_status(muster_step_end(self->group, stream), MUSTER_OK, "step_end");
    must(cudaStreamEndCapture(stream, &graph), "end of capture");
    must(cudaGraphInstantiate(&exec, graph, 0), "an executable graph");
    cudaGraphDestroy(graph);
    return exec;
}

/* Tokens, routes and masks are the same in every replay, so what the experts made of the first is right for all. */
static void replay(struct cluster_rank *self, cudaGraphExec_t exec, struct party *p)
{
    must(cudaGraphLaunch(exec, backend_stream()), "a launch");
    backend_wait();
    muster_verdict verdict = cluster_verdict(self);
    expect(verdict.status == MUSTER_OK, "a replay: %s, reason %d", muster_status_name(verdict.status),
           (int)verdict.reason);
    party_experts(p); /* of what this replay brought, for the next */
}

/* Nothing of a view is frozen: the same graph is right in the epoch after the one that it was captured in. */
static void captured_pairs(struct cluster_rank *self)
{
    const struct worlds *w = self->context;
    muster_ep *ep = rounds_create(self, w->c);
    uint32_t epoch = cluster_await_view(self, RANKS, 0).epoch;
    for (int in_step = 0; in_step < 2; in_step++) {
        struct party *p = party_open(w->all, self->rank);
        cudaGraphExec_t exec = capture_pair(self, p, ep, in_step);
        cluster_at("replays");
        for (int i = 0; i < REPLAYS; i++)
            replay(self, exec, p);
        expect(party_right(p), "%s", p->why);
        cluster_barrier(self);
        if (self->rank == 1)
            expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
        epoch = cluster_await_view(self, RANKS, epoch).epoch;
        cluster_barrier(self);
        replay(self, exec, p);
        replay(self, exec, p);
        expect(party_right(p), "after a view change: %s", p->why);
        cudaGraphExecDestroy(exec);
        party_close(p);
    }
    rounds_exchange(self, ep, w->all);
    muster_ep_destroy(ep);
}

static void captured_pairs_survive_a_view_change(void **state)
{
    (void)state;
    run(&masked, RANKS, captured_pairs);
    run(&rank_major, RANKS, captured_pairs);
}

/* Masked mode: a graph that was captured with everybody runs without one who died, and says how many routes it dropped. */
static void captured_before_a_death(struct cluster_rank *self)
{
    const struct worlds *w = self->context;
    muster_ep *ep = rounds_create(self, w->c);
    struct party *p = party_open(w->without, self->rank);
    cudaGraphExec_t exec = capture_pair(self, p, ep, true);
    cluster_barrier(self);
    if (self->rank == DEAD) {
        cudaGraphExecDestroy(exec);
        party_close(p);
        muster_ep_destroy(ep);
        cluster_die(self);
    }
    cluster_await_view(self, RANKS - 1, 0);
    cluster_at("replays without a rank");
    for (int i = 0; i < REPLAYS; i++)
        replay(self, exec, p);
    expect(party_right(p), "%s", p->why);
    cudaGraphExecDestroy(exec);
    party_close(p);
    muster_ep_destroy(ep);
}

static void graphs_outlive_a_rank(void **state)
{
    (void)state;
    run(&masked, RANKS, captured_before_a_death);
}

/* ---- without fault tolerance: kernels that check nothing while they wait ---- */

static void exchange_thrice(struct cluster_rank *self)
{
    const struct worlds *w = self->context;
    muster_ep *ep = rounds_create(self, w->c);
    for (int round = 0; round < 3; round++)
        rounds_exchange(self, ep, w->all);
    muster_ep_destroy(ep);
}

static void unchecked_pairs_are_right(void **state)
{
    (void)state;
    static const muster_ep_layout layouts[] = {MUSTER_EP_EXPERT_MAJOR, MUSTER_EP_RANK_MAJOR, MUSTER_EP_FLAT};
    struct exchange_case c = masked;
    c.name = "unchecked";
    c.masked = 0;
    c.tokens = TOKENS_UNEVEN;
    run_with(&c, RANKS, false, exchange_thrice); /* exact */
    c.combine = MUSTER_EP_REDUCED;
    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
        c.layout = layouts[i];
        run_with(&c, RANKS, false, exchange_thrice);
    }
}

/* ---- memory and streams ---- */

/* dropped_routes may lie in pinned memory of the host too, and need not be given. */
static void count_dropped(struct cluster_rank *self)
{
    const struct worlds *w = self->context;
    muster_ep *ep = rounds_create(self, w->c);
    int32_t *pinned;
    must(cudaHostAlloc((void **)&pinned, sizeof(*pinned), cudaHostAllocMapped | cudaHostAllocPortable),
         "pinned memory");
    *pinned = -1;
    cluster_barrier(self);
    muster_mask without = mask_without(mask_first(RANKS), DEAD);
    for (int round = 0; round < 2 && self->rank != DEAD; round++) {
        struct party *p = party_open(w->without, self->rank);
        int32_t *on_device = p->dispatch.dropped_routes;
        expect_status(muster_ep_set_mask(ep, without, backend_stream()), MUSTER_OK, "muster_ep_set_mask");
        p->dispatch.dropped_routes = round == 0 ? pinned : NULL;
        expect_status(party_exchange(p, ep), MUSTER_OK, "an exchange");
        expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
        expect(*pinned == w->without->dropped[self->rank], "dropped_routes is %d, should be %d", (int)*pinned,
               w->without->dropped[self->rank]);
        test_backend->copy(on_device, pinned, sizeof(*pinned)); /* what party_right() compares */
        expect(party_right(p), "%s", p->why);
        party_close(p);
    }
    cluster_barrier(self);
    must(cudaFreeHost(pinned), "cudaFreeHost");
    muster_ep_destroy(ep);
}

static void dropped_routes_may_be_pinned(void **state)
{
    (void)state;
    run(&masked, RANKS, count_dropped);
}

/* NULL is the default stream of CUDA. One rank: ranks that share a device would wait for each other on it. */
static void use_default_stream(struct cluster_rank *self)
{
    const struct worlds *w = self->context;
    muster_ep *ep = rounds_create(self, w->c);
    struct party *p = party_open(w->all, self->rank);
    for (int i = 0; i < 2; i++) {
        expect_status(muster_ep_dispatch(ep, &p->dispatch, NULL), MUSTER_OK, "dispatch");
        must(cudaStreamSynchronize(NULL), "the default stream");
        party_experts(p);
        expect_status(muster_ep_combine(ep, &p->combine, NULL), MUSTER_OK, "combine");
        must(cudaStreamSynchronize(NULL), "the default stream");
        expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
        expect(party_right(p), "%s", p->why);
    }
    party_close(p);
    muster_ep_destroy(ep);
}

static void one_rank_on_the_default_stream(void **state)
{
    (void)state;
    run(&rank_major, 1, use_default_stream);
}

/* ---- what a device refuses ---- */

static void refuse_slots(struct cluster_rank *self)
{
    muster_ep_config config = case_config(&too_many_slots);
    muster_ep *ep = NULL;
    expect_status(muster_ep_create(self->group, &config, &ep), MUSTER_ERR_UNSUPPORTED, "too many slots");
    expect(strstr(muster_last_error(), "slots_per_rank") && strstr(muster_last_error(), "16384") && !ep,
           "the error does not say why: %s", muster_last_error());
}

static void one_rank_refuses_too_many_slots(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = 1, .memory_bytes = rounds_memory_bytes(&too_many_slots, 1, 1)};
    assert_true(cluster_run(&options, refuse_slots, NULL));
}

/* Where a block has less, a plan without any stage would lay out nothing. */
static void refuse_slots_without_room(struct cluster_rank *self)
{
    enum { ENOUGH_BYTES = 160 << 10 };
    int shared_bytes = 0;
    muster_ep_config config = case_config(&many_slots);
    muster_ep *ep = NULL;
    expect(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess,
           "no attribute");
    bool room = shared_bytes >= ENOUGH_BYTES;
    expect_status(muster_ep_create(self->group, &config, &ep), room ? MUSTER_OK : MUSTER_ERR_UNSUPPORTED, "many slots");
    expect(room || (strstr(muster_last_error(), "slots_per_rank = 12000") &&
                    strstr(muster_last_error(), "bytes of shared memory") && !ep),
           "the error does not say why: %s", muster_last_error());
    muster_ep_destroy(ep);
}

static void one_rank_refuses_slots_without_room(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = 1, .memory_bytes = rounds_memory_bytes(&many_slots, 1, 1)};
    assert_true(cluster_run(&options, refuse_slots_without_room, NULL));
}

static void refuse_device(struct cluster_rank *self)
{
    muster_group_config config = cluster_config(self);
    config.device = 1000;
    expect_status(cluster_join(self, &config), MUSTER_ERR_ARGUMENT, "a device that is not there");
    expect(strstr(muster_last_error(), "config.device = 1000"), "the error does not say why: %s", muster_last_error());
}

static void one_rank_refuses_a_device_that_is_not_there(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = 1, .memory_bytes = 1 << 20, .no_groups = 1};
    assert_true(cluster_run(&options, refuse_device, NULL));
}

/* An argument, if there is one, chooses tests by their names: "one_rank*" are those for compute-sanitizer. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(captured_pairs_survive_a_view_change),
        cmocka_unit_test(graphs_outlive_a_rank),
        cmocka_unit_test(unchecked_pairs_are_right),
        cmocka_unit_test(dropped_routes_may_be_pinned),
        cmocka_unit_test(one_rank_on_the_default_stream),
        cmocka_unit_test(one_rank_refuses_too_many_slots),
        cmocka_unit_test(one_rank_refuses_slots_without_room),
        cmocka_unit_test(one_rank_refuses_a_device_that_is_not_there),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
