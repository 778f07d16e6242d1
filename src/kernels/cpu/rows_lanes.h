// SPDX-License-Identifier: Apache-2.0
/*
 * The arithmetic of rows, LANES elements at a time, in the vector types that gcc and clang share. Included once by each
 * rows_*.c, which sets LANES, BLOCK (vectors whose sums stay in registers while the rows go by) and LANES_TARGET: every
 * processor does best with vectors of its own width, and may have instructions of its own for fp16.
 */
#include <assert.h>

#include "kernels/cpu/number.h"
#include "kernels/cpu/rows.h"

#define INLINE static inline __attribute__((always_inline))

typedef float float_lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t bits_lanes __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t half_lanes __attribute__((vector_size(LANES * sizeof(uint16_t))));
typedef uint8_t code_lanes __attribute__((vector_size(LANES)));

/*
 * LANES numbers from fp16 and to it, as number_from_fp16() and number_to_fp16() do it, payloads of NaN included: what each
 * rows_*.c defines with the means of its processors.
 */
LANES_TARGET static inline void lanes_from_fp16(const uint16_t *from, float_lanes *to);
LANES_TARGET static inline void lanes_to_fp16(const float_lanes *from, uint16_t *to);

/* What is left over after the last whole vector goes one by one. */

INLINE float load_one(const void *row, enum exchange_type type, size_t at)
{
    if (type == EXCHANGE_FP32)
        return ((const float *)row)[at];
    uint16_t half = ((const uint16_t *)row)[at];
    return type == EXCHANGE_FP16 ? number_from_fp16(half) : number_from_bf16(half);
}

INLINE void store_one(float value, enum exchange_type type, size_t at, void *out)
{
    if (type == EXCHANGE_FP32)
        ((float *)out)[at] = value;
    else
        ((uint16_t *)out)[at] = type == EXCHANGE_FP16 ? number_to_fp16(value) : number_to_bf16(value);
}

INLINE float total_one(const struct rows_sum *sum, enum exchange_type type, size_t at)
{
    float total = 0.0f;
    for (int32_t r = 0; r < sum->count; r++) {
        float product = sum->weight[r] * load_one(sum->row[r], type, at);
        total = total + product;
    }
    return total;
}

INLINE void add_one(const struct rows_sum *sum, enum exchange_type type, size_t at, void *out)
{
    store_one(total_one(sum, type, at), type, at, out);
}

INLINE float larger(float largest, float value)
{
    float size = number_from_bits(number_bits(value) & 0x7fffffff);
    return size > largest ? size : largest; /* false for a NaN, which therefore spoils no more than its own element */
}

INLINE void load_lanes(const void *row, enum exchange_type type, size_t at, float_lanes *out)
{
    if (type == EXCHANGE_FP32) {
        memcpy(out, (const float *)row + at, sizeof(*out));
        return;
    }
    if (type == EXCHANGE_FP16) {
        lanes_from_fp16((const uint16_t *)row + at, out);
        return;
    }
    half_lanes half;
    memcpy(&half, (const uint16_t *)row + at, sizeof(half));
    bits_lanes bits = __builtin_convertvector(half, bits_lanes) << 16;
    memcpy(out, &bits, sizeof(*out));
}

/* As number_to_bf16(), lane by lane; the result is the upper half of each lane, the lower is 0. */
INLINE void round_lanes(const float_lanes *in, bits_lanes *out)
{
    bits_lanes bits = (bits_lanes)*in, is_nan = (bits_lanes)((bits & 0x7fffffff) > 0x7f800000);
    bits_lanes rounded = bits + 0x7fff + (bits >> 16 & 1), nan = bits | 0x400000;
    *out = ((nan & is_nan) | (rounded & ~is_nan)) & 0xffff0000;
}

/* Elements of fp32 and fp16, one to a lane. */
INLINE void add_lanes(const struct rows_sum *sum, enum exchange_type type, size_t at, int vectors, void *out)
{
    float_lanes total[BLOCK] = {{0}}, lanes;
    for (int32_t r = 0; r < sum->count; r++)
        for (int v = 0; v < vectors; v++) {
            load_lanes(sum->row[r], type, at + (size_t)v * LANES, &lanes);
            lanes = lanes * sum->weight[r];
            total[v] = total[v] + lanes;
        }
    if (type == EXCHANGE_FP32) {
        memcpy((float *)out + at, total, (size_t)vectors * sizeof(*total));
        return;
    }
    for (int v = 0; v < vectors; v++)
        lanes_to_fp16(&total[v], (uint16_t *)out + at + (size_t)v * LANES);
}

/*
 * Elements of bf16 are taken two to a lane, where they lie: the even one is the lower half of the lane's bits, and the odd
 * one, its lower half cleared, is already the number. So no element has to change places.
 */
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "even elements of bf16 are taken for lower halves");

INLINE void add_pairs(const struct rows_sum *sum, size_t at, int vectors, uint16_t *out)
{
    float_lanes even[BLOCK / 2] = {{0}}, odd[BLOCK / 2] = {{0}}, lanes;
    bits_lanes both, high;
    for (int32_t r = 0; r < sum->count; r++)
        for (int v = 0; v < vectors; v++) {
            memcpy(&both, (const uint16_t *)sum->row[r] + at + (size_t)v * 2 * LANES, sizeof(both));
            lanes = (float_lanes)(both << 16) * sum->weight[r];
            even[v] = even[v] + lanes;
            lanes = (float_lanes)(both & 0xffff0000) * sum->weight[r];
            odd[v] = odd[v] + lanes;
        }
    for (int v = 0; v < vectors; v++) {
        round_lanes(&even[v], &both);
        round_lanes(&odd[v], &high);
        both = both >> 16 | high;
        memcpy(out + at + (size_t)v * 2 * LANES, &both, sizeof(both));
    }
}

INLINE void add_row(const struct rows_sum *sum, enum exchange_type type, size_t elements, void *out)
{
    size_t at = 0;
    for (; at + BLOCK * LANES <= elements; at += BLOCK * LANES)
        add_lanes(sum, type, at, BLOCK, out);
    for (; at + LANES <= elements; at += LANES)
        add_lanes(sum, type, at, 1, out);
    for (; at < elements; at++)
        add_one(sum, type, at, out);
}

INLINE void add_row_bf16(const struct rows_sum *sum, size_t elements, void *out)
{
    size_t at = 0;
    for (; at + BLOCK * LANES <= elements; at += BLOCK * LANES)
        add_pairs(sum, at, BLOCK / 2, out);
    for (; at + 2 * LANES <= elements; at += 2 * LANES)
        add_pairs(sum, at, 1, out);
    for (; at < elements; at++)
        add_one(sum, EXCHANGE_BF16, at, out);
}

INLINE float group_scale(const void *row, enum exchange_type type, size_t at, size_t end, bool power_of_two)
{
    float_lanes largest, lanes;
    float most = 1e-4f;
    for (int i = 0; i < LANES; i++)
        largest[i] = most;
    for (; at + LANES <= end; at += LANES) {
        load_lanes(row, type, at, &lanes);
        bits_lanes size = (bits_lanes)lanes & 0x7fffffff;
        bits_lanes above = (bits_lanes)((float_lanes)size > largest);
        largest = (float_lanes)((size & above) | ((bits_lanes)largest & ~above));
    }
    for (int i = 0; i < LANES; i++)
        most = larger(most, largest[i]);
    for (; at < end; at++)
        most = larger(most, load_one(row, type, at));
    float scale = most / 448.0f;
    return power_of_two ? number_power_of_two_above(scale) : scale;
}

/* yes where the condition holds, otherwise no */
INLINE void choose_lanes(const bits_lanes *condition, const bits_lanes *yes, bits_lanes *no)
{
    *no = (*yes & *condition) | (*no & ~*condition);
}

/* As number_to_e4m3(), lane by lane. */
INLINE void encode_lanes(const float_lanes *in, uint8_t *codes)
{
    bits_lanes bits = (bits_lanes)*in, size = bits & 0x7fffffff;
    bits_lanes small = (bits_lanes)((float_lanes)size + 16384.0f) & 0xff;
    bits_lanes code = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120u << 3);
    bits_lanes is_small = (bits_lanes)(size < 0x3c800000), is_large = (bits_lanes)(size >= 0x43e00000);
    bits_lanes is_nan = (bits_lanes)(size > 0x7f800000);
    bits_lanes large = (bits_lanes){0} + 0x7e, nan = (bits_lanes){0} + 0x7f;
    choose_lanes(&is_small, &small, &code);
    choose_lanes(&is_large, &large, &code);
    choose_lanes(&is_nan, &nan, &code);
    code_lanes out = __builtin_convertvector((bits >> 24 & 0x80) | (code & 0x7f), code_lanes);
    memcpy(codes, &out, sizeof(out));
}

INLINE void quantise_group(const void *row, enum exchange_type type, size_t at, size_t end, float scale, uint8_t *codes)
{
    float_lanes lanes;
    for (; at + LANES <= end; at += LANES) {
        load_lanes(row, type, at, &lanes);
        lanes = lanes / scale;
        encode_lanes(&lanes, codes + at);
    }
    for (; at < end; at++)
        codes[at] = number_to_e4m3(load_one(row, type, at) / scale);
}

INLINE void quantise_row(const void *row, enum exchange_type type, size_t elements, bool power_of_two, uint8_t *codes,
                         float *scales)
{
    for (size_t at = 0; at < elements; at += MUSTER_EP_FP8_GROUP) {
        size_t end = elements - at < MUSTER_EP_FP8_GROUP ? elements : at + MUSTER_EP_FP8_GROUP;
        float scale = group_scale(row, type, at, end, power_of_two);
        *scales++ = scale;
        quantise_group(row, type, at, end, scale, codes);
    }
}

/* Sums of fp32 of the elements from `at`, at most a group; what add_row() would round. */
INLINE void add_group(const struct rows_sum *sum, enum exchange_type type, size_t at, size_t count, float *total)
{
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        float_lanes vector = {0}, lanes;
        for (int32_t r = 0; r < sum->count; r++) {
            load_lanes(sum->row[r], type, at + i, &lanes);
            lanes = lanes * sum->weight[r];
            vector = vector + lanes;
        }
        memcpy(total + i, &vector, sizeof(vector));
    }
    for (; i < count; i++)
        total[i] = total_one(sum, type, at + i);
}

INLINE void add_quantise_row(const struct rows_sum *sum, enum exchange_type type, size_t elements, bool power_of_two,
                             uint8_t *codes, float *scales)
{
    float total[MUSTER_EP_FP8_GROUP];
    for (size_t at = 0; at < elements; at += MUSTER_EP_FP8_GROUP) {
        size_t count = elements - at < MUSTER_EP_FP8_GROUP ? elements - at : MUSTER_EP_FP8_GROUP;
        add_group(sum, type, at, count, total);
        quantise_row(total, EXCHANGE_FP32, count, power_of_two, codes + at, scales++);
    }
}

/* As number_from_e4m3(), lane by lane: to fp16, whose exponent has a bias of 15 where that of e4m3 has 7. */
INLINE void decode_lanes(const uint8_t *codes, float_lanes *out)
{
    code_lanes code;
    memcpy(&code, codes, sizeof(code));
    half_lanes all = __builtin_convertvector(code, half_lanes), size = all & 0x7f;
    half_lanes is_nan = (half_lanes)(size == 0x7f), half = size << 7 | (all & 0x80) << 8 | (is_nan & 0x7e00);
    lanes_from_fp16((const uint16_t *)(const void *)&half, out);
    *out = *out * 256.0f;
}

INLINE void store_lanes(const float_lanes *in, enum exchange_type type, size_t at, void *out)
{
    if (type == EXCHANGE_FP32) {
        memcpy((float *)out + at, in, sizeof(*in));
        return;
    }
    if (type == EXCHANGE_FP16) {
        lanes_to_fp16(in, (uint16_t *)out + at);
        return;
    }
    bits_lanes bits;
    round_lanes(in, &bits);
    half_lanes half = __builtin_convertvector(bits >> 16, half_lanes);
    memcpy((uint16_t *)out + at, &half, sizeof(half));
}

INLINE void add_quantised_lanes(const struct rows_sum *sum, enum exchange_type type, size_t at, void *out)
{
    float_lanes total = {0}, lanes;
    for (int32_t r = 0; r < sum->count; r++) {
        decode_lanes((const uint8_t *)sum->row[r] + at, &lanes);
        lanes = lanes * sum->scales[r][at / MUSTER_EP_FP8_GROUP];
        lanes = lanes * sum->weight[r];
        total = total + lanes;
    }
    store_lanes(&total, type, at, out);
}

INLINE void add_quantised_one(const struct rows_sum *sum, enum exchange_type type, size_t at, void *out)
{
    float total = 0.0f;
    for (int32_t r = 0; r < sum->count; r++) {
        float value = number_from_e4m3(((const uint8_t *)sum->row[r])[at]) * sum->scales[r][at / MUSTER_EP_FP8_GROUP];
        float product = sum->weight[r] * value;
        total = total + product;
    }
    store_one(total, type, at, out);
}

/* Groups are multiples of any number of lanes, so the elements of a vector share their scales. */
INLINE void add_quantised_row(const struct rows_sum *sum, enum exchange_type type, size_t elements, void *out)
{
    size_t at = 0;
    for (; at + LANES <= elements; at += LANES)
        add_quantised_lanes(sum, type, at, out);
    for (; at < elements; at++)
        add_quantised_one(sum, type, at, out);
}

/* A copy of the code for each type, so that no loop asks which it is. */

LANES_TARGET static void add(const struct rows_sum *sum, enum exchange_type type, size_t elements, void *out)
{
    switch (type) {
    case EXCHANGE_BF16: add_row_bf16(sum, elements, out); break;
    case EXCHANGE_FP16: add_row(sum, EXCHANGE_FP16, elements, out); break;
    case EXCHANGE_FP32: add_row(sum, EXCHANGE_FP32, elements, out); break;
    }
}

LANES_TARGET static void quantise(const void *row, enum exchange_type type, size_t elements, bool power_of_two,
                                  uint8_t *codes, float *scales)
{
    switch (type) {
    case EXCHANGE_BF16: quantise_row(row, EXCHANGE_BF16, elements, power_of_two, codes, scales); break;
    case EXCHANGE_FP16: quantise_row(row, EXCHANGE_FP16, elements, power_of_two, codes, scales); break;
    case EXCHANGE_FP32: quantise_row(row, EXCHANGE_FP32, elements, power_of_two, codes, scales); break;
    }
}

LANES_TARGET static void add_quantise(const struct rows_sum *sum, enum exchange_type type, size_t elements,
                                      bool power_of_two, uint8_t *codes, float *scales)
{
    switch (type) {
    case EXCHANGE_BF16: add_quantise_row(sum, EXCHANGE_BF16, elements, power_of_two, codes, scales); break;
    case EXCHANGE_FP16: add_quantise_row(sum, EXCHANGE_FP16, elements, power_of_two, codes, scales); break;
    case EXCHANGE_FP32: add_quantise_row(sum, EXCHANGE_FP32, elements, power_of_two, codes, scales); break;
    }
}

LANES_TARGET static void add_quantised(const struct rows_sum *sum, enum exchange_type type, size_t elements, void *out)
{
    switch (type) {
    case EXCHANGE_BF16: add_quantised_row(sum, EXCHANGE_BF16, elements, out); break;
    case EXCHANGE_FP16: add_quantised_row(sum, EXCHANGE_FP16, elements, out); break;
    case EXCHANGE_FP32: add_quantised_row(sum, EXCHANGE_FP32, elements, out); break;
    }
}
