// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/exchange.h"

#include <stdlib.h>

#include "kernels/cpu/memory.h"

enum { CHUNK_BYTES = 256 * 1024 };

void exchange_order(const struct kernel_step *step, struct exchange_order *order)
{
    order->count = 0;
    for (int i = 1; i <= step->ranks; i++) {
        int rank = (step->rank + i) % step->ranks;
        if (mask_has(step->mask, rank))
            order->rank[order->count++] = rank;
    }
}

void exchange_raise(const struct kernel_step *step, const struct exchange_order *order, uint64_t line, uint64_t stamp,
                    enum fault_point between)
{
    for (int i = 0; i < order->count; i++) {
        flag_raise(&exchange_lines(step, order->rank[i], line)[step->rank].flag, stamp);
        if (i == 0)
            fault_here(between);
    }
}

void exchange_copy_rows(unsigned char *to, const struct row_input *from, size_t row_bytes, int32_t count)
{
    if (from->stride == row_bytes) {
        remote_copy(to, from->data, (size_t)count * row_bytes);
        return;
    }
    for (int32_t i = 0; i < count; i++)
        remote_copy(to + (size_t)i * row_bytes, from->data + (size_t)i * from->stride, row_bytes);
}

void exchange_refuse(const struct kernel_step *step, muster_phase phase, int peer, uint64_t detail)
{
    atomic_store(&step->control->failure_detail, detail);
    failure_record(step->control, failure_pack(MUSTER_REASON_VALUE, phase, peer, step->epoch));
}

/* The numbers of a shape, as sizes. */
struct counts {
    size_t ranks, slots, tokens, topk;
};

static bool plan_create(struct send_plan *plan, const struct counts *n, bool exact)
{
    size_t rows = n->ranks * n->tokens;
    size_t routes = n->tokens * n->topk;
    plan->rows = calloc(n->ranks, sizeof(*plan->rows));
    plan->token = calloc(rows, sizeof(*plan->token));
    plan->slot = calloc(rows * n->topk, sizeof(*plan->slot));
    plan->weight = calloc(rows * n->topk, sizeof(*plan->weight));
    plan->loads = calloc(n->ranks * n->slots, sizeof(*plan->loads));
    plan->parts = calloc(n->tokens, sizeof(*plan->parts));
    plan->from = calloc(routes, sizeof(*plan->from));
    plan->row = calloc(exact ? 1 : routes, sizeof(*plan->row));
    plan->scale = calloc(routes, sizeof(*plan->scale));
    plan->first = calloc(n->ranks, sizeof(*plan->first));
    plan->slot_mark = calloc(n->ranks * n->slots, sizeof(*plan->slot_mark));
    plan->rank_mark = calloc(n->ranks, sizeof(*plan->rank_mark));
    return plan->rows && plan->token && plan->slot && plan->weight && plan->loads && plan->parts && plan->from &&
           plan->row && plan->scale && plan->first && plan->slot_mark && plan->rank_mark;
}

static void plan_destroy(struct send_plan *plan)
{
    free(plan->rows);
    free(plan->token);
    free(plan->slot);
    free(plan->weight);
    free(plan->loads);
    free(plan->parts);
    free(plan->from);
    free(plan->row);
    free(plan->scale);
    free(plan->first);
    free(plan->slot_mark);
    free(plan->rank_mark);
}

/* With rank-major and flat the caller has slots and weights; only the row counts are kept. */
static bool received_create(struct received *in, const struct counts *n, bool expert_major)
{
    in->rows = calloc(n->ranks, sizeof(*in->rows));
    in->first = calloc(n->ranks, sizeof(*in->first));
    if (!expert_major)
        return in->rows && in->first;
    size_t rows = n->ranks * n->tokens;
    in->token = calloc(rows, sizeof(*in->token));
    in->slot = calloc(rows * n->topk, sizeof(*in->slot));
    in->weight = calloc(rows * n->topk, sizeof(*in->weight));
    in->begin = calloc(n->slots * n->ranks, sizeof(*in->begin));
    in->count = calloc(n->slots * n->ranks, sizeof(*in->count));
    in->cursor = calloc(n->slots, sizeof(*in->cursor));
    return in->rows && in->first && in->token && in->slot && in->weight && in->begin && in->count && in->cursor;
}

static void received_destroy(struct received *in)
{
    free(in->rows);
    free(in->first);
    free(in->token);
    free(in->slot);
    free(in->weight);
    free(in->begin);
    free(in->count);
    free(in->cursor);
}

static bool scratch_create(struct cpu_exchange *x)
{
    const struct exchange_shape *shape = &x->shape;
    size_t row = shape->result_bytes;
    size_t chunk = row < CHUNK_BYTES ? CHUNK_BYTES / row : 1;
    x->chunk = chunk < (size_t)shape->tokens ? (int32_t)chunk : shape->tokens;
    x->scratch = malloc(((size_t)shape->topk + 1) * shape->return_bytes);
    if (!shape->quantise)
        return x->scratch;
    x->codes = malloc((size_t)x->chunk * shape->array[0].row_bytes);
    x->scales = malloc((size_t)x->chunk * shape->array[1].row_bytes);
    return x->scratch && x->codes && x->scales;
}

static void cpu_exchange_destroy(void *exchange)
{
    struct cpu_exchange *x = exchange;
    if (!x)
        return;
    plan_destroy(&x->plan);
    received_destroy(&x->received);
    free(x->codes);
    free(x->scales);
    free(x->scratch);
    free(x);
}

static void *cpu_exchange_create(const struct exchange_shape *shape)
{
    const struct rows_arithmetic *builds[ROWS_MAX_BUILDS];
    struct cpu_exchange *x = calloc(1, sizeof(*x));
    if (!x)
        return NULL;
    x->shape = *shape;
    x->rows = builds[rows_builds(builds) - 1];
    struct counts n = {(size_t)shape->ranks, (size_t)shape->slots, (size_t)shape->tokens, (size_t)shape->topk};
    bool complete = plan_create(&x->plan, &n, shape->exact);
    complete = received_create(&x->received, &n, shape->expert_major) && complete;
    complete = scratch_create(x) && complete;
    if (complete)
        return x;
    cpu_exchange_destroy(x);
    return NULL;
}

const struct kernel_ops cpu_kernel_ops = {
    .size = sizeof(struct kernel_ops),
    .name = "cpu",
    .exchange_create = cpu_exchange_create,
    .exchange_destroy = cpu_exchange_destroy,
    .dispatch_send = dispatch_send,
    .dispatch_receive = dispatch_receive,
    .combine_send = combine_send,
    .combine_receive = combine_receive,
};
