// SPDX-License-Identifier: Apache-2.0
#include "perf_load.h"

#include <math.h>
#include <string.h>

/* ---- numbers, written apart from the library's so that an error there is no error here ---- */

static float from_bf16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To nearest, ties to even. Only for finite numbers. */
static uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rest = bits & 0xffff, kept = bits >> 16;
    if (rest > 0x8000 || (rest == 0x8000 && (kept & 1)))
        kept++;
    return (uint16_t)kept;
}

static float from_fp16(uint16_t half)
{
    int exponent = half >> 10 & 31, fraction = half & 0x3ff;
    float size = exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
    if (exponent == 31)
        size = fraction ? NAN : INFINITY;
    return half & 0x8000 ? -size : size;
}

/* Eleven places from the first one, or from that of 2^-14. To nearest, ties to even. Only for finite numbers. */
static uint16_t to_fp16(float value)
{
    int exponent;
    frexpf(fmaxf(fabsf(value), 0x1p-14f), &exponent);
    int last = exponent - 11;
    int units = (int)rintf(ldexpf(fabsf(value), -last)) + (last + 24) * 1024; /* a carry goes on into the exponent */
    return (uint16_t)((signbit(value) ? 0x8000 : 0) | (units < 0x7c00 ? units : 0x7c00));
}

static float from_e4m3(uint8_t code)
{
    int exponent = code >> 3 & 15, fraction = code & 7;
    float size = exponent ? ldexpf((float)(8 + fraction), exponent - 10) : ldexpf((float)fraction, -9);
    if ((code & 0x7f) == 0x7f)
        size = NAN;
    return code & 0x80 ? -size : size;
}

/* The first `count` values of a row. */
static void values_get(const struct perf_shape *shape, const void *row, int32_t count, float *values)
{
    const uint16_t *half = row;
    switch (shape->type) {
    case PERF_BF16:
        for (int32_t i = 0; i < count; i++)
            values[i] = from_bf16(half[i]);
        break;
    case PERF_FP16:
        for (int32_t i = 0; i < count; i++)
            values[i] = from_fp16(half[i]);
        break;
    case PERF_FP32: memcpy(values, row, (size_t)count * sizeof *values); break;
    }
}

static void values_set(const struct perf_shape *shape, void *row, int32_t count, const float *values)
{
    uint16_t *half = row;
    switch (shape->type) {
    case PERF_BF16:
        for (int32_t i = 0; i < count; i++)
            half[i] = to_bf16(values[i]);
        break;
    case PERF_FP16:
        for (int32_t i = 0; i < count; i++)
            half[i] = to_fp16(values[i]);
        break;
    case PERF_FP32: memcpy(row, values, (size_t)count * sizeof *values); break;
    }
}

/* ---- the load ---- */

/* splitmix64 (Steele, Lea and Flood, 2014): every seed, also a small one, gives a well-mixed sequence. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static uint64_t token_state(const struct perf_shape *shape, int32_t rank, int32_t token, uint64_t what)
{
    uint64_t state = shape->seed ^ what << 56;
    state = next_random(&state) ^ (uint64_t)rank << 32 ^ (uint64_t)token;
    return next_random(&state);
}

static bool is_chosen(const struct perf_routes *routes, int32_t count, int32_t expert)
{
    for (int32_t k = 0; k < count; k++)
        if (routes->expert[k] == expert)
            return true;
    return false;
}

void perf_load_routes(const struct perf_shape *shape, int32_t rank, int32_t token, struct perf_routes *routes)
{
    uint64_t state = token_state(shape, rank, token, 1);
    float sum = 0;
    for (int32_t k = 0; k < shape->topk; k++) {
        int32_t expert;
        do
            expert = (int32_t)(next_random(&state) % (uint64_t)shape->experts);
        while (is_chosen(routes, k, expert));
        routes->expert[k] = expert;
        routes->weight[k] = 1.0f + (float)(next_random(&state) % 1024) / 512.0f;
        sum += routes->weight[k];
    }
    for (int32_t k = 0; k < shape->topk; k++)
        routes->weight[k] /= sum;
}

bool perf_load_goes_to(const struct perf_shape *shape, const struct perf_routes *routes, int32_t begin, int32_t end)
{
    for (int32_t k = 0; k < shape->topk; k++)
        if (routes->expert[k] >= begin && routes->expert[k] < end)
            return true;
    return false;
}

/* Magnitudes 1 to 2 in steps of 1/128, which every type holds exactly: a byte chooses one. */
static float hidden_value(uint64_t byte)
{
    float size = 1.0f + (float)(byte % 128) / 128.0f;
    return byte & 128 ? -size : size;
}

static void hidden_values(const struct perf_shape *shape, int32_t rank, int32_t token, float *values)
{
    uint64_t state = token_state(shape, rank, token, 2);
    for (int32_t i = 0; i < shape->hidden; i += 8) {
        uint64_t random = next_random(&state);
        for (int32_t j = i; j < i + 8 && j < shape->hidden; j++)
            values[j] = hidden_value(random >> 8 * (j - i) & 255);
    }
}

size_t perf_load_row_bytes(const struct perf_shape *shape)
{
    return (size_t)shape->hidden * (shape->type == PERF_FP32 ? sizeof(float) : sizeof(uint16_t));
}

void perf_load_row(const struct perf_shape *shape, int32_t rank, int32_t token, void *row)
{
    float values[PERF_MAX_HIDDEN];
    hidden_values(shape, rank, token, values);
    values_set(shape, row, shape->hidden, values);
}

static float expert_factor(int32_t expert)
{
    return 0.5f + (float)(expert * 37 % 64) / 64.0f;
}

/* ---- what has come ---- */

/* One rank's view of its received rows, as they are walked through. */
struct serving {
    const struct perf_shape *shape;
    const struct perf_received *received;
    int32_t rank, tokens;
    uint64_t wrong;
};

static size_t row_index(const struct perf_received *in, int32_t block, int32_t j)
{
    size_t first = in->block_rows ? (size_t)block * in->block_rows : (size_t)in->first[block];
    return first + (size_t)j;
}

static void received_values(const struct serving *s, size_t row, float *values)
{
    const struct perf_received *in = s->received;
    const unsigned char *from = in->rows + row * in->row_stride;
    size_t hidden = (size_t)s->shape->hidden, groups = (hidden + MUSTER_EP_FP8_GROUP - 1) / MUSTER_EP_FP8_GROUP;
    if (!in->scales) {
        values_get(s->shape, from, s->shape->hidden, values);
        return;
    }
    for (size_t i = 0; i < hidden; i++)
        values[i] = from_e4m3(from[i]) * in->scales[row * groups + i / MUSTER_EP_FP8_GROUP];
}

/* Rows come as they were sent; in fp8, within half a place. Written so that a NaN is not close to anything. */
static bool is_close(const struct serving *s, float got, float want)
{
    float off = fabsf(got - want), most = s->received->scales ? fabsf(want) / 16.0f + 1e-6f : 0.0f;
    return off <= most;
}

/* What this rank's experts make of the row: but for expert-major, weighted and added with what came beside it. */
static float served_factor(struct serving *s, int32_t block, size_t row)
{
    const struct perf_received *in = s->received;
    if (!in->slots)
        return expert_factor(s->rank * s->shape->slots + block);
    const int32_t *slot = (const int32_t *)(const void *)(in->slots + row * in->route_stride);
    const float *weight = (const float *)(const void *)(in->weights + row * in->route_stride);
    float factor = 0;
    for (int32_t k = 0; k < s->shape->topk; k++)
        if (slot[k] >= 0)
            factor += weight[k] * expert_factor(s->rank * s->shape->slots + slot[k]);
    return factor;
}

static void serve_row(struct serving *s, int32_t block, size_t row, int32_t source, int32_t token)
{
    float want[PERF_MAX_HIDDEN], got[PERF_MAX_HIDDEN];
    float factor = served_factor(s, block, row);
    hidden_values(s->shape, source, token, want);
    received_values(s, row, got);
    for (int32_t i = 0; i < s->shape->hidden; i++) {
        if (s->shape->check && !is_close(s, got[i], want[i]))
            s->wrong++;
        got[i] *= factor;
    }
    values_set(s->shape, s->received->results + row * perf_load_row_bytes(s->shape), s->shape->hidden, got);
}

/* The rows of one block that should have come from one source: its tokens that route to [begin, end), in order. */
static int32_t serve_source(struct serving *s, int32_t block, int32_t j, int32_t source, int32_t begin, int32_t end)
{
    struct perf_routes routes;
    for (int32_t token = 0; token < s->tokens; token++) {
        perf_load_routes(s->shape, source, token, &routes);
        if (!perf_load_goes_to(s->shape, &routes, begin, end))
            continue;
        if (j < s->received->count[block])
            serve_row(s, block, row_index(s->received, block, j), source, token);
        j++;
    }
    return j;
}

static int32_t serve_rank_block(struct serving *s, int32_t source)
{
    int32_t begin = s->rank * s->shape->slots;
    return serve_source(s, source, 0, source, begin, begin + s->shape->slots);
}

static int32_t serve_slot_block(struct serving *s, int32_t slot)
{
    int32_t expert = s->rank * s->shape->slots + slot, j = 0;
    for (int32_t source = 0; source < s->shape->ranks; source++)
        j = serve_source(s, slot, j, source, expert, expert + 1);
    return j;
}

uint64_t perf_load_serve(const struct perf_shape *shape, int32_t rank, int32_t tokens,
                         const struct perf_received *received)
{
    struct serving s = {.shape = shape, .received = received, .rank = rank, .tokens = tokens};
    for (int32_t block = 0; block < received->blocks; block++) {
        int32_t rows = received->slots ? serve_rank_block(&s, block) : serve_slot_block(&s, block);
        if (shape->check && rows != received->count[block])
            s.wrong++;
    }
    if (shape->spoil && rank == 0)
        values_set(shape, received->results, 1, &(float){99.0f});
    return s.wrong;
}

void perf_load_copy(const struct perf_shape *shape, const struct perf_received *received)
{
    size_t bytes = perf_load_row_bytes(shape);
    for (int32_t block = 0; block < received->blocks; block++)
        for (int32_t j = 0; j < received->count[block]; j++) {
            size_t row = row_index(received, block, j);
            memcpy(received->results + row * bytes, received->rows + row * received->row_stride, bytes);
        }
}

/* ---- what comes home ---- */

/* But for expert-major the copied rows are added as they are, one for each rank that the token went to. */
static float copied_factor(const struct perf_shape *shape, const struct perf_routes *routes)
{
    float factor = 0;
    if (shape->layout == MUSTER_EP_EXPERT_MAJOR)
        return 1.0f;
    for (int32_t rank = 0; rank < shape->ranks; rank++)
        factor += perf_load_goes_to(shape, routes, rank * shape->slots, (rank + 1) * shape->slots);
    return factor;
}

static float home_factor(const struct perf_shape *shape, const struct perf_routes *routes)
{
    float factor = 0;
    for (int32_t k = 0; k < shape->topk; k++)
        factor += routes->weight[k] * expert_factor(routes->expert[k]);
    return factor;
}

/*
 * All parts of a sum have the same sign, so each of at most three roundings (result, sum on a rank, sum at home) is off by
 * no more than half a place of the sum. Values of a row differ by a factor of two at most, so all codes of fp8 are normal,
 * and each time that rows are quantised adds half a place of those.
 */
static float allowed_part(const struct perf_shape *shape)
{
    static const float parts[] = {[PERF_BF16] = 1.0f / 64.0f, [PERF_FP16] = 1.0f / 512.0f, [PERF_FP32] = 1e-5f};
    static const float quantised_parts[] = {0.0f, 1.0f / 16.0f, 2.0f / 16.0f + 1.0f / 256.0f};
    int quantised = (shape->quantise != MUSTER_EP_QUANTISE_NONE) + (shape->quantise_return != MUSTER_EP_QUANTISE_NONE);
    return parts[shape->type] + quantised_parts[quantised];
}

static uint64_t check_row(const struct perf_shape *shape, const void *row, const float *token, float factor)
{
    uint64_t wrong = 0;
    float part = allowed_part(shape), got[PERF_MAX_HIDDEN];
    values_get(shape, row, shape->hidden, got);
    for (int32_t i = 0; i < shape->hidden; i++) {
        float want = token[i] * factor;
        if (!(fabsf(got[i] - want) <= part * fabsf(want)))
            wrong++;
    }
    return wrong;
}

uint64_t perf_load_check(const struct perf_shape *shape, int32_t rank, int32_t tokens, bool copied, const void *out)
{
    size_t bytes = perf_load_row_bytes(shape);
    float row[PERF_MAX_HIDDEN];
    struct perf_routes routes;
    uint64_t wrong = 0;
    for (int32_t token = 0; shape->check && token < tokens; token++) {
        perf_load_routes(shape, rank, token, &routes);
        hidden_values(shape, rank, token, row);
        float factor = copied ? copied_factor(shape, &routes) : home_factor(shape, &routes);
        wrong += check_row(shape, (const unsigned char *)out + (size_t)token * bytes, row, factor);
    }
    return wrong;
}

/* ---- how much that is ---- */

static size_t travelling_bytes(const struct perf_shape *shape, int32_t quantise)
{
    size_t groups = ((size_t)shape->hidden + MUSTER_EP_FP8_GROUP - 1) / MUSTER_EP_FP8_GROUP;
    return quantise ? (size_t)shape->hidden + groups * sizeof(float) : perf_load_row_bytes(shape);
}

/* Rows out, and rows back: with exact combine one for each expert. */
static size_t crossing_bytes(const struct perf_shape *shape, int32_t home, const struct perf_routes *routes,
                             bool each_route)
{
    size_t out = 0, back = 0;
    for (int32_t rank = 0; rank < shape->ranks; rank++)
        if (rank != home)
            out += perf_load_goes_to(shape, routes, rank * shape->slots, (rank + 1) * shape->slots);
    for (int32_t k = 0; k < shape->topk; k++)
        back += routes->expert[k] / shape->slots != home;
    out = each_route ? back : out;
    back = shape->combine == MUSTER_EP_EXACT ? back : out;
    return out * travelling_bytes(shape, shape->quantise) + back * travelling_bytes(shape, shape->quantise_return);
}

double perf_load_crossing_bytes(const struct perf_shape *shape, int32_t tokens, bool each_route)
{
    double sum = 0;
    struct perf_routes routes;
    for (int32_t rank = 0; rank < shape->ranks; rank++)
        for (int32_t token = 0; token < tokens; token++) {
            perf_load_routes(shape, rank, token, &routes);
            sum += (double)crossing_bytes(shape, rank, &routes, each_route);
        }
    return sum / shape->ranks;
}
