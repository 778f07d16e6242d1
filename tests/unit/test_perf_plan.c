// SPDX-License-Identifier: Apache-2.0
/*
 * The plan of an all-to-all of rows, carried out by plain copies: every rank receives what perf_load says it should, in
 * the layout's places, and what comes home adds up. So what remains to be tested on GPUs is copies and sums.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "perf_load.h"
#include "perf_plan.h"

enum { MOST_RANKS = 8, HIDDEN = 8 };

/* What a rank of the exchange has; rows are float[HIDDEN]. */
struct rank {
    struct perf_plan plan;
    float *tokens, *out, *back; /* memories of both directions */
    float *result; /* [tokens] */
};

static float *row(float *memory, int32_t number)
{
    return memory + (size_t)number * HIDDEN;
}

static void copy_rows(float *to, const float *from, int32_t count)
{
    memcpy(to, from, (size_t)count * HIDDEN * sizeof(float));
}

static float *rows(int32_t count)
{
    float *memory = calloc((size_t)count * HIDDEN + 1, sizeof(float));
    assert_non_null(memory);
    memset(memory, 0xff, (size_t)count * HIDDEN * sizeof(float)); /* NaNs */
    return memory;
}

static void open_rank(struct rank *r, const struct perf_shape *shape, int32_t rank)
{
    int32_t tokens = shape->tokens[0];
    assert_true(perf_plan_make(shape, rank, tokens, &r->plan));
    r->tokens = rows(tokens);
    r->result = rows(tokens);
    r->out = rows(r->plan.rows);
    r->back = rows(r->plan.rows);
    for (int32_t t = 0; t < tokens; t++)
        perf_load_row(shape, rank, t, row(r->tokens, t));
}

static void close_rank(struct rank *r)
{
    perf_plan_free(&r->plan);
    free(r->tokens);
    free(r->result);
    free(r->out);
    free(r->back);
}

static void move_rows(float *to, const int32_t *to_row, float *from, const int32_t *from_row, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        copy_rows(row(to, to_row[i]), row(from, from_row[i]), 1);
}

/* Both ends of every transfer must mean the same rows. */
static void exchange(struct rank *ranks, int32_t count, bool home)
{
    for (int32_t a = 0; a < count; a++)
        for (int32_t b = 0; b < count; b++) {
            const struct perf_traffic *there = &ranks[a].plan.traffic[b], *here = &ranks[b].plan.traffic[a];
            assert_int_equal(there->sent.count, here->received.count);
            if (a == b)
                assert_int_equal(there->sent.count, 0);
            if (home)
                copy_rows(row(ranks[a].back, there->sent.first), row(ranks[b].back, here->received.first),
                          there->sent.count);
            else
                copy_rows(row(ranks[b].out, here->received.first), row(ranks[a].out, there->sent.first),
                          there->sent.count);
        }
}

static uint64_t serve(const struct perf_shape *shape, struct rank *r, int32_t rank)
{
    const struct perf_plan *p = &r->plan;
    struct perf_received received = {
        .blocks = p->blocks,
        .block_rows = (size_t)p->block_rows,
        .first = p->first,
        .count = p->count,
        .rows = (const unsigned char *)r->out,
        .row_stride = HIDDEN * sizeof(float),
        .slots = shape->layout == MUSTER_EP_EXPERT_MAJOR ? NULL : (const unsigned char *)p->slots,
        .weights = (const unsigned char *)p->weights,
        .route_stride = (size_t)shape->topk * sizeof(int32_t),
        .results = (unsigned char *)r->back,
    };
    return perf_load_serve(shape, rank, p->tokens, &received);
}

static void add_up(struct rank *r)
{
    const struct perf_plan *p = &r->plan;
    for (int32_t t = 0; t < p->tokens; t++)
        for (int32_t i = 0; i < HIDDEN; i++) {
            float sum = 0;
            for (int32_t k = 0; k < p->parts && p->home[t * p->parts + k] >= 0; k++)
                sum += p->weight[t * p->parts + k] * row(r->back, p->home[t * p->parts + k])[i];
            row(r->result, t)[i] = sum;
        }
}

static uint64_t run(const struct perf_shape *shape)
{
    struct rank ranks[MOST_RANKS];
    uint64_t wrong = 0;
    for (int32_t r = 0; r < shape->ranks; r++)
        open_rank(&ranks[r], shape, r);
    for (int32_t r = 0; r < shape->ranks; r++)
        move_rows(ranks[r].out, ranks[r].plan.out.to, ranks[r].tokens, ranks[r].plan.out.from, ranks[r].plan.out.count);
    exchange(ranks, shape->ranks, false);
    for (int32_t r = 0; r < shape->ranks; r++) {
        const struct perf_moves *in = &ranks[r].plan.in;
        move_rows(ranks[r].out, in->to, ranks[r].out, in->from, in->count);
        wrong += serve(shape, &ranks[r], r);
        move_rows(ranks[r].back, in->from, ranks[r].back, in->to, in->count);
    }
    exchange(ranks, shape->ranks, true);
    for (int32_t r = 0; r < shape->ranks; r++) {
        add_up(&ranks[r]);
        wrong += perf_load_check(shape, r, shape->tokens[0], false, ranks[r].result);
        close_rank(&ranks[r]);
    }
    return wrong;
}

static struct perf_shape shape_of(int32_t ranks, int32_t tokens, int32_t topk, int32_t experts, int32_t layout)
{
    struct perf_shape shape = {.ranks = ranks, .hidden = HIDDEN, .topk = topk, .experts = experts, .layout = layout};
    shape.slots = (experts + ranks - 1) / ranks;
    shape.type = PERF_FP32;
    shape.combine = MUSTER_EP_REDUCED;
    shape.token_counts = 1;
    shape.tokens[0] = tokens;
    shape.seed = 7;
    shape.check = true;
    return shape;
}

static void each_layout(int32_t ranks, int32_t tokens, int32_t topk, int32_t experts)
{
    static const int32_t layouts[] = {MUSTER_EP_EXPERT_MAJOR, MUSTER_EP_RANK_MAJOR, MUSTER_EP_FLAT};
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        struct perf_shape shape = shape_of(ranks, tokens, topk, experts, layouts[i]);
        assert_int_equal(run(&shape), 0);
        shape.spoil = true;
        assert_int_not_equal(run(&shape), 0);
    }
}

static void test_even(void **state)
{
    (void)state;
    each_layout(4, 33, 8, 64);
    each_layout(8, 16, 8, 256);
}

/* More slots than experts on the last rank; ranks that get nothing of some token, or nothing at all. */
static void test_uneven(void **state)
{
    (void)state;
    each_layout(3, 17, 5, 11);
    each_layout(8, 1, 2, 9);
    each_layout(2, 5, 1, 2);
}

static void test_more_routes_than_ranks(void **state)
{
    (void)state;
    each_layout(2, 9, 32, 40);
}

static void test_one_rank(void **state)
{
    (void)state;
    each_layout(1, 6, 3, 8);
}

/* What crosses, and therefore what an exchange takes: each token once for each other rank, or once for each route. */
static void test_crossing(void **state)
{
    (void)state;
    struct perf_shape flat = shape_of(2, 1, 8, 8, MUSTER_EP_FLAT), slots = flat;
    struct perf_plan plan;
    slots.layout = MUSTER_EP_EXPERT_MAJOR;
    assert_true(perf_plan_make(&flat, 0, 1, &plan)); /* all eight experts, four of them on the other rank */
    assert_int_equal(plan.crossing, 1);
    perf_plan_free(&plan);
    assert_true(perf_plan_make(&slots, 0, 1, &plan));
    assert_int_equal(plan.crossing, 4 + 4);
    perf_plan_free(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_even),     cmocka_unit_test(test_uneven),   cmocka_unit_test(test_more_routes_than_ranks),
        cmocka_unit_test(test_one_rank), cmocka_unit_test(test_crossing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
