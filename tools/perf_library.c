// SPDX-License-Identifier: Apache-2.0
#include "perf_library.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/config.h"
#include "muster/muster.h"
#include "perf_device.h"
#include "perf_link.h"
#include "perf_rank.h"

enum { ALIGNMENT = 64, PATIENCE_US = 10000000 /* a measurement is not to fail because the machine stalls */ };

/* A tensor and its shape, in memory of its own; on a device with a copy of it here. */
struct array {
    muster_tensor tensor;
    int64_t shape[3];
    size_t bytes;
    void *host; /* without a device: the tensor's own data */
};

enum array_name { HIDDEN, TOPK_SLOTS, TOPK_WEIGHTS, OUT, RECEIVED, SCALES, COUNTS, SLOTS, WEIGHTS, RESULTS, ARRAYS };

/* One exchange, made for one token count, and the caller's arrays. Those that are not needed have no data. */
struct exchange {
    muster_ep *ep;
    struct array array[ARRAYS];
    int32_t first[MUSTER_MAX_RANKS]; /* flat: row of each source */
    muster_ep_dispatch_args dispatch;
    muster_ep_combine_args combine;
};

struct library {
    struct perf_board *board;
    enum perf_side_id id;
    const struct perf_shape *shape;
    int32_t rank;
    struct perf_device device;
    muster_group *group;
    struct exchange exchange[PERF_MAX_TOKEN_COUNTS];
    struct exchange *current;
    struct array received, results; /* of it: the caller's own, or the exchange's */
};

static bool fail(const struct library *l, const char *what)
{
    perf_board_fail(l->board, "rank %d: %s: %s", l->rank, what, muster_last_error());
    return false;
}

/* ---- arrays ---- */

static void *host_memory(const struct library *l, size_t bytes)
{
    if (l->device.runtime)
        return calloc(1, bytes); /* a copy, of which little may be used: pages that nobody touches cost nothing */
    void *memory = aligned_alloc(ALIGNMENT, bytes);
    if (memory)
        memset(memory, 0, bytes); /* so that no page is touched for the first time while the clock runs */
    return memory;
}

static bool array_make(const struct library *l, struct array *a, muster_dtype dtype, int32_t ndim,
                       const int64_t shape[3])
{
    a->bytes = dtype.bits / 8u;
    for (int32_t i = 0; i < ndim; i++)
        a->bytes *= (size_t)(a->shape[i] = shape[i]);
    size_t bytes = (a->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    a->host = host_memory(l, bytes);
    void *data = l->device.runtime ? perf_device_allocate(&l->device, bytes) : a->host;
    muster_device device = {l->device.runtime ? MUSTER_DEVICE_CUDA : MUSTER_DEVICE_CPU,
                            l->device.runtime ? l->rank : 0};
    a->tensor = (muster_tensor){.data = data, .device = device, .ndim = ndim, .dtype = dtype, .shape = a->shape};
    return a->host && data;
}

static void array_free(const struct library *l, struct array *a)
{
    if (l->device.runtime)
        perf_device_release(&l->device, a->tensor.data);
    free(a->host);
}

static bool make_1(const struct library *l, struct array *a, muster_dtype dtype, int64_t n)
{
    return array_make(l, a, dtype, 1, (int64_t[3]){n});
}

static bool make_2(const struct library *l, struct array *a, muster_dtype dtype, int64_t n, int64_t m)
{
    return array_make(l, a, dtype, 2, (int64_t[3]){n, m});
}

static bool make_3(const struct library *l, struct array *a, muster_dtype dtype, int64_t n, int64_t m, int64_t o)
{
    return array_make(l, a, dtype, 3, (int64_t[3]){n, m, o});
}

static const muster_tensor *tensor_of(const struct array *a)
{
    return a->tensor.data ? &a->tensor : NULL;
}

/* Between an array and its copy here; nothing to do where they are one. */
static bool array_fetch(const struct library *l, const struct array *a, size_t offset, size_t bytes)
{
    unsigned char *host = a->host, *data = a->tensor.data;
    if (!l->device.runtime || !data || perf_device_copy(&l->device, host + offset, data + offset, bytes))
        return true;
    return fail(l, "copying from the device");
}

static bool array_give(const struct library *l, const struct array *a, size_t offset, size_t bytes)
{
    unsigned char *host = a->host, *data = a->tensor.data;
    if (!l->device.runtime || !data || perf_device_copy(&l->device, data + offset, host + offset, bytes))
        return true;
    return fail(l, "copying to the device");
}

static muster_dtype row_dtype(const struct perf_shape *shape)
{
    const muster_dtype dtypes[] = {[PERF_BF16] = MUSTER_BF16, [PERF_FP16] = MUSTER_FP16, [PERF_FP32] = MUSTER_FP32};
    return dtypes[shape->type];
}

static bool make_inputs(const struct library *l, struct exchange *x, int32_t tokens)
{
    const struct perf_shape *s = l->shape;
    return make_2(l, &x->array[HIDDEN], row_dtype(s), tokens, s->hidden) &&
           make_2(l, &x->array[TOPK_SLOTS], MUSTER_INT32, tokens, s->topk) &&
           make_2(l, &x->array[TOPK_WEIGHTS], MUSTER_FP32, tokens, s->topk) &&
           make_2(l, &x->array[OUT], row_dtype(s), tokens, s->hidden);
}

/* A row per received row: [slots, ranks * tokens, ...], [ranks, tokens, ...] or, flat, [ranks * tokens, ...]. */
static bool make_rows(const struct library *l, struct array *a, muster_dtype dtype, int32_t tokens, int64_t elements)
{
    const struct perf_shape *s = l->shape;
    int64_t rows = (int64_t)s->ranks * tokens;
    if (s->layout == MUSTER_EP_FLAT)
        return make_2(l, a, dtype, rows, elements);
    if (s->layout == MUSTER_EP_EXPERT_MAJOR)
        return make_3(l, a, dtype, s->slots, rows, elements);
    return make_3(l, a, dtype, s->ranks, tokens, elements);
}

static bool make_outputs(const struct library *l, struct exchange *x, int32_t tokens)
{
    const struct perf_shape *s = l->shape;
    bool by_slot = s->layout == MUSTER_EP_EXPERT_MAJOR;
    int64_t groups = (s->hidden + MUSTER_EP_FP8_GROUP - 1) / MUSTER_EP_FP8_GROUP;
    struct array *a = x->array;
    bool made = make_1(l, &a[COUNTS], MUSTER_INT32, by_slot ? s->slots : s->ranks) &&
                make_rows(l, &a[RECEIVED], s->quantise ? MUSTER_FP8 : row_dtype(s), tokens, s->hidden) &&
                make_rows(l, &a[RESULTS], row_dtype(s), tokens, s->hidden);
    if (s->quantise)
        made = made && make_rows(l, &a[SCALES], MUSTER_FP32, tokens, groups);
    if (!by_slot)
        made = made && make_rows(l, &a[SLOTS], MUSTER_INT32, tokens, s->topk) &&
               make_rows(l, &a[WEIGHTS], MUSTER_FP32, tokens, s->topk);
    return made;
}

static bool fill_inputs(const struct library *l, struct exchange *x, int32_t tokens)
{
    size_t topk = (size_t)l->shape->topk, row_bytes = perf_load_row_bytes(l->shape);
    for (int32_t t = 0; t < tokens; t++) {
        struct perf_routes routes;
        perf_load_routes(l->shape, l->rank, t, &routes);
        memcpy((int32_t *)x->array[TOPK_SLOTS].host + (size_t)t * topk, routes.expert, topk * sizeof(int32_t));
        memcpy((float *)x->array[TOPK_WEIGHTS].host + (size_t)t * topk, routes.weight, topk * sizeof(float));
        perf_load_row(l->shape, l->rank, t, (unsigned char *)x->array[HIDDEN].host + (size_t)t * row_bytes);
    }
    for (int a = HIDDEN; a <= TOPK_WEIGHTS; a++)
        if (!array_give(l, &x->array[a], 0, x->array[a].bytes))
            return false;
    return true;
}

static void make_arguments(struct exchange *x)
{
    x->dispatch = (muster_ep_dispatch_args)MUSTER_EP_DISPATCH_INIT;
    x->dispatch.hidden = tensor_of(&x->array[HIDDEN]);
    x->dispatch.topk_slots = tensor_of(&x->array[TOPK_SLOTS]);
    x->dispatch.topk_weights = tensor_of(&x->array[TOPK_WEIGHTS]);
    x->dispatch.out_scales = tensor_of(&x->array[SCALES]);
    x->dispatch.out_counts = tensor_of(&x->array[COUNTS]);
    x->dispatch.out_slots = tensor_of(&x->array[SLOTS]);
    x->dispatch.out_weights = tensor_of(&x->array[WEIGHTS]);
    x->combine = (muster_ep_combine_args)MUSTER_EP_COMBINE_INIT;
    x->combine.out = tensor_of(&x->array[OUT]);
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
    config.quantise_return = (muster_ep_quantise)shape->quantise_return;
    return config;
}

uint64_t perf_library_array_bytes(const struct perf_shape *shape, int32_t count)
{
    bool by_slot = shape->layout == MUSTER_EP_EXPERT_MAJOR;
    uint64_t tokens = (uint64_t)shape->tokens[count], hidden = (uint64_t)shape->hidden;
    uint64_t element_bytes = row_dtype(shape).bits / 8u, row_bytes = hidden * element_bytes;
    uint64_t rows = tokens * (uint64_t)shape->ranks * (uint64_t)(by_slot ? shape->slots : 1);
    uint64_t scale_bytes = (hidden + MUSTER_EP_FP8_GROUP - 1) / MUSTER_EP_FP8_GROUP * sizeof(float);
    uint64_t route_bytes = (uint64_t)shape->topk * (sizeof(int32_t) + sizeof(float));
    uint64_t received = shape->quantise ? hidden + scale_bytes : row_bytes;
    return rows * (received + row_bytes + (by_slot ? 0 : route_bytes)) + tokens * (2 * row_bytes + route_bytes);
}

static bool create_group(struct library *l)
{
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    config.backend = l->shape->cuda ? MUSTER_BACKEND_CUDA : MUSTER_BACKEND_CPU;
    config.device = l->rank;
    config.no_fault_tolerance = l->shape->no_fault_tolerance || l->id == PERF_UNCHECKED;
    if (!config_given(CONFIG_OPERATION_TIMEOUT_US))
        config.operation_timeout_us = PATIENCE_US;
    for (int32_t i = 0; i < l->shape->token_counts; i++) {
        muster_ep_config exchange = perf_library_config(l->shape, i);
        uint64_t bytes;
        if (muster_ep_memory_bytes(&exchange, l->shape->ranks, &bytes) != MUSTER_OK)
            return fail(l, "muster_ep_memory_bytes");
        config.memory_bytes += bytes;
        if (l->rank == 0)
            l->board->mailbox[l->id].exchange_bytes[i] = bytes;
    }
    return muster_group_create(&config, &l->group) == MUSTER_OK || fail(l, "muster_group_create");
}

static bool make_arrays(const struct library *l, struct exchange *x, int32_t tokens)
{
    if (!make_inputs(l, x, tokens) || !make_outputs(l, x, tokens)) {
        perf_board_fail(l->board, "rank %d: no memory for the arrays of %d tokens", l->rank, tokens);
        return false;
    }
    if (!fill_inputs(l, x, tokens))
        return false;
    make_arguments(x);
    return true;
}

static void free_arrays(const struct library *l, struct exchange *x)
{
    for (int a = 0; a < ARRAYS; a++)
        array_free(l, &x->array[a]);
    memset(x->array, 0, sizeof x->array);
}

/* The arrays of a device are made when it is their count's turn: those of all counts together may not fit. */
static bool create_exchange(struct library *l, int32_t count)
{
    struct exchange *x = &l->exchange[count];
    muster_ep_config config = perf_library_config(l->shape, count);
    if (muster_ep_create(l->group, &config, &x->ep) != MUSTER_OK)
        return fail(l, "muster_ep_create");
    return l->device.runtime || make_arrays(l, x, config.max_tokens);
}

static bool library_open(void *state, struct perf_board *board, int32_t rank)
{
    struct library *l = state;
    l->board = board;
    l->shape = &board->shape;
    l->rank = rank;
    if (l->shape->cuda && !perf_device_open(&l->device, rank, l->shape->flush))
        return fail(l, "a device");
    if (rank == 0)
        board->mailbox[l->id].multiprocessors = l->device.multiprocessors;
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
        free_arrays(l, &l->exchange[i]);
    }
    muster_group_destroy(l->group);
    perf_device_close(&l->device);
}

/* ---- exchanging ---- */

/* In place: the array's shape, but the exchange's memory; on a device the copy here is still the array's. */
static void array_lend(const struct library *l, struct array *a, const muster_tensor *theirs)
{
    a->tensor.data = theirs->data;
    if (!l->device.runtime)
        a->host = theirs->data;
}

static bool library_measure_link(void *state, uint32_t *round)
{
    struct library *l = state;
    return perf_link_measure(l->board, &l->device, l->rank, round);
}

static bool library_prepare(void *state, const struct perf_order *order)
{
    struct library *l = state;
    struct exchange *x = &l->exchange[order->count], *before = l->current;
    muster_tensor received, results;
    if (l->device.runtime && before != x) {
        if (before)
            free_arrays(l, before);
        if (!make_arrays(l, x, l->shape->tokens[order->count]))
            return false;
    }
    l->current = x;
    l->received = x->array[RECEIVED];
    l->results = x->array[RESULTS];
    x->dispatch.out_hidden = order->in_place ? NULL : tensor_of(&x->array[RECEIVED]);
    x->combine.results = order->in_place ? NULL : tensor_of(&x->array[RESULTS]);
    if (!order->in_place)
        return true;
    if (muster_ep_received(x->ep, &received) != MUSTER_OK || muster_ep_results(x->ep, &results) != MUSTER_OK)
        return fail(l, "rows in place");
    array_lend(l, &l->received, &received);
    array_lend(l, &l->results, &results);
    return true;
}

static bool library_dispatch(void *state)
{
    struct library *l = state;
    return muster_ep_dispatch(l->current->ep, &l->current->dispatch, l->device.stream) == MUSTER_OK ||
           fail(l, "muster_ep_dispatch");
}

static bool enqueue_combine(void *state)
{
    struct library *l = state;
    return muster_ep_combine(l->current->ep, &l->current->combine, l->device.stream) == MUSTER_OK ||
           fail(l, "muster_ep_combine");
}

/* Each pair was a step of its own. */
static bool read_verdicts(void *state, int32_t pairs)
{
    struct library *l = state;
    muster_verdict verdict;
    for (int32_t i = 0; i < pairs; i++) {
        if (muster_step_verdict(l->group, &verdict) != MUSTER_OK)
            return fail(l, "muster_step_verdict");
        if (verdict.status == MUSTER_OK)
            continue;
        perf_board_fail(l->board, "rank %d: the step is void: %s", l->rank, muster_status_text(verdict.status));
        return false;
    }
    return true;
}

/* The verdict is part of what a caller waits for; a device's is there when the stream is done. */
static bool library_combine(void *state)
{
    struct library *l = state;
    if (!enqueue_combine(l) || (l->device.runtime && !perf_device_wait(&l->device)))
        return false;
    return read_verdicts(l, 1);
}

static bool library_iterate(void *state, int32_t iterations, struct perf_sample *sample)
{
    struct library *l = state;
    const struct perf_pair pair = {l, library_dispatch, enqueue_combine, read_verdicts};
    return perf_device_iterate(&l->device, &pair, iterations, sample) || fail(l, "a graph of pairs");
}

/* ---- what the checks look at ---- */

static int64_t bounded(int64_t rows, int64_t most)
{
    return rows < 0 ? 0 : rows < most ? rows : most;
}

/* Flat: where each source's rows begin; returns how many rows there are in all. */
static int64_t find_sources(const struct library *l)
{
    struct exchange *x = l->current;
    const int32_t *count = x->array[COUNTS].host;
    int64_t next = 0;
    for (int32_t rank = 0; rank < l->shape->ranks; rank++) {
        x->first[rank] = (int32_t)next;
        next += bounded(count[rank], x->array[RECEIVED].shape[0] - next);
    }
    return next;
}

typedef bool move_function(const struct library *l, const struct array *a, size_t offset, size_t bytes);

/* Of an array of [blocks][rows], or of [rows] if flat, only the rows that have come. */
static bool move_rows(const struct library *l, const struct array *a, move_function *move)
{
    const struct array *counts = &l->current->array[COUNTS];
    const int32_t *count = counts->host;
    if (!a->tensor.data)
        return true;
    if (l->shape->layout == MUSTER_EP_FLAT)
        return move(l, a, 0, a->bytes / (size_t)a->shape[0] * (size_t)find_sources(l));
    size_t block_bytes = a->bytes / (size_t)counts->shape[0], row_bytes = block_bytes / (size_t)a->shape[1];
    for (int64_t block = 0; block < counts->shape[0]; block++)
        if (!move(l, a, (size_t)block * block_bytes, (size_t)bounded(count[block], a->shape[1]) * row_bytes))
            return false;
    return true;
}

static bool library_fetch_received(void *state)
{
    struct library *l = state;
    const struct array *a = l->current->array;
    return array_fetch(l, &a[COUNTS], 0, a[COUNTS].bytes) && move_rows(l, &l->received, array_fetch) &&
           move_rows(l, &a[SCALES], array_fetch) && move_rows(l, &a[SLOTS], array_fetch) &&
           move_rows(l, &a[WEIGHTS], array_fetch);
}

static bool library_give_results(void *state)
{
    struct library *l = state;
    return move_rows(l, &l->results, array_give);
}

static bool library_fetch_output(void *state)
{
    struct library *l = state;
    const struct array *out = &l->current->array[OUT];
    return array_fetch(l, out, 0, out->bytes);
}

static bool library_give_output(void *state)
{
    struct library *l = state;
    const struct array *out = &l->current->array[OUT];
    return array_give(l, out, 0, out->bytes);
}

static void library_received(void *state, struct perf_received *received)
{
    struct library *l = state;
    struct exchange *x = l->current;
    const struct array *a = x->array;
    bool flat = l->shape->layout == MUSTER_EP_FLAT;
    if (flat)
        find_sources(l);
    *received = (struct perf_received){
        .blocks = (int32_t)a[COUNTS].shape[0],
        .block_rows = flat ? 0 : (size_t)a[RECEIVED].shape[1],
        .first = x->first,
        .count = a[COUNTS].host,
        .rows = l->received.host,
        .row_stride = (size_t)l->shape->hidden * l->received.tensor.dtype.bits / 8,
        .scales = a[SCALES].host,
        .slots = a[SLOTS].host,
        .weights = a[WEIGHTS].host,
        .route_stride = (size_t)l->shape->topk * sizeof(int32_t),
        .results = l->results.host,
    };
}

static void *library_output(void *state)
{
    const struct library *l = state;
    return l->current->array[OUT].host;
}

/* ---- the process ---- */

static const struct perf_side library_side = {
    .open = library_open,
    .close = library_close,
    .prepare = library_prepare,
    .dispatch = library_dispatch,
    .combine = library_combine,
    .iterate = library_iterate,
    .measure_link = library_measure_link,
    .fetch_received = library_fetch_received,
    .fetch_output = library_fetch_output,
    .give_results = library_give_results,
    .give_output = library_give_output,
    .received = library_received,
    .output = library_output,
};

int perf_library_rank(const char *board_path, enum perf_side_id id)
{
    struct perf_side side = library_side;
    struct library *l = calloc(1, sizeof *l);
    side.id = id;
    if (!l) {
        perror("muster perf");
        return EXIT_FAILURE;
    }
    l->id = id;
    int status = perf_rank_run(board_path, (int32_t)config_number(CONFIG_RANK), &side, l);
    free(l);
    return status;
}
