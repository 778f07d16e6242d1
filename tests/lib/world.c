// SPDX-License-Identifier: Apache-2.0
#include "lib/world.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mask.h"

uint64_t world_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static int world_below(uint64_t *state, int limit)
{
    return (int)(world_random(state) % (uint64_t)limit);
}

static void *world_allocate(size_t count, size_t bytes)
{
    void *memory = calloc(count + 1, bytes);
    if (!memory) {
        fprintf(stderr, "world: out of memory: %zu x %zu bytes\n", count, bytes);
        abort();
    }
    return memory;
}

muster_dtype case_dtype(enum oracle_type type)
{
    const muster_dtype dtypes[] = {
        [ORACLE_BF16] = MUSTER_BF16,
        [ORACLE_FP16] = MUSTER_FP16,
        [ORACLE_FP32] = MUSTER_FP32,
        [ORACLE_FP8] = MUSTER_FP8,
    };
    return dtypes[type];
}

muster_ep_config case_config(const struct exchange_case *c)
{
    muster_ep_config config = MUSTER_EP_CONFIG_INIT;
    config.hidden = c->hidden;
    config.dtype = case_dtype(c->type);
    config.max_tokens = c->max_tokens;
    config.slots_per_rank = c->slots;
    config.topk = c->topk;
    config.layout = c->layout;
    config.combine = c->combine;
    config.quantise = c->quantise;
    config.quantise_return = c->quantise_return;
    config.masked = c->masked;
    config.load_stats = c->load_stats;
    config.payload_count = c->payloads;
    for (int p = 0; p < c->payloads; p++)
        config.payload[p] =
            (muster_ep_payload){.name = "extra", .elements = c->payload[p].elements, .dtype = c->payload[p].dtype};
    return config;
}

static enum oracle_quantise case_quantise(muster_ep_quantise quantise)
{
    switch (quantise) {
    case MUSTER_EP_QUANTISE_FP8: return ORACLE_SCALED;
    case MUSTER_EP_QUANTISE_FP8_POW2: return ORACLE_SCALED_POW2;
    default: return ORACLE_PLAIN;
    }
}

static struct oracle_shape case_shape(const struct exchange_case *c, int ranks)
{
    struct oracle_shape shape = {.ranks = ranks,
                                 .slots = c->slots,
                                 .max_tokens = c->max_tokens,
                                 .hidden = c->hidden,
                                 .topk = c->topk,
                                 .type = c->type,
                                 .payloads = c->payloads,
                                 .pad = c->pad,
                                 .invalid = -7};
    shape.quantise = case_quantise(c->quantise);
    shape.quantise_return = case_quantise(c->quantise_return);
    for (int p = 0; p < c->payloads; p++)
        shape.payload_bytes[p] = c->payload[p].elements * c->payload[p].dtype.bits / 8;
    return shape;
}

static int draw_tokens(const struct exchange_case *c, uint64_t *random)
{
    switch (c->tokens) {
    case TOKENS_UNEVEN: return world_below(random, c->max_tokens + 1);
    case TOKENS_MOSTLY_NONE: return world_below(random, 4) == 0 ? c->max_tokens : 0;
    case TOKENS_NONE: return 0;
    default: return c->max_tokens;
    }
}

static double draw_plain(uint64_t *random)
{
    return ((double)world_below(random, 2001) - 1000.0) / 500.0;
}

static double draw_wild(uint64_t *random)
{
    static const double odd[] = {0.0,   -0.0, INFINITY, -INFINITY, NAN,      1e-40, -3e-39, 1.2e-38,
                                 1e-45, 3e38, -3e38,    448.0,     -464.001, 1e-4,  9.9e-5, 1e-7};
    int pick = world_below(random, 160);
    if (pick < 16)
        return odd[pick];
    return draw_plain(random) * ldexp(1.0, world_below(random, 40) - 20);
}

/* The same within what fp16 can hold. */
static double draw_wild_fp16(uint64_t *random)
{
    static const double odd[] = {0.0,  -0.0, INFINITY, -INFINITY, NAN,      65504.0, -65504.0, 65488.0,
                                 6e-8, 3e-8, -1.2e-7,  6.1e-5,    -6.11e-5, 1e-4,    9.9e-5,   2048.0};
    int pick = world_below(random, 160);
    if (pick < 16)
        return odd[pick];
    return draw_plain(random) * ldexp(1.0, world_below(random, 38) - 24);
}

static void draw_every(struct world *w, int rank)
{
    uint16_t *code = (uint16_t *)(void *)w->hidden[rank];
    for (int i = 0; i < w->c.max_tokens * w->c.hidden; i++)
        code[i] = (uint16_t)i;
}

/* Whole groups of zeros, of one sign and of tiny numbers occur too, since a group shares its scale. */
static void draw_hidden(struct world *w, int rank, uint64_t *random)
{
    int mood = 0, half = w->c.type == ORACLE_FP16;
    if (w->c.values == VALUES_EVERY) {
        draw_every(w, rank);
        return;
    }
    for (int i = 0; i < w->c.max_tokens * w->c.hidden; i++) {
        if (i % 64 == 0)
            mood = w->c.values == VALUES_WILD ? world_below(random, 6) : 5;
        double value = mood ? draw_plain(random) : half ? draw_wild_fp16(random) : draw_wild(random);
        if (mood == 1)
            value = 0.0;
        if (mood == 2)
            value *= half ? 3e-6 : 1e-39; /* denormals */
        oracle_encode(w->shape.type, w->hidden[rank], (size_t)i, value);
    }
}

static int route_allowed(const struct world *w, int rank, int slot)
{
    if (w->c.routes == ROUTES_NONE || (w->c.routes == ROUTES_LOCAL && slot / w->c.slots != rank))
        return 0;
    return w->c.masked || w->in[slot / w->c.slots].active;
}

/* Draws without replacement: a token never names a slot twice. A fifth of the routes is none. */
static void draw_routes(struct world *w, int rank, int64_t *routes, uint64_t *random)
{
    int slots[MUSTER_MAX_RANKS * 64], count = 0;
    for (int slot = 0; slot < w->ranks * w->c.slots; slot++)
        if (route_allowed(w, rank, slot))
            slots[count++] = slot;
    for (int k = 0; k < w->c.topk; k++) {
        routes[k] = -1;
        if (count == 0 || world_below(random, 5) == 0)
            continue;
        int pick = w->c.routes == ROUTES_HOTSPOT ? 0 : world_below(random, count);
        routes[k] = slots[pick];
        slots[pick] = slots[--count];
    }
}

static void draw_rank(struct world *w, int rank, uint64_t seed)
{
    uint64_t random = seed * 1000003 + (uint64_t)rank;
    struct oracle_rank *in = &w->in[rank];
    size_t rows = (size_t)w->c.max_tokens;
    w->hidden[rank] = world_allocate(rows * (size_t)w->c.hidden, oracle_type_bytes(w->shape.type));
    w->slots[rank] = world_allocate(rows * (size_t)w->c.topk, sizeof(int64_t));
    w->weights[rank] = world_allocate(rows * (size_t)w->c.topk, sizeof(float));
    in->tokens = draw_tokens(&w->c, &random);
    draw_hidden(w, rank, &random);
    for (int token = 0; token < w->c.max_tokens; token++)
        draw_routes(w, rank, w->slots[rank] + token * w->c.topk, &random);
    for (size_t i = 0; i < rows * (size_t)w->c.topk; i++)
        w->weights[rank][i] = (float)(draw_plain(&random) / 3.0);
    for (int p = 0; p < w->c.payloads; p++) {
        size_t bytes = rows * (size_t)w->shape.payload_bytes[p];
        w->payload[rank][p] = world_allocate(bytes, 1);
        for (size_t i = 0; i < bytes; i++)
            w->payload[rank][p][i] = (unsigned char)world_random(&random);
        in->payload[p] = w->payload[rank][p];
    }
    in->hidden = w->hidden[rank];
    in->slots = w->slots[rank];
    in->weights = w->c.no_weights ? NULL : w->weights[rank];
}

struct world *world_draw(const struct exchange_case *c, int ranks, muster_mask mask, uint64_t seed)
{
    struct world *w = world_allocate(1, sizeof(*w));
    w->c = *c;
    w->ranks = ranks;
    w->shape = case_shape(c, ranks);
    for (int rank = 0; rank < ranks; rank++)
        w->in[rank].active = mask_has(mask, rank);
    for (int rank = 0; rank < ranks; rank++)
        draw_rank(w, rank, seed);
    return w;
}

void world_tokens(struct world *w, int rank, int tokens)
{
    w->in[rank].tokens = tokens;
}

/* A cheap function that tells experts, columns and inputs apart; rounded to fp32 after each operation. */
static float expert_value(int expert, int column, float x)
{
    float scale = 0.5f + (float)(expert % 7) * 0.25f;
    float shift = (float)((expert * 31 + column * 17) % 13 - 6) * 0.125f;
    float product = scale * x;
    return product + shift;
}

static float received_value(const struct world *w, const struct oracle_received *received, size_t row, int column)
{
    size_t index = row * (size_t)w->c.hidden + (size_t)column;
    if (!w->shape.quantise)
        return (float)oracle_decode(w->shape.type, received->hidden, index);
    int groups = (w->c.hidden + ORACLE_GROUP - 1) / ORACLE_GROUP;
    float scale = received->scales[row * (size_t)groups + (size_t)(column / ORACLE_GROUP)];
    return (float)oracle_decode(ORACLE_FP8, received->hidden, index) * scale;
}

static int expert_of(const struct world *w, int rank, int local_slot)
{
    int slot = rank * w->c.slots + local_slot;
    return w->expert ? w->expert[slot] : slot;
}

/* Counts of a step that turns out void may be anything; they must not lead outside the arrays. */
static size_t bounded(int32_t count, int limit)
{
    return count < 0 ? 0 : (size_t)(count < limit ? count : limit);
}

static void experts_of_slot(const struct world *w, int rank, const struct oracle_received *received, int slot,
                            void *results)
{
    size_t first = (size_t)slot * (size_t)(w->ranks * w->c.max_tokens);
    size_t count = bounded(received->counts[slot], w->ranks * w->c.max_tokens);
    int expert = expert_of(w, rank, slot);
    for (size_t row = first; row < first + count; row++)
        for (int h = 0; h < w->c.hidden; h++)
            oracle_encode(w->shape.type, results, row * (size_t)w->c.hidden + (size_t)h,
                          (double)expert_value(expert, h, received_value(w, received, row, h)));
}

/* Rank-major and flat: the caller itself weights and sums its experts, in top-k order. */
static void experts_of_row(const struct world *w, int rank, const struct oracle_received *received, size_t row,
                           void *results)
{
    const int32_t *slots = received->slots + row * (size_t)w->c.topk;
    const float *weights = received->weights + row * (size_t)w->c.topk;
    for (int h = 0; h < w->c.hidden; h++) {
        float x = received_value(w, received, row, h), sum = 0.0f;
        for (int k = 0; k < w->c.topk; k++) {
            if (slots[k] < 0 || slots[k] >= w->c.slots)
                continue;
            float term = weights[k] * expert_value(expert_of(w, rank, slots[k]), h, x);
            sum = sum + term;
        }
        oracle_encode(w->shape.type, results, row * (size_t)w->c.hidden + (size_t)h, (double)sum);
    }
}

/* Flat: the sources' rows lie one after the other; rank-major: each source's from a place of their own. */
static void experts_by_rank(const struct world *w, int rank, const struct oracle_received *received, void *results)
{
    size_t next = 0;
    for (int source = 0; source < w->ranks; source++) {
        size_t rows = bounded(received->counts[source], w->c.max_tokens);
        size_t first = w->c.layout == MUSTER_EP_FLAT ? next : (size_t)(source * w->c.max_tokens);
        for (size_t j = 0; j < rows; j++)
            experts_of_row(w, rank, received, first + j, results);
        next += rows;
    }
}

void world_experts(const struct world *w, int rank, const struct oracle_received *received, void *results)
{
    memset(results, 0xff, world_results_bytes(w)); /* NaN in every type: a row too many would show */
    if (w->c.layout == MUSTER_EP_EXPERT_MAJOR) {
        for (int slot = 0; slot < w->c.slots; slot++)
            experts_of_slot(w, rank, received, slot, results);
        return;
    }
    experts_by_rank(w, rank, received, results);
}

size_t world_results_bytes(const struct world *w)
{
    size_t rows = (size_t)(w->ranks * w->c.max_tokens);
    if (w->c.layout == MUSTER_EP_EXPERT_MAJOR)
        rows *= (size_t)w->c.slots;
    return rows * (size_t)w->c.hidden * oracle_type_bytes(w->shape.type);
}

static void world_receive(struct world *w, int rank)
{
    if (w->c.layout == MUSTER_EP_EXPERT_MAJOR)
        oracle_expert_major(&w->shape, w->in, rank, &w->received[rank]);
    else if (w->c.layout == MUSTER_EP_FLAT)
        oracle_flat(&w->shape, w->in, rank, &w->received[rank]);
    else
        oracle_rank_major(&w->shape, w->in, rank, &w->received[rank]);
    w->results[rank] = world_allocate(world_results_bytes(w), 1);
    world_experts(w, rank, &w->received[rank], w->results[rank]);
    w->dropped[rank] = oracle_dropped(&w->shape, w->in, rank);
}

static void world_combine(struct world *w, int rank)
{
    size_t elements = (size_t)w->in[rank].tokens * (size_t)w->c.hidden;
    w->combined[rank] = world_allocate(elements, oracle_type_bytes(w->shape.type));
    if (w->c.layout == MUSTER_EP_FLAT)
        oracle_combine_flat(&w->shape, w->in, w->results, rank, w->combined[rank]);
    else if (w->c.layout == MUSTER_EP_RANK_MAJOR)
        oracle_combine_rank_major(&w->shape, w->in, w->results, rank, w->combined[rank]);
    else if (w->c.combine == MUSTER_EP_EXACT)
        oracle_combine_exact(&w->shape, w->in, w->results, rank, w->combined[rank]);
    else
        oracle_combine_reduced(&w->shape, w->in, w->results, rank, w->combined[rank]);
}

void world_settle(struct world *w)
{
    for (int rank = 0; rank < w->ranks; rank++)
        if (w->in[rank].active)
            world_receive(w, rank);
    for (int rank = 0; rank < w->ranks; rank++)
        if (w->in[rank].active)
            world_combine(w, rank);
    w->loads = world_allocate((size_t)(w->ranks * w->ranks * w->c.slots), sizeof(int32_t));
    oracle_loads(&w->shape, w->in, w->loads);
}

struct world *world_make(const struct exchange_case *c, int ranks, muster_mask mask, uint64_t seed)
{
    struct world *w = world_draw(c, ranks, mask, seed);
    world_settle(w);
    return w;
}

void world_free(struct world *w)
{
    if (!w)
        return;
    for (int rank = 0; rank < w->ranks; rank++) {
        free(w->hidden[rank]);
        free(w->slots[rank]);
        free(w->weights[rank]);
        for (int p = 0; p < w->c.payloads; p++)
            free(w->payload[rank][p]);
        oracle_received_free(&w->received[rank]);
        free(w->results[rank]);
        free(w->combined[rank]);
    }
    free(w->loads);
    free(w);
}
