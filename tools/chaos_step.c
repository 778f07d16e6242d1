// SPDX-License-Identifier: Apache-2.0
#include "chaos_step.h"

#include <stdlib.h>
#include <string.h>

#include "core/error.h"

enum { SPOILED_STEPS = 4 /* one of so many is spoiled, if any: groups come about in the others */ };

/* ---- arrays ---- */

static muster_status array_make(const struct chaos_step *s, struct chaos_array *a, muster_dtype dtype, int32_t ndim,
                                const int64_t shape[3])
{
    size_t bytes = dtype.bits / 8u;
    for (int32_t i = 0; i < ndim; i++)
        bytes *= (size_t)(a->shape[i] = shape[i]);
    a->tensor = (muster_tensor){.device = s->device->where, .ndim = ndim, .dtype = dtype, .shape = a->shape};
    return chaos_device_allocate(s->device, &a->tensor.data, bytes);
}

/* Every array of a pair, and its shape. */
static muster_status make_arrays(const struct chaos_step *s, struct chaos_pair *p)
{
    int64_t tokens = s->shape->tokens, hidden = s->shape->hidden, topk = s->shape->topk;
    int64_t blocks = p->by_rank ? s->shape->ranks : s->shape->slots;
    int64_t rows = p->by_rank ? tokens : s->shape->ranks * tokens;
    const struct {
        struct chaos_array *array;
        muster_dtype dtype;
        int32_t ndim;
        int64_t shape[3];
    } all[] = {
        {&p->hidden, MUSTER_BF16, 2, {tokens, hidden}},         {&p->topk_slots, MUSTER_INT32, 2, {tokens, topk}},
        {&p->topk_weights, MUSTER_FP32, 2, {tokens, topk}},     {&p->out, MUSTER_BF16, 2, {tokens, hidden}},
        {&p->received, MUSTER_BF16, 3, {blocks, rows, hidden}}, {&p->counts, MUSTER_INT32, 1, {blocks}},
        {&p->slots, MUSTER_INT32, 3, {blocks, rows, topk}},     {&p->weights, MUSTER_FP32, 3, {blocks, rows, topk}},
    };
    size_t count = sizeof all / sizeof *all - (p->by_rank ? 0 : 2);
    muster_status status = MUSTER_OK;
    for (size_t i = 0; i < count && status == MUSTER_OK; i++)
        status = array_make(s, all[i].array, all[i].dtype, all[i].ndim, all[i].shape);
    return status;
}

/* Experts give back what they were given: results lie where the rows came to. */
static void make_arguments(struct chaos_pair *p)
{
    p->dispatch = (muster_ep_dispatch_args)MUSTER_EP_DISPATCH_INIT;
    p->dispatch.hidden = &p->hidden.tensor;
    p->dispatch.topk_slots = &p->topk_slots.tensor;
    p->dispatch.topk_weights = &p->topk_weights.tensor;
    p->dispatch.out_hidden = &p->received.tensor;
    p->dispatch.out_counts = &p->counts.tensor;
    p->dispatch.out_slots = p->by_rank ? &p->slots.tensor : NULL;
    p->dispatch.out_weights = p->by_rank ? &p->weights.tensor : NULL;
    p->combine = (muster_ep_combine_args)MUSTER_EP_COMBINE_INIT;
    p->combine.results = &p->received.tensor;
    p->combine.out = &p->out.tensor;
}

/* ---- opening ---- */

muster_ep_config chaos_step_config(const struct chaos_shape *shape, int32_t exchange)
{
    muster_ep_config config = MUSTER_EP_CONFIG_INIT;
    config.hidden = shape->hidden;
    config.max_tokens = shape->tokens;
    config.slots_per_rank = shape->slots;
    config.topk = shape->topk;
    config.layout = exchange == 0 ? MUSTER_EP_EXPERT_MAJOR : MUSTER_EP_RANK_MAJOR;
    config.combine = exchange == 0 ? MUSTER_EP_EXACT : MUSTER_EP_REDUCED;
    return config;
}

static size_t row_bytes(const struct chaos_shape *shape)
{
    return (size_t)shape->hidden * sizeof(uint16_t);
}

static muster_status make_host_memory(struct chaos_step *s)
{
    size_t most = (size_t)s->shape->ranks * (size_t)s->shape->tokens, bytes = most * row_bytes(s->shape);
    bytes += most * sizeof(struct chaos_routes) + (size_t)s->shape->slots * sizeof(int32_t); /* none is larger */
    s->rows = malloc(bytes);
    s->wanted = malloc(bytes);
    s->origins = malloc(most * sizeof *s->origins);
    if (s->rows && s->wanted && s->origins && chaos_load_open(&s->load, s->shape))
        return MUSTER_OK;
    return error_set(MUSTER_ERR_MEMORY, "no memory for %zu rows", most);
}

muster_status chaos_step_open(struct chaos_step *step, const struct chaos_shape *shape,
                              const struct chaos_device *device, int32_t rank)
{
    *step = (struct chaos_step){.shape = shape, .device = device, .rank = rank};
    muster_status status = make_host_memory(step);
    for (int32_t i = 0; i < CHAOS_PAIRS && status == MUSTER_OK; i++) {
        struct chaos_pair *p = &step->pair[i];
        p->exchange = i % CHAOS_EXCHANGES;
        p->by_rank = p->exchange == 1;
        status = make_arrays(step, p);
        make_arguments(p);
    }
    return status;
}

static muster_status capture(struct chaos_step *s)
{
    const struct runtime *runtime = s->device->runtime;
    if (!runtime)
        return MUSTER_OK;
    muster_status status = runtime->capture_begin(s->device->stream);
    if (status == MUSTER_OK)
        status = chaos_step_enqueue(s, NULL);
    return status == MUSTER_OK ? runtime->capture_end(s->device->stream, &s->graph) : status;
}

muster_status chaos_step_join(struct chaos_step *step, muster_group *group)
{
    muster_status status = MUSTER_OK;
    step->group = group;
    for (int32_t i = 0; i < CHAOS_EXCHANGES && status == MUSTER_OK; i++) {
        muster_ep_config config = chaos_step_config(step->shape, i);
        status = muster_ep_create(group, &config, &step->ep[i]);
    }
    return status == MUSTER_OK ? capture(step) : status;
}

/* The device's memory goes with the process: to give it back may wait for other ranks. */
void chaos_step_close(struct chaos_step *step)
{
    if (step->graph)
        step->device->runtime->graph_destroy(step->graph);
    for (int32_t i = 0; i < CHAOS_EXCHANGES; i++)
        muster_ep_destroy(step->ep[i]);
    chaos_load_close(&step->load);
    free(step->rows);
    free(step->wanted);
    free(step->origins);
}

/* ---- what goes in ---- */

static muster_status load_rows(struct chaos_step *s, const struct chaos_pair *p, bool spoil)
{
    size_t bytes = row_bytes(s->shape);
    for (int32_t t = 0; t < s->shape->tokens; t++)
        chaos_load_row(&s->load, s->rank, t, (uint16_t *)(void *)(s->rows + (size_t)t * bytes));
    s->rows[0] ^= spoil;
    return chaos_device_copy(s->device, p->hidden.tensor.data, s->rows, (size_t)s->shape->tokens * bytes);
}

static muster_status load_routes(struct chaos_step *s, const struct chaos_pair *p)
{
    size_t topk = (size_t)s->shape->topk, tokens = (size_t)s->shape->tokens;
    int32_t *slots = (int32_t *)(void *)s->rows;
    float *weights = (float *)(void *)s->wanted;
    for (size_t t = 0; t < tokens; t++) {
        const struct chaos_routes *routes = chaos_load_routes(&s->load, s->rank, (int32_t)t);
        memcpy(slots + t * topk, routes->slot, topk * sizeof *slots);
        memcpy(weights + t * topk, routes->weight, topk * sizeof *weights);
    }
    muster_status status =
        chaos_device_copy(s->device, p->topk_slots.tensor.data, slots, tokens * topk * sizeof *slots);
    if (status != MUSTER_OK)
        return status;
    return chaos_device_copy(s->device, p->topk_weights.tensor.data, weights, tokens * topk * sizeof *weights);
}

static void set_pair(struct chaos_step *s, const struct chaos_when *when, int32_t pair)
{
    struct chaos_when of_pair = *when;
    of_pair.pair = pair;
    chaos_load_set(&s->load, &of_pair);
}

muster_status chaos_step_load(struct chaos_step *step, const struct chaos_when *when)
{
    bool spoil = step->shape->spoil && step->rank == 0 && when->step % SPOILED_STEPS == 1;
    muster_status status = MUSTER_OK;
    for (int32_t i = 0; i < CHAOS_PAIRS && status == MUSTER_OK; i++) {
        set_pair(step, when, i);
        status = load_rows(step, &step->pair[i], spoil);
        if (status == MUSTER_OK)
            status = load_routes(step, &step->pair[i]);
    }
    return status;
}

/* ---- the step ---- */

static bool says_void(muster_status status)
{
    return status == MUSTER_ERR_VOID || status == MUSTER_ERR_TIMEOUT || status == MUSTER_ERR_PEER;
}

static muster_status run_pair(struct chaos_step *s, int32_t i, const struct chaos_trap *trap)
{
    struct chaos_pair *p = &s->pair[i];
    muster_ep *ep = s->ep[p->exchange];
    if (trap)
        trap->before_dispatch(trap->context, i);
    muster_status status = muster_ep_dispatch(ep, &p->dispatch, s->device->stream);
    if (status != MUSTER_OK)
        return status;
    if (trap)
        trap->after_dispatch(trap->context, i);
    return muster_ep_combine(ep, &p->combine, s->device->stream);
}

muster_status chaos_step_enqueue(struct chaos_step *step, const struct chaos_trap *trap)
{
    muster_status status = muster_step_begin(step->group, step->device->stream);
    if (status != MUSTER_OK)
        return status;
    for (int32_t i = 0; i < CHAOS_PAIRS && status == MUSTER_OK; i++)
        status = run_pair(step, i, trap);
    if (status != MUSTER_OK && !says_void(status))
        return status;
    return muster_step_end(step->group, step->device->stream);
}

muster_status chaos_step_replay(struct chaos_step *step)
{
    return step->device->runtime->graph_launch(step->graph, step->device->stream);
}

/* ---- what came ---- */

static uint64_t differing(const void *got, const void *wanted, size_t bytes)
{
    const unsigned char *a = got, *b = wanted;
    uint64_t count = 0;
    if (memcmp(a, b, bytes) == 0)
        return 0;
    for (size_t i = 0; i < bytes; i++)
        count += a[i] != b[i];
    return count;
}

/* Fetches `bytes` at an offset of an array, and compares them with what `wanted` holds. */
static muster_status compare(struct chaos_step *s, const struct chaos_array *a, size_t offset, size_t bytes,
                             uint64_t *wrong)
{
    const unsigned char *from = a->tensor.data;
    muster_status status = bytes ? chaos_device_copy(s->device, s->rows, from + offset, bytes) : MUSTER_OK;
    if (status == MUSTER_OK)
        *wrong += differing(s->rows, s->wanted, bytes);
    return status;
}

/* The slot of this rank that a route of a received row is for, or -1. */
static int32_t local_slot(const struct chaos_step *s, const struct chaos_origin *row, size_t k)
{
    int32_t slot = chaos_load_routes(&s->load, row->rank, row->token)->slot[k] - s->rank * s->shape->slots;
    return slot >= 0 && slot < s->shape->slots ? slot : -1;
}

/* Rank-major: beside each row, the slots it is for and their weights. The block's origins are there. */
static muster_status check_routes(struct chaos_step *s, const struct chaos_pair *p, int32_t block, int32_t count,
                                  uint64_t *wrong)
{
    size_t topk = (size_t)s->shape->topk, entries = (size_t)count * topk;
    size_t offset = (size_t)block * (size_t)p->slots.shape[1] * topk * sizeof(int32_t);
    int32_t *slots = (int32_t *)(void *)s->wanted;
    for (size_t i = 0; i < entries; i++)
        slots[i] = local_slot(s, &s->origins[i / topk], i % topk);
    muster_status status = compare(s, &p->slots, offset, entries * sizeof *slots, wrong);
    float *weights = (float *)(void *)s->wanted;
    for (size_t i = 0; i < entries; i++) {
        const struct chaos_origin *row = &s->origins[i / topk];
        bool ours = local_slot(s, row, i % topk) >= 0;
        weights[i] = ours ? chaos_load_routes(&s->load, row->rank, row->token)->weight[i % topk] : 0;
    }
    return status == MUSTER_OK ? compare(s, &p->weights, offset, entries * sizeof *weights, wrong) : status;
}

static muster_status check_block(struct chaos_step *s, const struct chaos_pair *p, int32_t block, uint64_t *wrong)
{
    size_t bytes = row_bytes(s->shape), offset = (size_t)block * (size_t)p->received.shape[1] * bytes;
    int32_t count = chaos_load_block(&s->load, p->by_rank, s->rank, block, s->origins);
    for (int32_t j = 0; j < count; j++)
        chaos_load_row(&s->load, s->origins[j].rank, s->origins[j].token,
                       (uint16_t *)(void *)(s->wanted + (size_t)j * bytes));
    muster_status status = compare(s, &p->received, offset, (size_t)count * bytes, wrong);
    return status == MUSTER_OK && p->by_rank ? check_routes(s, p, block, count, wrong) : status;
}

static muster_status check_counts(struct chaos_step *s, const struct chaos_pair *p, uint64_t *wrong)
{
    int32_t blocks = (int32_t)p->counts.shape[0];
    int32_t *counts = (int32_t *)(void *)s->wanted;
    for (int32_t block = 0; block < blocks; block++)
        counts[block] = chaos_load_block(&s->load, p->by_rank, s->rank, block, s->origins);
    return compare(s, &p->counts, 0, (size_t)blocks * sizeof *counts, wrong);
}

static muster_status check_output(struct chaos_step *s, const struct chaos_pair *p, uint64_t *wrong)
{
    size_t bytes = row_bytes(s->shape);
    for (int32_t t = 0; t < s->shape->tokens; t++)
        chaos_load_home(&s->load, p->by_rank, s->rank, t, (uint16_t *)(void *)(s->wanted + (size_t)t * bytes));
    return compare(s, &p->out, 0, (size_t)s->shape->tokens * bytes, wrong);
}

muster_status chaos_step_check(struct chaos_step *step, const struct chaos_when *when, uint64_t *wrong)
{
    muster_status status = MUSTER_OK;
    for (int32_t i = 0; i < CHAOS_PAIRS && status == MUSTER_OK; i++) {
        const struct chaos_pair *p = &step->pair[i];
        set_pair(step, when, i);
        status = check_counts(step, p, wrong);
        for (int32_t block = 0; block < p->counts.shape[0] && status == MUSTER_OK; block++)
            status = check_block(step, p, block, wrong);
        if (status == MUSTER_OK)
            status = check_output(step, p, wrong);
    }
    return status;
}
