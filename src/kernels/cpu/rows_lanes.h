// SPDX-License-Identifier: Apache-2.0
/*
 * The arithmetic of rows, LANES elements at a time, in the vector types that gcc and clang share. Included once by each
 * rows_*.c, which sets LANES, BLOCK (vectors whose sums stay in registers while the rows go by) and LANES_TARGET: every
 * processor does best with vectors of its own width.
 */
#include "kernels/cpu/number.h"
#include "kernels/cpu/rows.h"

#define INLINE static inline __attribute__((always_inline))

typedef float float_lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t bits_lanes __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t half_lanes __attribute__((vector_size(LANES * sizeof(uint16_t))));
typedef uint8_t code_lanes __attribute__((vector_size(LANES)));

/* What is left over after the last whole vector goes one by one. */

INLINE float load_one(const void *row, bool fp32, size_t at)
{
    return fp32 ? ((const float *)row)[at] : number_from_bf16(((const uint16_t *)row)[at]);
}

INLINE void add_one(const struct rows_sum *sum, bool fp32, size_t at, void *out)
{
    float total = 0.0f;
    for (int32_t r = 0; r < sum->count; r++) {
        float product = sum->weight[r] * load_one(sum->row[r], fp32, at);
        total = total + product;
    }
    if (fp32)
        ((float *)out)[at] = total;
    else
        ((uint16_t *)out)[at] = number_to_bf16(total);
}

INLINE float larger(float largest, float value)
{
    float size = number_from_bits(number_bits(value) & 0x7fffffff);
    return size > largest ? size : largest; /* false for a NaN, which therefore spoils no more than its own element */
}

INLINE void load_lanes(const void *row, bool fp32, size_t at, float_lanes *out)
{
    if (fp32) {
        memcpy(out, (const float *)row + at, sizeof(*out));
        return;
    }
    half_lanes half;
    memcpy(&half, (const uint16_t *)row + at, sizeof(half));
    bits_lanes bits = __builtin_convertvector(half, bits_lanes) << 16;
    memcpy(out, &bits, sizeof(*out));
}

/* As number_to_bf16(), lane by lane. */
INLINE void store_lanes(void *row, bool fp32, size_t at, const float_lanes *in)
{
    if (fp32) {
        memcpy((float *)row + at, in, sizeof(*in));
        return;
    }
    bits_lanes bits, nan;
    memcpy(&bits, in, sizeof(bits));
    bits_lanes is_nan = (bits_lanes)((bits & 0x7fffffff) > 0x7f800000);
    nan = bits >> 16 | 0x40;
    bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    half_lanes half = __builtin_convertvector((nan & is_nan) | (bits & ~is_nan), half_lanes);
    memcpy((uint16_t *)row + at, &half, sizeof(half));
}

INLINE void add_lanes(const struct rows_sum *sum, bool fp32, size_t at, int vectors, void *out)
{
    float_lanes total[BLOCK] = {{0}}, lanes;
    for (int32_t r = 0; r < sum->count; r++)
        for (int v = 0; v < vectors; v++) {
            load_lanes(sum->row[r], fp32, at + (size_t)v * LANES, &lanes);
            lanes = lanes * sum->weight[r];
            total[v] = total[v] + lanes;
        }
    for (int v = 0; v < vectors; v++)
        store_lanes(out, fp32, at + (size_t)v * LANES, &total[v]);
}

INLINE void add_row(const struct rows_sum *sum, bool fp32, size_t elements, void *out)
{
    size_t at = 0;
    for (; at + BLOCK * LANES <= elements; at += BLOCK * LANES)
        add_lanes(sum, fp32, at, BLOCK, out);
    for (; at + LANES <= elements; at += LANES)
        add_lanes(sum, fp32, at, 1, out);
    for (; at < elements; at++)
        add_one(sum, fp32, at, out);
}

INLINE void add_any_row(const struct rows_sum *sum, bool fp32, size_t elements, void *out)
{
    if (fp32)
        add_row(sum, true, elements, out);
    else
        add_row(sum, false, elements, out);
}

INLINE float group_scale(const void *row, bool fp32, size_t at, size_t end, bool power_of_two)
{
    float_lanes largest, lanes;
    float most = 1e-4f;
    for (int i = 0; i < LANES; i++)
        largest[i] = most;
    for (; at + LANES <= end; at += LANES) {
        load_lanes(row, fp32, at, &lanes);
        bits_lanes size = (bits_lanes)lanes & 0x7fffffff;
        bits_lanes above = (bits_lanes)((float_lanes)size > largest);
        largest = (float_lanes)((size & above) | ((bits_lanes)largest & ~above));
    }
    for (int i = 0; i < LANES; i++)
        most = larger(most, largest[i]);
    for (; at < end; at++)
        most = larger(most, load_one(row, fp32, at));
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

INLINE void quantise_group(const void *row, bool fp32, size_t at, size_t end, float scale, uint8_t *codes)
{
    float_lanes lanes;
    for (; at + LANES <= end; at += LANES) {
        load_lanes(row, fp32, at, &lanes);
        lanes = lanes / scale;
        encode_lanes(&lanes, codes + at);
    }
    for (; at < end; at++)
        codes[at] = number_to_e4m3(load_one(row, fp32, at) / scale);
}

INLINE void quantise_row(const void *row, bool fp32, size_t elements, bool power_of_two, uint8_t *codes, float *scales)
{
    for (size_t at = 0; at < elements; at += MUSTER_EP_FP8_GROUP) {
        size_t end = elements - at < MUSTER_EP_FP8_GROUP ? elements : at + MUSTER_EP_FP8_GROUP;
        float scale = group_scale(row, fp32, at, end, power_of_two);
        *scales++ = scale;
        if (fp32)
            quantise_group(row, true, at, end, scale, codes);
        else
            quantise_group(row, false, at, end, scale, codes);
    }
}

LANES_TARGET static void add(const struct rows_sum *sum, bool fp32, size_t elements, void *out)
{
    add_any_row(sum, fp32, elements, out);
}

LANES_TARGET static void quantise(const void *row, bool fp32, size_t elements, bool power_of_two, uint8_t *codes,
                                  float *scales)
{
    quantise_row(row, fp32, elements, power_of_two, codes, scales);
}
