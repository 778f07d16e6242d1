// SPDX-License-Identifier: Apache-2.0
/* Dispatch and combine in nested loops over everything; see oracle.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "oracle.h"

/* The slot of route k of a token, or -1: no route, or its rank is inactive. */
static int64_t oracle_route(const struct oracle_shape *shape, const struct oracle_rank *ranks, int source, int token,
                            int k)
{
    int64_t slot = ranks[source].slots[token * shape->topk + k];
    if (slot < 0 || !ranks[slot / shape->slots].active)
        return -1;
    return slot;
}

static float oracle_weight(const struct oracle_shape *shape, const struct oracle_rank *source, int token, int k)
{
    return source->weights ? source->weights[token * shape->topk + k] : 1.0f;
}

static int oracle_tokens(const struct oracle_rank *source)
{
    return source->active ? source->tokens : 0;
}

static int oracle_routes_to_slot(const struct oracle_shape *shape, const struct oracle_rank *ranks, int source,
                                 int token, int64_t slot)
{
    for (int k = 0; k < shape->topk; k++)
        if (oracle_route(shape, ranks, source, token, k) == slot)
            return 1;
    return 0;
}

static int oracle_routes_to_rank(const struct oracle_shape *shape, const struct oracle_rank *ranks, int source,
                                 int token, int rank)
{
    for (int i = 0; i < shape->slots; i++)
        if (oracle_routes_to_slot(shape, ranks, source, token, (int64_t)rank * shape->slots + i))
            return 1;
    return 0;
}

static void *oracle_canaries(size_t count, size_t bytes)
{
    size_t total = count * bytes;
    void *memory = malloc(total + 1); /* never NULL for an empty array */
    if (!memory) {
        fprintf(stderr, "oracle: out of memory: %zu bytes\n", total);
        abort();
    }
    return memset(memory, ORACLE_CANARY, total);
}

static int oracle_scales_per_row(const struct oracle_shape *shape)
{
    return (shape->hidden + ORACLE_GROUP - 1) / ORACLE_GROUP;
}

static void received_allocate(const struct oracle_shape *shape, struct oracle_received *out, int rows, int groups)
{
    size_t n = (size_t)rows;
    memset(out, 0, sizeof(*out));
    out->rows = rows;
    out->groups = groups;
    size_t element_bytes = shape->quantise ? 1 : oracle_type_bytes(shape->type);
    out->hidden = oracle_canaries(n * (size_t)shape->hidden, element_bytes);
    out->scales = oracle_canaries(n * (size_t)oracle_scales_per_row(shape), sizeof(float));
    for (int p = 0; p < shape->payloads; p++)
        out->payload[p] = oracle_canaries(n, (size_t)shape->payload_bytes[p]);
    out->counts = oracle_canaries((size_t)groups, sizeof(int32_t));
    out->source = oracle_canaries(n * 2, sizeof(int32_t));
    out->ranges = oracle_canaries((size_t)(shape->slots * shape->ranks), sizeof(int64_t));
    out->slots = oracle_canaries(n * (size_t)shape->topk, sizeof(int32_t));
    out->weights = oracle_canaries(n * (size_t)shape->topk, sizeof(float));
}

void oracle_received_free(struct oracle_received *received)
{
    free(received->hidden);
    free(received->scales);
    for (int p = 0; p < ORACLE_MAX_PAYLOADS; p++)
        free(received->payload[p]);
    free(received->counts);
    free(received->source);
    free(received->ranges);
    free(received->slots);
    free(received->weights);
    memset(received, 0, sizeof(*received));
}

static void row_quantise(const struct oracle_shape *shape, const struct oracle_rank *source, int token, uint8_t *codes,
                         float *scales)
{
    float group[ORACLE_GROUP];
    for (int begin = 0; begin < shape->hidden; begin += ORACLE_GROUP) {
        int count = shape->hidden - begin < ORACLE_GROUP ? shape->hidden - begin : ORACLE_GROUP;
        for (int i = 0; i < count; i++) {
            size_t index = (size_t)token * (size_t)shape->hidden + (size_t)(begin + i);
            group[i] = (float)oracle_decode(shape->type, source->hidden, index);
        }
        scales[begin / ORACLE_GROUP] = oracle_fp8_group(group, count, shape->quantise, codes + begin);
    }
}

/* Everything of a row that does not depend on the layout. */
static void row_receive(const struct oracle_shape *shape, const struct oracle_rank *ranks, int source, int token,
                        struct oracle_received *out, size_t row)
{
    const struct oracle_rank *from = &ranks[source];
    size_t row_bytes = (size_t)shape->hidden * oracle_type_bytes(shape->type);
    if (shape->quantise)
        row_quantise(shape, from, token, out->hidden + row * (size_t)shape->hidden,
                     out->scales + row * (size_t)oracle_scales_per_row(shape));
    else
        memcpy(out->hidden + row * row_bytes, (const char *)from->hidden + (size_t)token * row_bytes, row_bytes);
    for (int p = 0; p < shape->payloads; p++) {
        size_t bytes = (size_t)shape->payload_bytes[p];
        memcpy(out->payload[p] + row * bytes, (const char *)from->payload[p] + (size_t)token * bytes, bytes);
    }
    out->source[row * 2] = source;
    out->source[row * 2 + 1] = token;
}

void oracle_expert_major(const struct oracle_shape *shape, const struct oracle_rank *ranks, int rank,
                         struct oracle_received *out)
{
    int rows_per_slot = shape->ranks * shape->max_tokens;
    received_allocate(shape, out, shape->slots * rows_per_slot, shape->slots);
    for (int i = 0; i < shape->slots; i++) {
        int count = 0;
        for (int source = 0; source < shape->ranks; source++) {
            int begin = count;
            for (int token = 0; token < oracle_tokens(&ranks[source]); token++)
                if (oracle_routes_to_slot(shape, ranks, source, token, (int64_t)rank * shape->slots + i))
                    row_receive(shape, ranks, source, token, out, (size_t)(i * rows_per_slot + count++));
            out->ranges[i * shape->ranks + source] = ((int64_t)begin << 32) + (count - begin);
        }
        out->counts[i] = count;
        for (int row = i * rows_per_slot + count; shape->pad && row < (i + 1) * rows_per_slot; row++)
            out->source[row * 2] = out->source[row * 2 + 1] = shape->invalid;
    }
}

/* The routes of a token as its target rank sees them, at the places that they have in the token's own list. */
static void row_routes(const struct oracle_shape *shape, const struct oracle_rank *ranks, int source, int token,
                       int rank, int32_t *slots, float *weights)
{
    for (int k = 0; k < shape->topk; k++) {
        int64_t slot = oracle_route(shape, ranks, source, token, k);
        int here = slot >= 0 && slot / shape->slots == rank;
        slots[k] = here ? (int32_t)(slot % shape->slots) : -1;
        weights[k] = here ? oracle_weight(shape, &ranks[source], token, k) : 0.0f;
    }
}

void oracle_rank_major(const struct oracle_shape *shape, const struct oracle_rank *ranks, int rank,
                       struct oracle_received *out)
{
    received_allocate(shape, out, shape->ranks * shape->max_tokens, shape->ranks);
    for (int source = 0; source < shape->ranks; source++) {
        int count = 0;
        for (int token = 0; token < oracle_tokens(&ranks[source]); token++) {
            if (!oracle_routes_to_rank(shape, ranks, source, token, rank))
                continue;
            size_t row = (size_t)(source * shape->max_tokens + count++);
            row_receive(shape, ranks, source, token, out, row);
            row_routes(shape, ranks, source, token, rank, out->slots + row * (size_t)shape->topk,
                       out->weights + row * (size_t)shape->topk);
        }
        out->counts[source] = count;
        for (int j = count; shape->pad && j < shape->max_tokens; j++)
            for (int k = 0; k < shape->topk; k++)
                out->slots[(source * shape->max_tokens + j) * shape->topk + k] = shape->invalid;
    }
}

/* The n-th row is that of the n-th token, counted over all sources, that routes here. */
void oracle_flat(const struct oracle_shape *shape, const struct oracle_rank *ranks, int rank,
                 struct oracle_received *out)
{
    int limit = shape->ranks * shape->max_tokens, row = 0;
    received_allocate(shape, out, limit, shape->ranks);
    for (int source = 0; source < shape->ranks; source++) {
        int begin = row;
        for (int token = 0; token < oracle_tokens(&ranks[source]); token++) {
            if (!oracle_routes_to_rank(shape, ranks, source, token, rank))
                continue;
            row_receive(shape, ranks, source, token, out, (size_t)row);
            row_routes(shape, ranks, source, token, rank, out->slots + row * shape->topk,
                       out->weights + row * shape->topk);
            row++;
        }
        out->counts[source] = row - begin;
        out->ranges[source] = ((int64_t)begin << 32) + (row - begin);
    }
    for (int i = row * shape->topk; shape->pad && i < limit * shape->topk; i++)
        out->slots[i] = shape->invalid;
}

void oracle_loads(const struct oracle_shape *shape, const struct oracle_rank *ranks, int32_t *loads)
{
    int slots = shape->ranks * shape->slots;
    memset(loads, 0, (size_t)(shape->ranks * slots) * sizeof(*loads));
    for (int source = 0; source < shape->ranks; source++)
        for (int token = 0; token < oracle_tokens(&ranks[source]); token++)
            for (int k = 0; k < shape->topk; k++) {
                int64_t slot = oracle_route(shape, ranks, source, token, k);
                if (slot >= 0)
                    loads[source * slots + slot]++;
            }
}

int oracle_dropped(const struct oracle_shape *shape, const struct oracle_rank *ranks, int rank)
{
    int dropped = 0;
    for (int i = 0; i < ranks[rank].tokens * shape->topk; i++)
        dropped += ranks[rank].slots[i] >= 0 && oracle_route(shape, ranks, rank, i / shape->topk, i % shape->topk) < 0;
    return dropped;
}

/* Where the row of (source, token) lies among the rows of a slot: as many rows lie before it as were sent earlier. */
static size_t slot_row(const struct oracle_shape *shape, const struct oracle_rank *ranks, int source, int token,
                       int64_t slot)
{
    size_t row = (size_t)(slot % shape->slots) * (size_t)(shape->ranks * shape->max_tokens);
    for (int s = 0; s <= source; s++) {
        int end = s < source ? oracle_tokens(&ranks[s]) : token;
        for (int t = 0; t < end; t++)
            row += (size_t)oracle_routes_to_slot(shape, ranks, s, t, slot);
    }
    return row;
}

static size_t rank_row(const struct oracle_shape *shape, const struct oracle_rank *ranks, int source, int token,
                       int rank)
{
    size_t row = (size_t)(source * shape->max_tokens);
    for (int t = 0; t < token; t++)
        row += (size_t)oracle_routes_to_rank(shape, ranks, source, t, rank);
    return row;
}

/* The same in the flat layout: as many rows lie before it as were sent by the sources before, and earlier by its own. */
static size_t flat_row(const struct oracle_shape *shape, const struct oracle_rank *ranks, int source, int token,
                       int rank)
{
    size_t row = 0;
    for (int s = 0; s <= source; s++) {
        int end = s < source ? oracle_tokens(&ranks[s]) : token;
        for (int t = 0; t < end; t++)
            row += (size_t)oracle_routes_to_rank(shape, ranks, s, t, rank);
    }
    return row;
}

static float *oracle_row(const struct oracle_shape *shape)
{
    return oracle_canaries((size_t)shape->hidden, sizeof(float));
}

static void row_load(const struct oracle_shape *shape, const void *results, size_t row, float *values)
{
    for (int h = 0; h < shape->hidden; h++)
        values[h] = (float)oracle_decode(shape->type, results, row * (size_t)shape->hidden + (size_t)h);
}

static void group_return(const struct oracle_shape *shape, float *values, int count)
{
    uint8_t codes[ORACLE_GROUP];
    float scale = oracle_fp8_group(values, count, shape->quantise_return, codes);
    for (int i = 0; i < count; i++)
        values[i] = (float)oracle_fp8_value(codes[i]) * scale;
}

/* What a row is at home that was `values` when it left: rounded to the type of results, or quantised. */
static void row_return(const struct oracle_shape *shape, float *values)
{
    for (int h = 0; h < shape->hidden && !shape->quantise_return; h++) {
        float rounded;
        oracle_encode(shape->type, &rounded, 0, (double)values[h]);
        values[h] = (float)oracle_decode(shape->type, &rounded, 0);
    }
    for (int begin = 0; begin < shape->hidden && shape->quantise_return; begin += ORACLE_GROUP)
        group_return(shape, values + begin,
                     shape->hidden - begin < ORACLE_GROUP ? shape->hidden - begin : ORACLE_GROUP);
}

/* Each term is the weight times one element, rounded to fp32 before it is added to anything. */
static void row_add(const struct oracle_shape *shape, const float *values, float weight, float *sum)
{
    for (int h = 0; h < shape->hidden; h++) {
        float term = weight * values[h];
        sum[h] = sum[h] + term;
    }
}

static void row_clear(const struct oracle_shape *shape, float *sum)
{
    for (int h = 0; h < shape->hidden; h++)
        sum[h] = 0.0f;
}

/*
 * Adds the terms of token's routes in top-k order: of all, whose rows have come home (rank -1), or of those to one rank,
 * whose rows are still there.
 */
static void sum_routes(const struct oracle_shape *shape, const struct oracle_rank *ranks, unsigned char *const *results,
                       int home, int token, int rank, float *sum)
{
    float *values = oracle_row(shape);
    row_clear(shape, sum);
    for (int k = 0; k < shape->topk; k++) {
        int64_t slot = oracle_route(shape, ranks, home, token, k);
        if (slot < 0 || (rank >= 0 && slot / shape->slots != rank))
            continue;
        row_load(shape, results[slot / shape->slots], slot_row(shape, ranks, home, token, slot), values);
        if (rank < 0)
            row_return(shape, values);
        row_add(shape, values, oracle_weight(shape, &ranks[home], token, k), sum);
    }
    free(values);
}

static void row_round(const struct oracle_shape *shape, const float *sum, void *out, int token)
{
    for (int h = 0; h < shape->hidden; h++)
        oracle_encode(shape->type, out, (size_t)token * (size_t)shape->hidden + (size_t)h, (double)sum[h]);
}

void oracle_combine_exact(const struct oracle_shape *shape, const struct oracle_rank *ranks,
                          unsigned char *const *results, int home, void *out)
{
    float *sum = oracle_row(shape);
    for (int token = 0; token < ranks[home].tokens; token++) {
        sum_routes(shape, ranks, results, home, token, -1, sum);
        row_round(shape, sum, out, token);
    }
    free(sum);
}

void oracle_combine_reduced(const struct oracle_shape *shape, const struct oracle_rank *ranks,
                            unsigned char *const *results, int home, void *out)
{
    float *sum = oracle_row(shape), *part = oracle_row(shape);
    for (int token = 0; token < ranks[home].tokens; token++) {
        row_clear(shape, sum);
        for (int rank = 0; rank < shape->ranks; rank++) {
            if (!oracle_routes_to_rank(shape, ranks, home, token, rank))
                continue;
            sum_routes(shape, ranks, results, home, token, rank, part);
            row_return(shape, part);
            row_add(shape, part, 1.0f, sum);
        }
        row_round(shape, sum, out, token);
    }
    free(sum);
    free(part);
}

typedef size_t row_function(const struct oracle_shape *shape, const struct oracle_rank *ranks, int source, int token,
                            int rank);

/* Results that are sums already; `row_of` says where a token's is on a rank. */
static void combine_sums(const struct oracle_shape *shape, const struct oracle_rank *ranks,
                         unsigned char *const *results, int home, row_function *row_of, void *out)
{
    float *sum = oracle_row(shape), *part = oracle_row(shape);
    for (int token = 0; token < ranks[home].tokens; token++) {
        row_clear(shape, sum);
        for (int rank = 0; rank < shape->ranks; rank++) {
            if (!oracle_routes_to_rank(shape, ranks, home, token, rank))
                continue;
            row_load(shape, results[rank], row_of(shape, ranks, home, token, rank), part);
            row_return(shape, part);
            row_add(shape, part, 1.0f, sum);
        }
        row_round(shape, sum, out, token);
    }
    free(sum);
    free(part);
}

void oracle_combine_rank_major(const struct oracle_shape *shape, const struct oracle_rank *ranks,
                               unsigned char *const *results, int home, void *out)
{
    combine_sums(shape, ranks, results, home, rank_row, out);
}

void oracle_combine_flat(const struct oracle_shape *shape, const struct oracle_rank *ranks,
                         unsigned char *const *results, int home, void *out)
{
    combine_sums(shape, ranks, results, home, flat_row, out);
}

void oracle_combine_real(const struct oracle_shape *shape, const struct oracle_rank *ranks,
                         unsigned char *const *results, int home, double *sum, double *magnitude)
{
    size_t hidden = (size_t)shape->hidden;
    for (size_t i = 0; i < (size_t)ranks[home].tokens * hidden; i++)
        sum[i] = magnitude[i] = 0.0;
    for (int token = 0; token < ranks[home].tokens; token++)
        for (int k = 0; k < shape->topk; k++) {
            int64_t slot = oracle_route(shape, ranks, home, token, k);
            if (slot < 0)
                continue;
            size_t row = slot_row(shape, ranks, home, token, slot), first = (size_t)token * hidden;
            double weight = (double)oracle_weight(shape, &ranks[home], token, k);
            for (size_t h = 0; h < hidden; h++) {
                double term = weight * oracle_decode(shape->type, results[slot / shape->slots], row * hidden + h);
                sum[first + h] += term;
                magnitude[first + h] += fabs(term);
            }
        }
}
