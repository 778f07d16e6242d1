// SPDX-License-Identifier: Apache-2.0
/*
 * A layer's experts: the router picks them, dispatch takes the rows there, this rank's experts compute what has come,
 * and combine brings the results home, weighted and added in top-k order. So neither the place of an expert nor the
 * number of ranks can be seen in the sum.
 */
#include <math.h>

#include "core/clock.h"
#include "core/trace.h"
#include "linear.h"
#include "state.h"

void experts_exchange_config(const struct model_config *model, int32_t slots_per_rank, int32_t max_tokens,
                             muster_ep_config *config)
{
    *config = (muster_ep_config)MUSTER_EP_CONFIG_INIT;
    config->hidden = model->hidden_size;
    config->dtype = MUSTER_FP32;
    config->max_tokens = max_tokens;
    config->slots_per_rank = slots_per_rank;
    config->topk = model->num_experts_per_tok;
    config->layout = MUSTER_EP_EXPERT_MAJOR;
    config->combine = MUSTER_EP_EXACT;
}

/* ---- The router ---- */

/* The expert with the largest odds that are left (a chosen one has -1); of equals the lowest. */
static int32_t best_expert(const float *odds, int32_t experts)
{
    int32_t best = 0;
    for (int32_t i = 1; i < experts; i++)
        if (odds[i] > odds[best])
            best = i;
    return best;
}

/* Fills one row of slots and shares. */
static void route_row(struct engine *e, const float *router, int32_t i)
{
    const struct model_config *m = &e->weights.model;
    struct batch *b = &e->batch;
    int32_t topk = m->num_experts_per_tok, *slots = b->slots + (size_t)i * (size_t)topk;
    float *shares = batch_row(b->shares, i, topk), chosen = 0;
    linear_apply(router, m->num_experts, m->hidden_size, batch_row(b->normed, i, m->hidden_size), b->odds);
    float sum = linear_exp_sum(b->odds, m->num_experts);
    for (int32_t k = 0; k < topk; k++) {
        int32_t expert = best_expert(b->odds, m->num_experts);
        shares[k] = b->odds[expert] / sum;
        chosen += shares[k];
        b->odds[expert] = -1;
        slots[k] = e->expert_to_slot[expert];
        e->step_remote_routes += slots[k] / e->slots_per_rank != e->rank;
    }
    e->step_routes += (uint64_t)topk;
    for (int32_t k = 0; k < topk && m->norm_topk_prob; k++)
        shares[k] /= chosen;
}

static void route_rows(struct engine *e, const struct weights_layer *w)
{
    const struct model_config *m = &e->weights.model;
    struct batch *b = &e->batch;
    for (int32_t i = 0; i < b->count; i++) {
        linear_rms_norm(w->post_norm, batch_row(b->hidden, i, m->hidden_size), m->hidden_size, m->rms_norm_eps,
                        batch_row(b->normed, i, m->hidden_size));
        route_row(e, w->router, i);
    }
}

/* ---- The exchange ---- */

static muster_tensor tensor(void *data, muster_dtype dtype, int32_t ndim, int64_t *shape)
{
    return (
        muster_tensor){.data = data, .device = {MUSTER_DEVICE_CPU, 0}, .ndim = ndim, .dtype = dtype, .shape = shape};
}

static muster_status dispatch(struct engine *e)
{
    const struct model_config *m = &e->weights.model;
    struct batch *b = &e->batch;
    int64_t rows[2] = {b->count, m->hidden_size}, routes[2] = {b->count, m->num_experts_per_tok};
    int64_t come[3] = {e->slots_per_rank, (int64_t)e->ranks * e->max_tokens, m->hidden_size};
    muster_tensor hidden = tensor(b->normed, MUSTER_FP32, 2, rows), slots = tensor(b->slots, MUSTER_INT32, 2, routes);
    muster_tensor shares = tensor(b->shares, MUSTER_FP32, 2, routes);
    muster_tensor received = tensor(b->received, MUSTER_FP32, 3, come);
    muster_tensor arrived = tensor(b->arrived, MUSTER_INT32, 1, come);
    muster_ep_dispatch_args args = MUSTER_EP_DISPATCH_INIT;
    args.hidden = &hidden;
    args.topk_slots = &slots;
    args.topk_weights = &shares;
    args.out_hidden = &received;
    args.out_counts = &arrived;
    return muster_ep_dispatch(e->exchange, &args, NULL);
}

static muster_status combine(struct engine *e)
{
    const struct model_config *m = &e->weights.model;
    struct batch *b = &e->batch;
    int64_t rows[2] = {b->count, m->hidden_size};
    int64_t come[3] = {e->slots_per_rank, (int64_t)e->ranks * e->max_tokens, m->hidden_size};
    muster_tensor results = tensor(b->received, MUSTER_FP32, 3, come), out = tensor(b->added, MUSTER_FP32, 2, rows);
    muster_ep_combine_args args = MUSTER_EP_COMBINE_INIT;
    args.results = &results;
    args.out = &out;
    return muster_ep_combine(e->exchange, &args, NULL);
}

/* ---- The experts themselves ---- */

/* down(silu(gate x) * up x), in place of x. */
static void expert_row(const struct model_config *m, const struct weights_expert *w, float *inner, float *x)
{
    int32_t width = m->moe_intermediate_size;
    float *gate = inner, *up = inner + width;
    linear_apply(w->gate, width, m->hidden_size, x, gate);
    linear_apply(w->up, width, m->hidden_size, x, up);
    for (int32_t i = 0; i < width; i++)
        gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    linear_apply(w->down, m->hidden_size, width, gate, x);
}

static void compute(struct engine *e, int32_t layer)
{
    const struct model_config *m = &e->weights.model;
    struct batch *b = &e->batch;
    uint64_t started_ns = clock_ns(), rows = 0;
    for (int32_t slot = 0; slot < e->slots_per_rank; slot++) {
        struct weights_expert w = weights_slot(&e->weights, layer, slot);
        size_t first = (size_t)slot * (size_t)e->ranks * (size_t)e->max_tokens;
        for (int32_t i = 0; i < b->arrived[slot]; i++)
            expert_row(m, &w, b->inner, b->received + (first + (size_t)i) * (size_t)m->hidden_size);
        rows += (uint64_t)b->arrived[slot];
    }
    trace_add(TRACE_EXPERTS, started_ns, clock_ns() - started_ns, rows);
}

muster_status experts_layer(struct engine *e, int32_t layer)
{
    route_rows(e, &e->weights.layer[layer]);
    muster_status status = dispatch(e);
    if (status != MUSTER_OK)
        return status;
    compute(e, layer);
    return combine(e);
}
