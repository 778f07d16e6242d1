// SPDX-License-Identifier: Apache-2.0
#include "perf_plan.h"

#include <stdlib.h>
#include <string.h>

/* Rows that go to a rank are sorted by bins: its slots if expert-major, otherwise it has a single one. */
struct maker {
    const struct perf_shape *shape;
    struct perf_plan *plan;
    const struct perf_routes *routes; /* [ranks][tokens] */
    int32_t rank, tokens;
    bool by_slot;
    int32_t bins; /* of a rank */
    int32_t places, leaving, arriving; /* rows */
};

static bool goes_to(const struct maker *m, int32_t source, int32_t token, int32_t rank, int32_t bin)
{
    const struct perf_routes *routes = m->routes + (size_t)source * (size_t)m->tokens + token;
    int32_t begin = rank * m->shape->slots + bin;
    return perf_load_goes_to(m->shape, routes, begin, begin + (m->by_slot ? 1 : m->shape->slots));
}

static void add_move(struct perf_moves *moves, int32_t to, int32_t from)
{
    moves->to[moves->count] = to;
    moves->from[moves->count++] = from;
}

/* ---- what comes ---- */

/* What would travel beside the row: the slots of this rank that want it, and their weights. */
static void set_routes(const struct maker *m, int32_t source, int32_t token, int32_t place)
{
    const struct perf_routes *routes = m->routes + (size_t)source * (size_t)m->tokens + token;
    size_t at = (size_t)place * (size_t)m->shape->topk;
    for (int32_t k = 0; k < m->shape->topk; k++) {
        int32_t slot = routes->expert[k] - m->rank * m->shape->slots;
        m->plan->slots[at + (size_t)k] = slot >= 0 && slot < m->shape->slots ? slot : -1;
        m->plan->weights[at + (size_t)k] = routes->weight[k];
    }
}

static void receive_row(struct maker *m, int32_t source, int32_t token, int32_t bin)
{
    struct perf_plan *p = m->plan;
    struct perf_traffic *traffic = &p->traffic[source];
    int32_t block = m->by_slot ? bin : source;
    int32_t place = p->first[block] + p->count[block]++;
    if (!m->by_slot)
        set_routes(m, source, token, place);
    if (source == m->rank)
        add_move(&p->out, place, token);
    else if (m->by_slot)
        add_move(&p->in, place, m->arriving++);
    traffic->received.count += source != m->rank;
}

/* Expert-major: where rows arrive is counted from the first that arrives, until it is known how many leave. */
static void receive_source(struct maker *m, int32_t source)
{
    struct perf_plan *p = m->plan;
    if (m->shape->layout == MUSTER_EP_FLAT && source > 0)
        p->first[source] = p->first[source - 1] + p->count[source - 1];
    p->traffic[source].received.first = m->by_slot ? m->arriving : p->first[source];
    for (int32_t bin = 0; bin < m->bins; bin++)
        for (int32_t token = 0; token < m->tokens; token++)
            if (goes_to(m, source, token, m->rank, bin))
                receive_row(m, source, token, bin);
}

/* ---- what goes ---- */

/* Expert-major: the parts of a sum are in the order of the routes; otherwise in that of the ranks. */
static void add_part(const struct maker *m, int32_t token, int32_t expert, int32_t number)
{
    const struct perf_routes *routes = m->routes + (size_t)m->rank * (size_t)m->tokens + token;
    size_t first = (size_t)token * (size_t)m->plan->parts, k = 0;
    if (m->by_slot)
        while (routes->expert[k] != expert)
            k++;
    else
        while (m->plan->home[first + k] >= 0)
            k++;
    m->plan->home[first + k] = number;
    m->plan->weight[first + k] = m->by_slot ? routes->weight[k] : 1.0f; /* the ranks have weighted */
}

/* Rows to the own rank have got their places already, in this same order: own[0], own[1] and so on. */
static void send_to(struct maker *m, int32_t rank, const int32_t *own)
{
    struct perf_plan *p = m->plan;
    struct perf_traffic *traffic = &p->traffic[rank];
    traffic->sent.first = m->places + m->leaving;
    for (int32_t bin = 0; bin < m->bins; bin++)
        for (int32_t token = 0; token < m->tokens; token++) {
            if (!goes_to(m, m->rank, token, rank, bin))
                continue;
            int32_t number = rank == m->rank ? *own++ : m->places + m->leaving++;
            add_part(m, token, rank * m->shape->slots + bin, number);
            if (rank == m->rank)
                continue;
            add_move(&p->out, number, token);
            traffic->sent.count++;
        }
}

/* ---- all of it ---- */

static void number_arriving(struct maker *m)
{
    struct perf_plan *p = m->plan;
    int32_t begin = m->places + m->leaving;
    if (!m->by_slot)
        return;
    for (int32_t i = 0; i < p->in.count; i++)
        p->in.from[i] += begin;
    for (int32_t source = 0; source < p->ranks; source++)
        p->traffic[source].received.first += begin;
}

static void make(struct maker *m)
{
    struct perf_plan *p = m->plan;
    for (int32_t block = 0; block < p->blocks; block++)
        p->first[block] = block * p->block_rows;
    for (int32_t source = 0; source < p->ranks; source++)
        receive_source(m, source);
    const int32_t *own = p->out.to;
    for (int32_t rank = 0; rank < p->ranks; rank++)
        send_to(m, rank, own);
    number_arriving(m);
    p->crossing = m->leaving + m->arriving;
    p->rows = m->places + p->crossing;
}

static int32_t less(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static int32_t *numbers(size_t count)
{
    return calloc(count ? count : 1, sizeof(int32_t));
}

static bool make_moves(struct perf_moves *moves, size_t most)
{
    moves->to = numbers(most);
    moves->from = numbers(most);
    return moves->to && moves->from;
}

static bool make_lists(const struct maker *m)
{
    struct perf_plan *p = m->plan;
    size_t sums = (size_t)p->tokens * (size_t)p->parts, routes = (size_t)m->places * (size_t)m->shape->topk;
    size_t come = (size_t)p->ranks * (size_t)p->tokens * (size_t)less(m->shape->topk, m->shape->slots);
    if (!make_moves(&p->out, sums) || !make_moves(&p->in, m->by_slot ? come : 0))
        return false;
    p->home = numbers(sums);
    p->weight = calloc(sums, sizeof *p->weight);
    p->first = numbers((size_t)p->blocks);
    p->count = numbers((size_t)p->blocks);
    p->slots = numbers(m->by_slot ? 0 : routes);
    p->weights = calloc(m->by_slot ? 1 : routes, sizeof *p->weights);
    if (!p->home || !p->weight || !p->first || !p->count || !p->slots || !p->weights)
        return false;
    memset(p->home, 0xff, sums * sizeof *p->home); /* -1 */
    return true;
}

/* Of all tokens of all ranks. */
static struct perf_routes *all_routes(const struct perf_shape *shape, int32_t tokens)
{
    struct perf_routes *routes = calloc((size_t)shape->ranks * (size_t)tokens, sizeof *routes);
    for (int32_t rank = 0; rank < shape->ranks && routes; rank++)
        for (int32_t token = 0; token < tokens; token++)
            perf_load_routes(shape, rank, token, routes + (size_t)rank * (size_t)tokens + token);
    return routes;
}

bool perf_plan_make(const struct perf_shape *shape, int32_t rank, int32_t tokens, struct perf_plan *plan)
{
    bool by_slot = shape->layout == MUSTER_EP_EXPERT_MAJOR;
    *plan = (struct perf_plan){.ranks = shape->ranks, .tokens = tokens};
    plan->parts = by_slot ? shape->topk : less(shape->topk, shape->ranks);
    plan->blocks = by_slot ? shape->slots : shape->ranks;
    plan->block_rows = by_slot ? shape->ranks * tokens : shape->layout == MUSTER_EP_FLAT ? 0 : tokens;
    struct perf_routes *routes = all_routes(shape, tokens);
    struct maker m = {.shape = shape, .plan = plan, .routes = routes, .rank = rank, .tokens = tokens};
    m.by_slot = by_slot;
    m.bins = by_slot ? shape->slots : 1;
    m.places = (by_slot ? shape->slots : 1) * shape->ranks * tokens;
    bool good = routes && make_lists(&m);
    if (good)
        make(&m);
    free(routes);
    return good;
}

void perf_plan_free(struct perf_plan *plan)
{
    void *all[] = {plan->out.to, plan->out.from, plan->in.to, plan->in.from, plan->home,
                   plan->weight, plan->first,    plan->count, plan->slots,   plan->weights};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    *plan = (struct perf_plan){.ranks = 0};
}
