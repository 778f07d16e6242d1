// SPDX-License-Identifier: Apache-2.0
#include "perf_library.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/config.h"
#include "muster/muster.h"
#include "perf_rank.h"

enum { ALIGNMENT = 64, PATIENCE_US = 10000000 /* a measurement is not to fail because the machine stalls */ };

/* A tensor and its shape, in memory of its own. */
struct array {
    muster_tensor tensor;
    int64_t shape[3];
};

/* One exchange, made for one token count, and the caller's arrays. Those that are not needed have no data. */
struct exchange {
    muster_ep *ep;
    struct array hidden, topk_slots, topk_weights, out;
    struct array received, scales, counts, slots, weights, results;
    muster_ep_dispatch_args dispatch;
    muster_ep_combine_args combine;
};

struct library {
    struct perf_board *board;
    const struct perf_shape *shape;
    int32_t rank;
    muster_group *group;
    struct exchange exchange[PERF_MAX_TOKEN_COUNTS];
    struct exchange *current;
    bool in_place;
};

static bool fail(const struct library *l, const char *what)
{
    perf_board_fail(l->board, "rank %d: %s: %s", l->rank, what, muster_last_error());
    return false;
}

/* ---- arrays ---- */

/* Written once as a whole, so that no page is touched for the first time while the clock runs. */
static bool array_make(struct array *a, muster_dtype dtype, int32_t ndim, const int64_t shape[3])
{
    size_t bytes = dtype.bits / 8u;
    for (int32_t i = 0; i < ndim; i++)
        bytes *= (size_t)(a->shape[i] = shape[i]);
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    a->tensor = (muster_tensor){.data = aligned_alloc(ALIGNMENT, bytes),
                                .device = {MUSTER_DEVICE_CPU, 0},
                                .ndim = ndim,
                                .dtype = dtype,
                                .shape = a->shape};
    if (a->tensor.data)
        memset(a->tensor.data, 0, bytes);
    return a->tensor.data;
}

static bool array_1(struct array *a, muster_dtype dtype, int64_t n)
{
    return array_make(a, dtype, 1, (int64_t[3]){n});
}

static bool array_2(struct array *a, muster_dtype dtype, int64_t n, int64_t m)
{
    return array_make(a, dtype, 2, (int64_t[3]){n, m});
}

static bool array_3(struct array *a, muster_dtype dtype, int64_t n, int64_t m, int64_t o)
{
    return array_make(a, dtype, 3, (int64_t[3]){n, m, o});
}

static const muster_tensor *tensor_of(const struct array *a)
{
    return a->tensor.data ? &a->tensor : NULL;
}

static muster_dtype row_dtype(const struct perf_shape *shape)
{
    const muster_dtype dtypes[] = {[PERF_BF16] = MUSTER_BF16, [PERF_FP16] = MUSTER_FP16, [PERF_FP32] = MUSTER_FP32};
    return dtypes[shape->type];
}

static bool make_inputs(const struct library *l, struct exchange *x, int32_t tokens)
{
    const struct perf_shape *s = l->shape;
    return array_2(&x->hidden, row_dtype(s), tokens, s->hidden) &&
           array_2(&x->topk_slots, MUSTER_INT32, tokens, s->topk) &&
           array_2(&x->topk_weights, MUSTER_FP32, tokens, s->topk) && array_2(&x->out, row_dtype(s), tokens, s->hidden);
}

/* [ranks, tokens, ...] or [slots, ranks * tokens, ...] */
static bool make_outputs(const struct library *l, struct exchange *x, int32_t tokens)
{
    const struct perf_shape *s = l->shape;
    bool by_rank = s->layout == MUSTER_EP_RANK_MAJOR;
    int64_t blocks = by_rank ? s->ranks : s->slots, rows = by_rank ? tokens : (int64_t)s->ranks * tokens;
    int64_t groups = (s->hidden + MUSTER_EP_FP8_GROUP - 1) / MUSTER_EP_FP8_GROUP;
    bool made = array_1(&x->counts, MUSTER_INT32, blocks) &&
                array_3(&x->received, s->quantise ? MUSTER_FP8 : row_dtype(s), blocks, rows, s->hidden) &&
                array_3(&x->results, row_dtype(s), blocks, rows, s->hidden);
    if (s->quantise)
        made = made && array_3(&x->scales, MUSTER_FP32, blocks, rows, groups);
    if (by_rank)
        made = made && array_3(&x->slots, MUSTER_INT32, blocks, rows, s->topk) &&
               array_3(&x->weights, MUSTER_FP32, blocks, rows, s->topk);
    return made;
}

static void fill_inputs(const struct library *l, struct exchange *x, int32_t tokens)
{
    size_t topk = (size_t)l->shape->topk, row_bytes = perf_load_row_bytes(l->shape);
    for (int32_t t = 0; t < tokens; t++) {
        struct perf_routes routes;
        perf_load_routes(l->shape, l->rank, t, &routes);
        memcpy((int32_t *)x->topk_slots.tensor.data + (size_t)t * topk, routes.expert, topk * sizeof(int32_t));
        memcpy((float *)x->topk_weights.tensor.data + (size_t)t * topk, routes.weight, topk * sizeof(float));
        perf_load_row(l->shape, l->rank, t, (unsigned char *)x->hidden.tensor.data + (size_t)t * row_bytes);
    }
}

static void make_arguments(struct exchange *x)
{
    x->dispatch = (muster_ep_dispatch_args)MUSTER_EP_DISPATCH_INIT;
    x->dispatch.hidden = tensor_of(&x->hidden);
    x->dispatch.topk_slots = tensor_of(&x->topk_slots);
    x->dispatch.topk_weights = tensor_of(&x->topk_weights);
    x->dispatch.out_scales = tensor_of(&x->scales);
    x->dispatch.out_counts = tensor_of(&x->counts);
    x->dispatch.out_slots = tensor_of(&x->slots);
    x->dispatch.out_weights = tensor_of(&x->weights);
    x->combine = (muster_ep_combine_args)MUSTER_EP_COMBINE_INIT;
    x->combine.out = tensor_of(&x->out);
}

static void free_arrays(struct exchange *x)
{
    struct array *all[] = {&x->hidden, &x->topk_slots, &x->topk_weights, &x->out,     &x->received,
                           &x->scales, &x->counts,     &x->slots,        &x->weights, &x->results};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]->tensor.data);
}

/* ---- opening ---- */

muster_ep_config perf_library_config(const struct perf_shape *shape, int32_t count)
{
    muster_ep_config config = MUSTER_EP_CONFIG_INIT;
    config.hidden = shape->hidden;
    config.dtype = row_dtype(shape);
    config.max_tokens = shape->tokens[count];
    config.slots_per_rank = shape->slots;
    config.topk = shape->topk;
    config.layout = (muster_ep_layout)shape->layout;
    config.combine = (muster_ep_combine_mode)shape->combine;
    config.quantise = (muster_ep_quantise)shape->quantise;
    return config;
}

static bool create_group(struct library *l)
{
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    if (!config_given(CONFIG_OPERATION_TIMEOUT_US))
        config.operation_timeout_us = PATIENCE_US;
    for (int32_t i = 0; i < l->shape->token_counts; i++) {
        muster_ep_config exchange = perf_library_config(l->shape, i);
        uint64_t bytes;
        if (muster_ep_memory_bytes(&exchange, l->shape->ranks, &bytes) != MUSTER_OK)
            return fail(l, "muster_ep_memory_bytes");
        config.memory_bytes += bytes;
        if (l->rank == 0)
            l->board->mailbox[PERF_LIBRARY].exchange_bytes[i] = bytes;
    }
    return muster_group_create(&config, &l->group) == MUSTER_OK || fail(l, "muster_group_create");
}

static bool create_exchange(struct library *l, int32_t count)
{
    struct exchange *x = &l->exchange[count];
    muster_ep_config config = perf_library_config(l->shape, count);
    if (muster_ep_create(l->group, &config, &x->ep) != MUSTER_OK)
        return fail(l, "muster_ep_create");
    if (!make_inputs(l, x, config.max_tokens) || !make_outputs(l, x, config.max_tokens)) {
        perf_board_fail(l->board, "rank %d: no memory for the arrays of %d tokens", l->rank, config.max_tokens);
        return false;
    }
    fill_inputs(l, x, config.max_tokens);
    make_arguments(x);
    return true;
}

static bool library_open(void *state, struct perf_board *board, int32_t rank)
{
    struct library *l = state;
    l->board = board;
    l->shape = &board->shape;
    l->rank = rank;
    if (!create_group(l))
        return false;
    for (int32_t i = 0; i < l->shape->token_counts; i++)
        if (!create_exchange(l, i))
            return false;
    return true;
}

static void library_close(void *state)
{
    struct library *l = state;
    for (int32_t i = 0; i < l->shape->token_counts; i++) {
        muster_ep_destroy(l->exchange[i].ep);
        free_arrays(&l->exchange[i]);
    }
    muster_group_destroy(l->group);
}

/* ---- exchanging ---- */

static bool library_prepare(void *state, const struct perf_order *order)
{
    struct library *l = state;
    struct exchange *x = l->current = &l->exchange[order->count];
    l->in_place = order->in_place;
    x->dispatch.out_hidden = order->in_place ? NULL : tensor_of(&x->received);
    x->combine.results = order->in_place ? NULL : tensor_of(&x->results);
    return true;
}

static bool library_dispatch(void *state)
{
    struct library *l = state;
    return muster_ep_dispatch(l->current->ep, &l->current->dispatch, NULL) == MUSTER_OK ||
           fail(l, "muster_ep_dispatch");
}

/* The pair was a step of its own, so its verdict is part of what a caller waits for. */
static bool library_combine(void *state)
{
    struct library *l = state;
    muster_verdict verdict;
    if (muster_ep_combine(l->current->ep, &l->current->combine, NULL) != MUSTER_OK)
        return fail(l, "muster_ep_combine");
    if (muster_step_verdict(l->group, &verdict) != MUSTER_OK)
        return fail(l, "muster_step_verdict");
    if (verdict.status == MUSTER_OK)
        return true;
    perf_board_fail(l->board, "rank %d: the step is void: %s", l->rank, muster_status_text(verdict.status));
    return false;
}

static void library_received(void *state, struct perf_received *received)
{
    struct library *l = state;
    struct exchange *x = l->current;
    muster_tensor rows = x->received.tensor, results = x->results.tensor;
    if (l->in_place) {
        muster_ep_received(x->ep, &rows);
        muster_ep_results(x->ep, &results);
    }
    *received = (struct perf_received){
        .blocks = (int32_t)x->counts.shape[0],
        .block_rows = (size_t)x->received.shape[1],
        .count = x->counts.tensor.data,
        .rows = rows.data,
        .row_stride = (size_t)l->shape->hidden * rows.dtype.bits / 8,
        .scales = x->scales.tensor.data,
        .slots = x->slots.tensor.data,
        .weights = x->weights.tensor.data,
        .route_stride = (size_t)l->shape->topk * sizeof(int32_t),
        .results = results.data,
    };
}

static void *library_output(void *state)
{
    const struct library *l = state;
    return l->current->out.tensor.data;
}

/* ---- the process ---- */

static const struct perf_side side = {
    .id = PERF_LIBRARY,
    .open = library_open,
    .close = library_close,
    .prepare = library_prepare,
    .dispatch = library_dispatch,
    .combine = library_combine,
    .received = library_received,
    .output = library_output,
};

int perf_library_rank(const char *board_path)
{
    struct library *l = calloc(1, sizeof *l);
    if (!l) {
        perror("muster perf");
        return EXIT_FAILURE;
    }
    int status = perf_rank_run(board_path, (int32_t)config_number(CONFIG_RANK), &side, l);
    free(l);
    return status;
}
