// SPDX-License-Identifier: Apache-2.0
/* The number formats, by value: every code is a double, and rounding is a search or a division, never a bit trick. */
#include <math.h>
#include <string.h>

#include "oracle.h"

/* A format of 16 bits with infinities. */
struct format {
    int fraction_bits, least_exponent, infinity, nan;
};

static const struct format bf16 = {7, -126, 0x7f80, 0x7fc0}, fp16 = {10, -14, 0x7c00, 0x7e00};

enum { FP8_FRACTION_BITS = 3, FP8_LEAST_EXPONENT = -6, FP8_NAN = 0x7f, FP8_LARGEST = 0x7e };

/* fraction and exponent fields of a positive number to its value; the least exponent field is 0: subnormal. */
static double number_value(int exponent_field, int fraction, int fraction_bits, int least_exponent)
{
    if (exponent_field == 0)
        return ldexp(fraction, least_exponent - fraction_bits);
    return ldexp((1 << fraction_bits) + fraction, least_exponent + exponent_field - 1 - fraction_bits);
}

static double format_value(const struct format *format, uint16_t code)
{
    int magnitude = code & 0x7fff, fraction = magnitude & ((1 << format->fraction_bits) - 1);
    double sign = code & 0x8000 ? -1.0 : 1.0;
    if (magnitude > format->infinity)
        return NAN;
    if (magnitude == format->infinity)
        return sign * INFINITY;
    return sign *
           number_value(magnitude >> format->fraction_bits, fraction, format->fraction_bits, format->least_exponent);
}

/* The magnitude in units of the last place, rounded to nearest even; the codes of a format are consecutive. */
static int format_magnitude(const struct format *format, double magnitude)
{
    int exponent;
    if (magnitude == 0.0)
        return 0;
    frexp(magnitude, &exponent); /* magnitude = f * 2^exponent, f in [0.5, 1) */
    exponent = exponent - 1 < format->least_exponent ? format->least_exponent : exponent - 1;
    if (exponent > format->least_exponent + (format->infinity >> format->fraction_bits))
        return format->infinity;
    int units = (int)nearbyint(ldexp(magnitude, format->fraction_bits - exponent));
    return ((exponent - format->least_exponent) << format->fraction_bits) + units;
}

static uint16_t format_from(const struct format *format, double value)
{
    int sign = signbit(value) ? 0x8000 : 0;
    if (isnan(value))
        return (uint16_t)format->nan;
    if (isinf(value))
        return (uint16_t)(sign | format->infinity);
    int magnitude = format_magnitude(format, fabs(value));
    return (uint16_t)(sign | (magnitude < format->infinity ? magnitude : format->infinity));
}

double oracle_bf16_value(uint16_t code)
{
    return format_value(&bf16, code);
}

uint16_t oracle_bf16_from(double value)
{
    return format_from(&bf16, value);
}

double oracle_fp16_value(uint16_t code)
{
    return format_value(&fp16, code);
}

uint16_t oracle_fp16_from(double value)
{
    return format_from(&fp16, value);
}

double oracle_fp8_value(uint8_t code)
{
    int magnitude = code & 0x7f;
    double sign = code & 0x80 ? -1.0 : 1.0;
    if (magnitude == FP8_NAN)
        return NAN;
    return sign * number_value(magnitude >> FP8_FRACTION_BITS, magnitude & 7, FP8_FRACTION_BITS, FP8_LEAST_EXPONENT);
}

/* The values of the codes of positive numbers, worked out once in each thread. */
static const double *fp8_values(void)
{
    static _Thread_local double values[FP8_LARGEST + 1];
    if (values[FP8_LARGEST] == 0.0)
        for (unsigned code = 0; code <= FP8_LARGEST; code++)
            values[code] = oracle_fp8_value((uint8_t)code);
    return values;
}

/* Tries every code of the value's sign; of two equally near ones takes the even one. Saturates at the largest. */
uint8_t oracle_fp8_from(float value)
{
    unsigned sign = signbit(value) ? 0x80u : 0u;
    if (isnan(value))
        return FP8_NAN;
    if (isinf(value))
        return (uint8_t)(sign | FP8_LARGEST);
    const double *values = fp8_values();
    unsigned best = 0;
    double best_distance = INFINITY;
    for (unsigned code = 0; code <= FP8_LARGEST; code++) {
        double distance = fabs(fabs((double)value) - values[code]);
        if (distance < best_distance || (distance == best_distance && code % 2 == 0)) {
            best = code;
            best_distance = distance;
        }
    }
    return (uint8_t)(sign | best);
}

static float fp8_scale(float amax, enum oracle_quantise quantise)
{
    float scale = amax / 448.0f;
    if (quantise != ORACLE_SCALED_POW2 || isinf(scale))
        return scale;
    int exponent;
    double fraction = frexp((double)scale, &exponent); /* in [0.5, 1): exactly 0.5 is a power of two already */
    return (float)ldexp(1.0, fraction == 0.5 ? exponent - 1 : exponent);
}

/* A NaN takes no part in the maximum (it compares as not larger), and its own code is a NaN. */
float oracle_fp8_group(const float *values, int count, enum oracle_quantise quantise, uint8_t *codes)
{
    float amax = 1e-4f;
    for (int i = 0; i < count; i++)
        if (fabsf(values[i]) > amax)
            amax = fabsf(values[i]);
    float scale = fp8_scale(amax, quantise);
    for (int i = 0; i < count; i++)
        codes[i] = oracle_fp8_from(values[i] / scale);
    return scale;
}

size_t oracle_type_bytes(enum oracle_type type)
{
    switch (type) {
    case ORACLE_BF16:
    case ORACLE_FP16: return 2;
    case ORACLE_FP8: return 1;
    default: return 4;
    }
}

double oracle_decode(enum oracle_type type, const void *elements, size_t index)
{
    if (type == ORACLE_BF16)
        return oracle_bf16_value(((const uint16_t *)elements)[index]);
    if (type == ORACLE_FP16)
        return oracle_fp16_value(((const uint16_t *)elements)[index]);
    if (type == ORACLE_FP8)
        return oracle_fp8_value(((const uint8_t *)elements)[index]);
    return (double)((const float *)elements)[index];
}

void oracle_encode(enum oracle_type type, void *elements, size_t index, double value)
{
    if (type == ORACLE_BF16)
        ((uint16_t *)elements)[index] = oracle_bf16_from(value);
    else if (type == ORACLE_FP16)
        ((uint16_t *)elements)[index] = oracle_fp16_from(value);
    else if (type == ORACLE_FP8)
        ((uint8_t *)elements)[index] = oracle_fp8_from((float)value);
    else
        ((float *)elements)[index] = (float)value;
}

ptrdiff_t oracle_differ(enum oracle_type type, const void *a, const void *b, size_t count)
{
    size_t bytes = oracle_type_bytes(type);
    const unsigned char *left = a, *right = b;
    if (memcmp(left, right, count * bytes) == 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (memcmp(left + i * bytes, right + i * bytes, bytes) == 0)
            continue;
        if (!isnan(oracle_decode(type, a, i)) || !isnan(oracle_decode(type, b, i)))
            return (ptrdiff_t)i;
    }
    return -1;
}
