// SPDX-License-Identifier: Apache-2.0
/*
 * Where every route goes, before a byte is sent. Row j of a rank is the j-th token of this source that routes there:
 * computed, not drawn from a counter that ranks or threads share, so layouts are the same on every run (X6).
 */
#include "kernels/cpu/exchange.h"

#include <string.h>

/* A rank that the token at hand goes to, and which of its rows it becomes. */
struct destination {
    int32_t rank;
    int32_t row;
};

/* One entry of a token's topk_slots. */
struct route {
    int32_t k, slot, rank;
    float weight;
};

struct token_routes {
    int32_t token;
    int32_t dropped;
    int count; /* of distinct destinations, in rank order */
    struct destination destination[MUSTER_EP_MAX_TOPK];
};

static int64_t route_slot(const struct dispatch_send_args *args, int32_t token, int32_t k)
{
    const unsigned char *row = args->topk_slots.data + (size_t)token * args->topk_slots.stride;
    return args->wide ? ((const int64_t *)(const void *)row)[k] : ((const int32_t *)(const void *)row)[k];
}

static float route_weight(const struct dispatch_send_args *args, int32_t token, int32_t k)
{
    if (!args->topk_weights.data)
        return 1.0f;
    const unsigned char *row = args->topk_weights.data + (size_t)token * args->topk_weights.stride;
    return ((const float *)(const void *)row)[k];
}

static void plan_clear(struct cpu_exchange *x, int32_t tokens)
{
    struct send_plan *plan = &x->plan;
    size_t ranks = (size_t)x->shape.ranks, slots = ranks * (size_t)x->shape.slots;
    plan->tokens = tokens;
    memset(plan->rows, 0, ranks * sizeof(*plan->rows));
    memset(plan->loads, 0, slots * sizeof(*plan->loads));
    if (plan->mark <= UINT32_MAX - (uint32_t)tokens)
        return;
    plan->mark = 0; /* the marks would come round again: forget them all */
    memset(plan->slot_mark, 0, slots * sizeof(*plan->slot_mark));
    memset(plan->rank_mark, 0, ranks * sizeof(*plan->rank_mark));
}

/* Keeps the destinations in rank order, which is the order in which combine adds them. */
static void destination_insert(struct token_routes *routes, int32_t rank, int32_t row)
{
    int i = routes->count++;
    for (; i > 0 && routes->destination[i - 1].rank > rank; i--)
        routes->destination[i] = routes->destination[i - 1];
    routes->destination[i] = (struct destination){rank, row};
}

/* The row of `rank` for this token; a new one, with no route yet, the first time. */
static size_t plan_row(struct cpu_exchange *x, struct token_routes *routes, int32_t rank)
{
    struct send_plan *plan = &x->plan;
    if (plan->rank_mark[rank] == plan->mark)
        return exchange_row(&x->shape, rank, plan->rows[rank] - 1);
    plan->rank_mark[rank] = plan->mark;
    int32_t j = plan->rows[rank]++;
    size_t row = exchange_row(&x->shape, rank, j), topk = (size_t)x->shape.topk;
    plan->token[row] = routes->token;
    memset(plan->slot + row * topk, 0xff, topk * sizeof(*plan->slot)); /* all -1 */
    memset(plan->weight + row * topk, 0, topk * sizeof(*plan->weight));
    destination_insert(routes, rank, j);
    return row;
}

static void plan_route(struct cpu_exchange *x, struct token_routes *routes, const struct route *route)
{
    struct send_plan *plan = &x->plan;
    size_t at = plan_row(x, routes, route->rank) * (size_t)x->shape.topk + (size_t)route->k;
    plan->slot[at] = route->slot - route->rank * x->shape.slots;
    plan->weight[at] = route->weight;
    plan->loads[route->slot]++;
    if (!x->shape.exact)
        return;
    size_t part = (size_t)routes->token * (size_t)x->shape.topk + (size_t)plan->parts[routes->token]++;
    plan->from[part] = route->k;
    plan->scale[part] = route->weight;
}

/* Reduced: combine adds one row per rank, which has weighted it. */
static void plan_parts(struct cpu_exchange *x, const struct token_routes *routes)
{
    struct send_plan *plan = &x->plan;
    plan->parts[routes->token] = routes->count;
    for (int i = 0; i < routes->count; i++) {
        size_t part = (size_t)routes->token * (size_t)x->shape.topk + (size_t)i;
        plan->from[part] = routes->destination[i].rank;
        plan->row[part] = routes->destination[i].row;
        plan->scale[part] = 1.0f;
    }
}

/* Whether entry k of the token is a slot id that may stand there; then it is marked as seen. */
static bool route_valid(struct cpu_exchange *x, int64_t slot)
{
    struct send_plan *plan = &x->plan;
    if (slot < 0 || slot >= (int64_t)x->shape.ranks * x->shape.slots || plan->slot_mark[slot] == plan->mark)
        return false;
    plan->slot_mark[slot] = plan->mark;
    return true;
}

/* Returns the k of the first bad entry, or -1. */
static int32_t plan_token(struct cpu_exchange *x, const struct kernel_step *step, const struct dispatch_send_args *args,
                          struct token_routes *routes)
{
    x->plan.mark++;
    x->plan.parts[routes->token] = 0;
    routes->count = 0;
    for (int32_t k = 0; k < x->shape.topk; k++) {
        int64_t slot = route_slot(args, routes->token, k);
        if (slot == -1)
            continue;
        if (!route_valid(x, slot))
            return k;
        struct route route = {k, (int32_t)slot, (int32_t)slot / x->shape.slots, 0};
        if (!mask_has(step->mask, route.rank)) {
            /* X7: masked mode; the route becomes -1 and is reported, and nobody renormalises what is left. */
            if (!x->shape.masked)
                return k;
            routes->dropped++;
            continue;
        }
        route.weight = route_weight(args, routes->token, k);
        plan_route(x, routes, &route);
    }
    if (!x->shape.exact)
        plan_parts(x, routes);
    return -1;
}

bool route_plan(struct cpu_exchange *x, const struct kernel_step *step, const struct dispatch_send_args *args,
                uint64_t *bad)
{
    struct token_routes routes = {.dropped = 0};
    plan_clear(x, args->tokens);
    for (routes.token = 0; routes.token < args->tokens; routes.token++) {
        int32_t k = plan_token(x, step, args, &routes);
        if (k < 0)
            continue;
        *bad = (uint64_t)(uint32_t)routes.token << 32 | (uint32_t)k;
        return false;
    }
    *args->dropped_routes = routes.dropped;
    return true;
}
