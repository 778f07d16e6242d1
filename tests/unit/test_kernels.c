// SPDX-License-Identifier: Apache-2.0
/*
 * The kernels of the CPU backend on plain structs: a few ranks in one process, without groups or stores. Sends do not
 * wait, so one thread can be all ranks in turn; what waits gets a thread of its own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/fault.h"
#include "ep/shape.h"
#include "kernels/cpu/exchange.h"
#include "kernels/cpu/wait.h"
#include "kernels/kernels.h"
#include "lib/pace.h"

enum { RANKS = 3, TOKENS = 5, TOPK = 3, SLOTS = 2, HIDDEN = 8, EPOCH = 7, CANARY = 0x5a };
#define MS UINT64_C(1000000)

struct rank {
    struct kernel_control control;
    struct kernel_step step;
    void *exchange;
    unsigned char *region;
    float hidden[TOKENS][HIDDEN];
    int64_t slots[TOKENS][TOPK];
    float weights[TOKENS][TOPK];
    int32_t dropped;
    float out_hidden[SLOTS * RANKS * TOKENS * HIDDEN];
    int32_t counts[RANKS + SLOTS], source[SLOTS * RANKS * TOKENS][2], out_slots[RANKS * TOKENS][TOPK];
    int64_t ranges[SLOTS][RANKS];
    float out_weights[RANKS * TOKENS][TOPK];
    float out[TOKENS][HIDDEN];
};

struct world {
    struct exchange_shape shape;
    unsigned char *peers[RANKS];
    struct rank rank[RANKS];
};

static const muster_ep_config expert_major = {
    .size = sizeof(muster_ep_config),
    .hidden = HIDDEN,
    .dtype = {MUSTER_TYPE_FLOAT, 32, 1},
    .max_tokens = TOKENS,
    .slots_per_rank = SLOTS,
    .topk = TOPK,
};

static muster_ep_config rank_major(void)
{
    muster_ep_config config = expert_major;
    config.layout = MUSTER_EP_RANK_MAJOR;
    config.combine = MUSTER_EP_REDUCED;
    return config;
}

static void rank_open(struct world *w, int r)
{
    struct rank *rank = &w->rank[r];
    atomic_store(&rank->control.live_epoch, EPOCH);
    atomic_store(&rank->control.operation_timeout_ns, 2000 * MS);
    atomic_store(&rank->control.step_timeout_ns, 4000 * MS);
    rank->control.spin = 100;
    rank->step = (struct kernel_step){&rank->control, EPOCH, 0, r, RANKS, mask_first(RANKS), w->peers};
    rank->exchange = cpu_kernel_ops.exchange_create(&w->shape);
    assert_non_null(rank->exchange);
    for (int t = 0; t < TOKENS; t++)
        for (int k = 0; k < TOPK; k++) {
            rank->slots[t][k] = -1;
            rank->weights[t][k] = 1.0f;
        }
    for (int t = 0; t < TOKENS; t++)
        for (int h = 0; h < HIDDEN; h++)
            rank->hidden[t][h] = (float)(1000 * r + 10 * t + h);
}

static struct world *world_open(const muster_ep_config *config)
{
    struct world *w = calloc(1, sizeof(*w));
    assert_non_null(w);
    assert_int_equal(shape_check(config, RANKS), MUSTER_OK);
    shape_make(config, RANKS, sizeof(struct region_header), &w->shape);
    for (int r = 0; r < RANKS; r++) {
        w->peers[r] = w->rank[r].region = aligned_alloc(64, (w->shape.end + 63) / 64 * 64);
        assert_non_null(w->peers[r]);
        memset(w->peers[r], 0, w->shape.end);
    }
    for (int r = 0; r < RANKS; r++)
        rank_open(w, r);
    return w;
}

static void world_close(struct world *w)
{
    for (int r = 0; r < RANKS; r++) {
        cpu_kernel_ops.exchange_destroy(w->rank[r].exchange);
        free(w->rank[r].region);
    }
    free(w);
}

/* Routes token t of rank r to three slots; -1: none. */
static void route(struct world *w, int r, int t, int64_t a, int64_t b, int64_t c)
{
    const int64_t slots[TOPK] = {a, b, c};
    memcpy(w->rank[r].slots[t], slots, sizeof(slots));
}

static uint64_t stamp(uint64_t pair)
{
    return stamp_make(EPOCH, pair + 1);
}

static void send_tokens(struct world *w, int r, uint64_t pair)
{
    struct rank *rank = &w->rank[r];
    struct dispatch_send_args args = {
        .stamp = stamp(pair),
        .tokens = TOKENS,
        .input = {{(const unsigned char *)rank->hidden, sizeof(rank->hidden[0])}},
        .topk_slots = {(const unsigned char *)rank->slots, sizeof(rank->slots[0])},
        .wide = true,
        .topk_weights = {(const unsigned char *)rank->weights, sizeof(rank->weights[0])},
        .dropped_routes = &rank->dropped,
    };
    cpu_kernel_ops.dispatch_send(rank->exchange, &rank->step, &args);
}

static void receive_tokens(struct world *w, int r, uint64_t pair)
{
    struct rank *rank = &w->rank[r];
    struct dispatch_receive_args args = {
        .stamp = stamp(pair),
        .output = {(unsigned char *)rank->out_hidden},
        .counts = rank->counts,
        .source = &rank->source[0][0],
        .invalid_id = -1,
    };
    if (w->shape.expert_major) {
        args.ranges = &rank->ranges[0][0];
    } else {
        args.slots = &rank->out_slots[0][0];
        args.weights = &rank->out_weights[0][0];
    }
    cpu_kernel_ops.dispatch_receive(rank->exchange, &rank->step, &args);
}

static void send_results(struct world *w, int r, uint64_t pair)
{
    struct rank *rank = &w->rank[r];
    size_t rows = w->shape.expert_major ? RANKS * TOKENS : w->shape.flat ? 0 : TOKENS;
    struct combine_send_args args = {.stamp = stamp(pair),
                                     .results = {(const unsigned char *)rank->out_hidden, sizeof(rank->hidden[0])},
                                     .block_stride = rows * sizeof(rank->hidden[0])};
    cpu_kernel_ops.combine_send(rank->exchange, &rank->step, &args);
}

static void receive_results(struct world *w, int r, uint64_t pair)
{
    struct rank *rank = &w->rank[r];
    struct combine_receive_args args = {.stamp = stamp(pair), .out = (unsigned char *)rank->out};
    cpu_kernel_ops.combine_receive(rank->exchange, &rank->step, &args);
}

typedef void half(struct world *w, int r, uint64_t pair);

static void on_ranks(struct world *w, muster_mask mask, half *function, uint64_t pair)
{
    for (int r = mask_next(mask, 0); r >= 0; r = mask_next(mask, r + 1))
        function(w, r, pair);
}

static void exchange(struct world *w, muster_mask mask, uint64_t pair)
{
    on_ranks(w, mask, send_tokens, pair);
    on_ranks(w, mask, receive_tokens, pair);
    on_ranks(w, mask, send_results, pair);
    on_ranks(w, mask, receive_results, pair);
}

static void assert_failure(const struct rank *rank, muster_reason reason, muster_phase phase, int peer)
{
    uint64_t failure = atomic_load(&rank->control.failure);
    assert_int_equal(failure_reason(failure), reason);
    assert_int_equal(failure_phase(failure), phase);
    assert_int_equal(failure_peer(failure), peer);
    assert_int_equal(failure_epoch(failure), EPOCH);
}

static void assert_good(const struct world *w)
{
    for (int r = 0; r < RANKS; r++)
        assert_int_equal(atomic_load(&w->rank[r].control.failure), 0);
}

/* --------------------------------------------------------------------------------------------- dispatch and combine */

/* Experts that change nothing: a token comes back once per route. */
static void assert_identity(const struct world *w, muster_mask mask)
{
    for (int r = mask_next(mask, 0); r >= 0; r = mask_next(mask, r + 1))
        for (int t = 0; t < TOKENS; t++) {
            int routes = 0;
            for (int k = 0; k < TOPK; k++) {
                int64_t slot = w->rank[r].slots[t][k];
                routes += slot >= 0 && mask_has(mask, (int)(slot / SLOTS));
            }
            for (int h = 0; h < HIDDEN; h++)
                assert_true(w->rank[r].out[t][h] == (float)routes * w->rank[r].hidden[t][h]);
        }
}

static void set_routes(struct world *w)
{
    for (int r = 0; r < RANKS; r++) {
        route(w, r, 0, 0, 3, 5);
        route(w, r, 1, 4, -1, 5);
        route(w, r, 3, 2, 1, 0);
        route(w, r, 4, -1, -1, r);
    }
}

static void every_route_comes_home(void **state)
{
    (void)state;
    for (int combine = MUSTER_EP_EXACT; combine <= MUSTER_EP_REDUCED; combine++) {
        muster_ep_config config = expert_major;
        config.combine = (muster_ep_combine_mode)combine;
        struct world *w = world_open(&config);
        set_routes(w);
        for (uint64_t pair = 0; pair < 4; pair++) {
            exchange(w, mask_first(RANKS), pair);
            assert_good(w);
            assert_identity(w, mask_first(RANKS));
        }
        world_close(w);
    }
}

static void rows_lie_in_source_and_token_order(void **state)
{
    (void)state;
    struct world *w = world_open(&expert_major);
    set_routes(w);
    on_ranks(w, mask_first(RANKS), send_tokens, 0);
    on_ranks(w, mask_first(RANKS), receive_tokens, 0);
    const struct rank *rank = &w->rank[0];
    /* Slot 0: tokens 0 and 3 of everyone, and token 4 of rank 0. */
    const int32_t expected[][2] = {{0, 0}, {0, 3}, {0, 4}, {1, 0}, {1, 3}, {2, 0}, {2, 3}};
    assert_int_equal(rank->counts[0], 7);
    assert_memory_equal(rank->source, expected, sizeof(expected));
    assert_int_equal(rank->ranges[0][0], 3);
    assert_int_equal(rank->ranges[0][1], INT64_C(3) << 32 | 2);
    assert_int_equal(rank->ranges[0][2], INT64_C(5) << 32 | 2);
    for (int i = 0; i < 7; i++)
        assert_memory_equal(rank->out_hidden + i * HIDDEN, w->rank[expected[i][0]].hidden[expected[i][1]],
                            sizeof(rank->hidden[0]));
    world_close(w);
}

/* X4: flags go to every active rank, rows or none. */
static void flags_go_out_without_rows(void **state)
{
    (void)state;
    struct world *w = world_open(&expert_major);
    route(w, 0, 0, 0, -1, -1); /* local only; the others send nothing at all */
    exchange(w, mask_first(RANKS), 0);
    assert_good(w);
    assert_identity(w, mask_first(RANKS));
    for (int r = 0; r < RANKS; r++)
        for (int p = 0; p < RANKS; p++) {
            assert_int_equal(exchange_lines(&w->rank[r].step, r, w->shape.dispatch_line)[p].flag, stamp(0));
            assert_int_equal(exchange_lines(&w->rank[r].step, r, w->shape.combine_line)[p].flag, stamp(0));
        }
    world_close(w);
}

/* The marks that tell tokens apart come round after 2^32 tokens; nothing is then taken for a duplicate. */
static void marks_come_round(void **state)
{
    (void)state;
    struct world *w = world_open(&expert_major);
    set_routes(w);
    for (int r = 0; r < RANKS; r++)
        ((struct cpu_exchange *)w->rank[r].exchange)->plan.mark = UINT32_MAX - 2 * TOKENS - 1;
    for (uint64_t pair = 0; pair < 5; pair++)
        exchange(w, mask_first(RANKS), pair);
    assert_good(w);
    assert_identity(w, mask_first(RANKS));
    world_close(w);
}

/* ----------------------------------------------------------------------------------------------------- masked ranks */

static void leave_out(struct world *w, int out)
{
    for (int r = 0; r < RANKS; r++)
        w->rank[r].step.mask = mask_without(mask_first(RANKS), out);
}

static void inactive_ranks_get_nothing_and_read_as_nothing(void **state)
{
    (void)state;
    muster_ep_config config = rank_major();
    config.masked = 1;
    struct world *w = world_open(&config);
    set_routes(w);
    exchange(w, mask_first(RANKS), 0); /* leaves rows and counts of rank 2 behind */
    leave_out(w, 2);
    unsigned char *before = malloc(w->shape.end);
    assert_non_null(before);
    memcpy(before, w->peers[2], w->shape.end);
    muster_mask two = mask_first(2);
    on_ranks(w, two, send_tokens, 1);
    w->peers[2] = NULL; /* nor is it read */
    on_ranks(w, two, receive_tokens, 1);
    on_ranks(w, two, send_results, 1);
    on_ranks(w, two, receive_results, 1);
    assert_memory_equal(before, w->rank[2].region, w->shape.end);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(atomic_load(&w->rank[r].control.failure), 0);
        assert_int_equal(w->rank[r].dropped, 3); /* slots 4 and 5: one of token 0, two of token 1 */
        assert_int_equal(w->rank[r].counts[2], 0);
    }
    free(before);
    world_close(w);
}

static struct world *left_out_world;

/* Ranks 0 and 1 begin their next pair without rank 2, and their callers write over all results. */
static void go_on_without_rank_2(enum fault_point point)
{
    (void)point;
    leave_out(left_out_world, 2);
    on_ranks(left_out_world, mask_first(2), send_tokens, 1);
    for (int r = 0; r < 2; r++)
        memset(left_out_world->peers[r] + left_out_world->shape.results, 0x5a, RANKS * TOKENS * sizeof(float[HIDDEN]));
}

/* X16: rank 2 has every flag and is about to read. SIGCONT does nothing to a process that runs. */
static void results_that_change_while_they_are_read_void_the_step(void **state)
{
    (void)state;
    muster_ep_config config = rank_major();
    config.masked = 1;
    struct world *w = left_out_world = world_open(&config);
    set_routes(w);
    on_ranks(w, mask_first(RANKS), send_tokens, 0);
    on_ranks(w, mask_first(RANKS), receive_tokens, 0);
    on_ranks(w, mask_first(RANKS), send_results, 0);
    on_ranks(w, mask_first(2), receive_results, 0);
    struct kernel_step step = w->rank[2].step;
    fault_observe(go_on_without_rank_2);
    fault_arm(FAULT_COMBINE_WAITED, SIGCONT, 1);
    struct combine_receive_args args = {.stamp = stamp(0), .out = (unsigned char *)w->rank[2].out};
    cpu_kernel_ops.combine_receive(w->rank[2].exchange, &step, &args);
    fault_observe(NULL);
    fault_arm(FAULT_NONE, 0, 1);
    assert_failure(&w->rank[2], MUSTER_REASON_LEFT_OUT, MUSTER_PHASE_COMBINE, 0);
    world_close(w);
}

/* ------------------------------------------------------------------------------------------------------ bad entries */

/* X11 */
static void bad_entries_send_nothing(void **state)
{
    (void)state;
    const struct {
        int64_t a, b, c;
        int k;
    } bad[] = {
        {0, 6, -1, 1}, /* too large */
        {-2, 0, 1, 0}, /* too small */
        {1, -1, 1, 2}, /* twice */
        {0, 1, (INT64_C(1) << 32) + 1, 2}, /* 1, if cut to 32 bits */
        {0, 4, 1, 1}, /* on rank 2, which is inactive */
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct world *w = world_open(&expert_major);
        leave_out(w, 2);
        for (int r = 0; r < RANKS; r++)
            memset(w->peers[r], CANARY, w->shape.end);
        route(w, 0, 0, 0, 2, -1);
        route(w, 0, 3, bad[i].a, bad[i].b, bad[i].c);
        send_tokens(w, 0, 0);
        assert_failure(&w->rank[0], MUSTER_REASON_VALUE, MUSTER_PHASE_DISPATCH, -1);
        assert_int_equal(atomic_load(&w->rank[0].control.failure_detail), UINT64_C(3) << 32 | (uint64_t)bad[i].k);
        for (int r = 0; r < RANKS; r++)
            for (size_t b = 0; b < w->shape.end; b++)
                assert_int_equal(w->peers[r][b], CANARY);
        world_close(w);
    }
}

/* -------------------------------------------------------------------------------------------------------- mad peers */

enum madness { MAD_ROWS, MAD_MASK, MAD_SLOT, MAD_NEGATIVE_SLOT, MAD_TWIN_SLOTS, MAD_TOKEN, MADNESSES };

/* What rank 1 has sent to rank 0 is spoilt in rank 0's memory. */
static void go_mad(struct world *w, enum madness madness)
{
    struct exchange_line *line = &exchange_lines(&w->rank[0].step, 0, w->shape.dispatch_line)[1];
    int32_t *token = (int32_t *)(void *)(w->peers[0] + w->shape.row_token) + TOKENS;
    int32_t *slot = (int32_t *)(void *)(w->peers[0] + w->shape.row_slot) + TOKENS * TOPK;
    switch (madness) {
    case MAD_ROWS: line->rows = TOKENS + 1; break;
    case MAD_MASK: line->mask[0] ^= 4; break;
    case MAD_SLOT: slot[0] = SLOTS; break;
    case MAD_NEGATIVE_SLOT: slot[1] = -2; break;
    case MAD_TWIN_SLOTS: slot[0] = slot[1] = slot[2] = 1; break;
    case MAD_TOKEN: token[0] = TOKENS; break;
    default: fail();
    }
}

/* X9 */
static void mad_peers_are_refused(void **state)
{
    (void)state;
    const muster_ep_config configs[] = {expert_major, rank_major()};
    for (size_t c = 0; c < 2; c++)
        for (int madness = 0; madness < MADNESSES; madness++) {
            struct world *w = world_open(&configs[c]);
            if (c == 1 && madness == MAD_TWIN_SLOTS) { /* harmless: nothing is fanned out */
                world_close(w);
                continue;
            }
            route(w, 1, 0, 0, -1, -1);
            on_ranks(w, mask_first(RANKS), send_tokens, 0);
            go_mad(w, (enum madness)madness);
            receive_tokens(w, 0, 0);
            assert_failure(&w->rank[0], MUSTER_REASON_VALUE, MUSTER_PHASE_DISPATCH, 1);
            world_close(w);
        }
}

/* X9: flat: where a peer has this rank's results is for it to say, within its array. */
static void mad_places_are_refused(void **state)
{
    (void)state;
    muster_ep_config config = rank_major();
    config.layout = MUSTER_EP_FLAT;
    const struct {
        uint32_t first;
        bool possible;
    } places[] = {{RANKS * TOKENS - 2, true}, {RANKS * TOKENS - 1, false}, {UINT32_MAX, false}};
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        struct world *w = world_open(&config);
        route(w, 0, 0, 2, -1, -1); /* two rows to rank 1 */
        route(w, 0, 1, 3, -1, -1);
        on_ranks(w, mask_first(RANKS), send_tokens, 0);
        on_ranks(w, mask_first(RANKS), receive_tokens, 0);
        on_ranks(w, mask_first(RANKS), send_results, 0);
        exchange_lines(&w->rank[0].step, 0, w->shape.combine_line)[1].first = places[i].first;
        receive_results(w, 0, 0);
        if (places[i].possible)
            assert_good(w);
        else
            assert_failure(&w->rank[0], MUSTER_REASON_VALUE, MUSTER_PHASE_COMBINE, 1);
        world_close(w);
    }
}

/* X8: a rank that has left an operation out is one pair behind; its next dispatch is not the one that it owes. */
static void dispatches_of_another_step_are_refused(void **state)
{
    (void)state;
    struct world *w = world_open(&expert_major);
    set_routes(w);
    w->rank[1].step.number = 1;
    on_ranks(w, mask_first(RANKS), send_tokens, 0);
    on_ranks(w, mask_first(RANKS), receive_tokens, 0);
    assert_failure(&w->rank[0], MUSTER_REASON_REFUSED, MUSTER_PHASE_DISPATCH, 1);
    assert_failure(&w->rank[1], MUSTER_REASON_REFUSED, MUSTER_PHASE_DISPATCH, 0);
    assert_failure(&w->rank[2], MUSTER_REASON_REFUSED, MUSTER_PHASE_DISPATCH, 1);
    world_close(w);
}

/* X9: what a peer stores after the check has no effect. */
static void plans_are_copied_before_they_are_checked(void **state)
{
    (void)state;
    for (int combine = MUSTER_EP_EXACT; combine <= MUSTER_EP_REDUCED; combine++) {
        muster_ep_config config = expert_major;
        config.combine = (muster_ep_combine_mode)combine;
        struct world *w = world_open(&config);
        set_routes(w);
        on_ranks(w, mask_first(RANKS), send_tokens, 0);
        on_ranks(w, mask_first(RANKS), receive_tokens, 0);
        size_t routes = RANKS * TOKENS * TOPK * sizeof(int32_t);
        memset(w->peers[0] + w->shape.row_slot, 0x77, routes);
        memset(w->peers[0] + w->shape.row_weight, 0x77, routes);
        memset(w->peers[0] + w->shape.row_token, 0x77, RANKS * TOKENS * sizeof(int32_t));
        on_ranks(w, mask_first(RANKS), send_results, 0);
        on_ranks(w, mask_first(RANKS), receive_results, 0);
        assert_good(w);
        assert_identity(w, mask_first(RANKS));
        world_close(w);
    }
}

/* ------------------------------------------------------------------------------------------------------------ waits */

struct waiter {
    struct world *w;
    muster_mask mask;
    pthread_t thread;
    struct pace pace; /* from before the wait */
    int soon_ms; /* how long it took, without what the machine took */
    uint64_t elapsed_ns;
    bool arrived;
};

static void *wait_in_thread(void *context)
{
    struct waiter *waiter = context;
    struct rank *rank = &waiter->w->rank[0];
    waiter->pace = pace_begin();
    uint64_t start_ns = clock_ns();
    waiter->arrived = wait_lines(&rank->step, exchange_lines(&rank->step, 0, waiter->w->shape.dispatch_line), stamp(0),
                                 waiter->mask, MUSTER_PHASE_DISPATCH);
    waiter->elapsed_ns = clock_ns() - start_ns;
    waiter->soon_ms = pace_ms(&waiter->pace);
    return NULL;
}

static void waiter_start(struct waiter *waiter)
{
    assert_int_equal(pthread_create(&waiter->thread, NULL, wait_in_thread, waiter), 0);
}

static void waiter_join(struct waiter *waiter)
{
    assert_int_equal(pthread_join(waiter->thread, NULL), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(atomic_load(&waiter->w->rank[0].control.waiting_for[i]), 0);
    assert_int_equal(atomic_load(&waiter->w->rank[0].control.waiting_since_ns), 0);
}

static void set_timeouts(struct world *w, uint64_t operation_ms, uint64_t step_ms)
{
    atomic_store(&w->rank[0].control.operation_timeout_ns, operation_ms * MS);
    atomic_store(&w->rank[0].control.step_timeout_ns, step_ms * MS);
}

static void peer_step_word(struct world *w, int peer, uint64_t sequence)
{
    struct region_header *header = (struct region_header *)(void *)w->peers[0];
    atomic_store(&header->step_word[peer].word, stamp_make(EPOCH, sequence));
}

static void peer_raise(struct world *w, int peer)
{
    atomic_store(&exchange_lines(&w->rank[0].step, 0, w->shape.dispatch_line)[peer].flag, stamp(0));
}

static void waits_publish_whom_they_wait_for(void **state)
{
    (void)state;
    struct world *w = world_open(&expert_major);
    struct waiter waiter = {.w = w, .mask = mask_first(RANKS)};
    set_timeouts(w, PACE_PATIENCE_MS, PACE_PATIENCE_MS);
    waiter_start(&waiter);
    struct kernel_control *control = &w->rank[0].control;
    while (atomic_load(&control->waiting_for[0]) != 7)
        pace_sleep_ms(1);
    assert_true(atomic_load(&control->waiting_since_ns) > 0);
    peer_raise(w, 0);
    peer_raise(w, 2);
    while (atomic_load(&control->waiting_for[0]) != 2)
        pace_sleep_ms(1);
    peer_raise(w, 1);
    waiter_join(&waiter);
    assert_true(waiter.arrived);
    assert_good(w);
    world_close(w);
}

static void waits_end_with_the_epoch(void **state)
{
    (void)state;
    struct world *w = world_open(&expert_major);
    struct waiter waiter = {.w = w, .mask = mask_first(RANKS)};
    set_timeouts(w, PACE_PATIENCE_MS, PACE_PATIENCE_MS);
    waiter_start(&waiter);
    pace_sleep_ms(20); /* it waits by now, most likely */
    atomic_store(&w->rank[0].control.live_epoch, EPOCH + 1);
    waiter_join(&waiter);
    assert_false(waiter.arrived);
    assert_true(waiter.soon_ms < 1000);
    assert_failure(&w->rank[0], MUSTER_REASON_EPOCH, MUSTER_PHASE_DISPATCH, -1);
    world_close(w);
}

/* X1, M11: what has come is finished although the epoch has ended, but not for long. */
static void what_has_come_is_finished_for_a_moment(void **state)
{
    (void)state;
    struct world *w = world_open(&expert_major);
    const struct kernel_step *step = &w->rank[0].step;
    uint64_t ended_ns = 0;
    assert_true(wait_may_finish(step, MUSTER_PHASE_COMBINE, &ended_ns));
    pace_sleep_ms(150);
    assert_true(wait_may_finish(step, MUSTER_PHASE_COMBINE, &ended_ns));
    atomic_store(&w->rank[0].control.live_epoch, EPOCH + 1);
    assert_true(wait_may_finish(step, MUSTER_PHASE_COMBINE, &ended_ns));
    assert_int_equal(atomic_load(&w->rank[0].control.failure), 0);
    pace_sleep_ms(150);
    assert_false(wait_may_finish(step, MUSTER_PHASE_COMBINE, &ended_ns));
    assert_failure(&w->rank[0], MUSTER_REASON_EPOCH, MUSTER_PHASE_COMBINE, -1);
    world_close(w);
}

/* X2: a peer inside the step gets the operation's deadline; one that has not come to it gets the step's. */
static void waits_end_at_the_deadline(void **state)
{
    (void)state;
    const struct {
        uint64_t begun, least_ms;
    } cases[] = {{1, 30}, {0, 120}};
    for (size_t i = 0; i < 2; i++) {
        struct world *w = world_open(&expert_major);
        struct waiter waiter = {.w = w, .mask = mask_first(RANKS)};
        set_timeouts(w, 30, 120);
        peer_raise(w, 0);
        peer_step_word(w, 1, cases[i].begun);
        peer_step_word(w, 2, cases[i].begun);
        waiter_start(&waiter);
        waiter_join(&waiter);
        assert_false(waiter.arrived);
        assert_failure(&w->rank[0], MUSTER_REASON_TIMEOUT, MUSTER_PHASE_DISPATCH, 1);
        assert_int_equal(atomic_load(&w->rank[0].control.overdue[0]), 6);
        assert_true(waiter.elapsed_ns >= cases[i].least_ms * MS);
        world_close(w);
    }
}

/* Whether the late rank's flag was waited for. It has its time from when it comes, of which it takes a sixth. */
static bool late_rank_has_its_time(int operation_ms, int *kept_ms)
{
    struct world *w = world_open(&expert_major);
    struct waiter waiter = {.w = w, .mask = mask_with(mask_first(1), 1)};
    set_timeouts(w, (uint64_t)operation_ms, PACE_PATIENCE_MS);
    peer_raise(w, 0);
    waiter_start(&waiter);
    pace_sleep_ms(operation_ms * 5 / 2);
    struct pace pace = pace_begin();
    peer_step_word(w, 1, 1);
    pace_sleep_ms(operation_ms / 6);
    peer_raise(w, 1);
    *kept_ms = pace_kept_ms(&pace);
    waiter_join(&waiter);
    if (waiter.arrived)
        assert_good(w);
    world_close(w);
    return waiter.arrived;
}

/* X2: a rank that comes to the step late is not overdue at once, though the wait is old. */
static void late_ranks_have_their_time(void **state)
{
    (void)state;
    int stretch = 1, kept_ms;
    while (!late_rank_has_its_time(60 * stretch, &kept_ms))
        if (!pace_again(kept_ms, 60 * stretch, &stretch))
            fail_msg("a rank that came late was overdue at once");
}

/* X3 */
static void refusals_are_seen_at_once(void **state)
{
    (void)state;
    struct world *w = world_open(&expert_major);
    struct waiter waiter = {.w = w, .mask = mask_first(RANKS)};
    peer_raise(w, 0);
    peer_raise(w, 2);
    peer_step_word(w, 2, 2); /* ended, after its flag: fine */
    peer_step_word(w, 1, 2); /* ended without its flag */
    set_timeouts(w, PACE_PATIENCE_MS, PACE_PATIENCE_MS);
    waiter_start(&waiter);
    waiter_join(&waiter);
    assert_false(waiter.arrived);
    assert_true(waiter.soon_ms < 1000);
    assert_failure(&w->rank[0], MUSTER_REASON_REFUSED, MUSTER_PHASE_DISPATCH, 1);
    world_close(w);
}

/* Promise 6: the first failure stays. */
static void first_failure_stays(void **state)
{
    (void)state;
    struct world *w = world_open(&expert_major);
    struct waiter waiter = {.w = w, .mask = mask_first(RANKS)};
    failure_record(&w->rank[0].control, failure_pack(MUSTER_REASON_ABORT, MUSTER_PHASE_STEP, -1, EPOCH));
    peer_step_word(w, 1, 2);
    waiter_start(&waiter);
    waiter_join(&waiter);
    assert_failure(&w->rank[0], MUSTER_REASON_ABORT, MUSTER_PHASE_STEP, -1);
    world_close(w);
}

/* Promise 4: a flag of an older epoch, however far its sequence had come, is short. */
static void old_epochs_are_never_taken_for_new(void **state)
{
    (void)state;
    struct world *w = world_open(&expert_major);
    struct waiter waiter = {.w = w, .mask = mask_first(RANKS)};
    for (int p = 0; p < RANKS; p++)
        atomic_store(&exchange_lines(&w->rank[0].step, 0, w->shape.dispatch_line)[p].flag,
                     stamp_make(EPOCH - 1, STAMP_MAX_SEQUENCE));
    set_timeouts(w, 10, 20);
    waiter_start(&waiter);
    waiter_join(&waiter);
    assert_false(waiter.arrived);
    world_close(w);
}

/* ----------------------------------------------------------------------------------------------------- fault points */

static void fault_points_come_in_their_order(void **state)
{
    (void)state;
    int pipes[2];
    char text[16], seen[4096] = "", expected[4096] = "";
    assert_int_equal(pipe(pipes), 0);
    snprintf(text, sizeof(text), "%d", pipes[1]);
    assert_int_equal(setenv("MUSTER_FAULT_LIST", text, 1), 0);
    fault_configure();
    unsetenv("MUSTER_FAULT_LIST");
    struct world *w = world_open(&expert_major);
    set_routes(w);
    exchange(w, mask_first(RANKS), 0);
    close(pipes[1]);
    assert_true(read(pipes[0], seen, sizeof(seen) - 1) > 0);
    close(pipes[0]);
    fault_arm(FAULT_NONE, 0, 1);
    for (int point = FAULT_DISPATCH_ENTRY; point <= FAULT_COMBINE_DONE; point++) {
        strcat(expected, fault_name((enum fault_point)point));
        strcat(expected, "\n");
    }
    assert_string_equal(seen, expected);
    world_close(w);
}

/* ------------------------------------------------------------------------------------------------------------ shape */

static void areas_do_not_overlap(void **state)
{
    (void)state;
    muster_ep_config config = rank_major();
    config.quantise = MUSTER_EP_QUANTISE_FP8;
    config.load_stats = 1;
    config.payload_count = 1;
    config.payload[0] = (muster_ep_payload){"one", 3, {MUSTER_TYPE_UINT, 8, 1}};
    struct exchange_shape s;
    shape_make(&config, RANKS, 4096, &s);
    const uint64_t begin[] = {
        s.dispatch_line,   s.combine_line,    s.loads,           s.row_token,    s.row_slot,     s.row_weight,
        s.array[0].offset, s.array[1].offset, s.array[2].offset, s.results,      s.home,         s.told,
        s.row_index,       s.row_flag,        s.arrived,         s.arrived_flag, s.state,        s.counted,
        s.rows_from,       s.rows_before,     s.token_ranks,     s.token_slots,  s.token_weights};
    const uint64_t bytes[] = {RANKS * 64,
                              RANKS * 64,
                              RANKS * RANKS * SLOTS * 4,
                              RANKS * TOKENS * 4,
                              RANKS * TOKENS * TOPK * 4,
                              RANKS * TOKENS * TOPK * 4,
                              RANKS * TOKENS * HIDDEN,
                              RANKS * TOKENS * 4,
                              RANKS * TOKENS * 3,
                              RANKS * TOKENS * HIDDEN * 4,
                              0,
                              RANKS * 4 * 16,
                              RANKS * TOKENS * TOPK * 4,
                              RANKS * TOKENS * 8,
                              RANKS * TOKENS * HIDDEN * 4,
                              RANKS * TOKENS * 8,
                              EXCHANGE_STATE_BYTES,
                              EXCHANGE_COUNTERS * (1 + RANKS + RANKS * SLOTS) * 4,
                              RANKS * 4,
                              RANKS * 4,
                              TOKENS * 16,
                              TOKENS * TOPK * 4,
                              TOKENS * TOPK * 4};
    uint64_t end = s.begin;
    for (size_t i = 0; i < sizeof(begin) / sizeof(begin[0]); i++) {
        assert_true(begin[i] >= end && begin[i] % REGION_ALIGNMENT == 0);
        end = begin[i] + bytes[i];
    }
    assert_true(s.end >= end && s.end < end + REGION_ALIGNMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_route_comes_home),
        cmocka_unit_test(rows_lie_in_source_and_token_order),
        cmocka_unit_test(flags_go_out_without_rows),
        cmocka_unit_test(marks_come_round),
        cmocka_unit_test(inactive_ranks_get_nothing_and_read_as_nothing),
        cmocka_unit_test(results_that_change_while_they_are_read_void_the_step),
        cmocka_unit_test(bad_entries_send_nothing),
        cmocka_unit_test(mad_peers_are_refused),
        cmocka_unit_test(mad_places_are_refused),
        cmocka_unit_test(dispatches_of_another_step_are_refused),
        cmocka_unit_test(plans_are_copied_before_they_are_checked),
        cmocka_unit_test(waits_publish_whom_they_wait_for),
        cmocka_unit_test(waits_end_with_the_epoch),
        cmocka_unit_test(what_has_come_is_finished_for_a_moment),
        cmocka_unit_test(waits_end_at_the_deadline),
        cmocka_unit_test(late_ranks_have_their_time),
        cmocka_unit_test(refusals_are_seen_at_once),
        cmocka_unit_test(first_failure_stays),
        cmocka_unit_test(old_epochs_are_never_taken_for_new),
        cmocka_unit_test(areas_do_not_overlap),
        cmocka_unit_test(fault_points_come_in_their_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
