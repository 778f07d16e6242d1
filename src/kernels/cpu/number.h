// SPDX-License-Identifier: Apache-2.0
/* Number formats, bit for bit: bf16, fp16 and fp8 e4m3fn from and to fp32. Round to nearest even; no table. */
#ifndef CPU_NUMBER_H
#define CPU_NUMBER_H

#include <stdint.h>
#include <string.h>

static inline uint32_t number_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float number_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline float number_from_bf16(uint16_t half)
{
    return number_from_bits((uint32_t)half << 16);
}

static inline uint16_t number_to_bf16(float value)
{
    uint32_t bits = number_bits(value);
    /* Just under half of the last kept place, plus that place's own bit, carries when nearest-even rounds up. */
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    uint32_t nan = bits >> 16 | 0x40; /* rounding could carry a NaN into infinity; stay quiet and a NaN */
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

/* Exact; a NaN becomes quiet and keeps its payload. */
static inline float number_from_fp16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, size = half & 0x7fff;
    /* Ten bits of fraction become the upper ones of 23, and the exponent's bias moves from 15 to 127. */
    uint32_t normal = (size << 13) + (112u << 23);
    /* Subnormals are multiples of 2^-24, as if they stood behind the 1 of 2^-14: that is taken off again, exactly. */
    uint32_t small = number_bits(number_from_bits(normal + (1u << 23)) - 0x1p-14f);
    uint32_t bits = size < 0x400 ? small : normal;
    bits = size >= 0x7c00 ? normal + (112u << 23) : bits;
    bits = size > 0x7c00 ? bits | 0x400000 : bits;
    return number_from_bits(sign | bits);
}

/* What is too large becomes infinity; a NaN stays a NaN, quiet, with the upper bits of its payload. */
static inline uint16_t number_to_fp16(float value)
{
    uint32_t bits = number_bits(value);
    uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    /* Subnormal results are multiples of 2^-24, the last place of any fp32 from 1/2 to 1: adding that does the rounding. */
    uint32_t small = number_bits(number_from_bits(size) + 0.5f) & 0x7ff;
    /* Otherwise keep ten bits of the fraction, and move the exponent's bias from 127 to 15. */
    uint32_t normal = ((size + 0xfff + (size >> 13 & 1)) >> 13) - (112u << 10);
    uint32_t code = size < 0x38800000 /* 2^-14 */ ? small : normal;
    code = size >= 0x47800000 /* 2^16 */ ? 0x7c00 : code;
    code = size > 0x7f800000 ? 0x7e00 | (size >> 13 & 0x1ff) : code;
    return (uint16_t)(sign | code);
}

/* e4m3fn has no infinity: what is too large saturates at +-448, only NaN becomes NaN. */
static inline uint8_t number_to_e4m3(float value)
{
    uint32_t bits = number_bits(value);
    uint32_t sign = bits >> 24 & 0x80;
    uint32_t size = bits & 0x7fffffff;
    /* Subnormal results are multiples of 2^-9, the last place of any fp32 near 2^14: adding that does the rounding. */
    uint32_t small = number_bits(number_from_bits(size) + 16384.0f) & 0xff;
    /* Otherwise keep three bits of the fraction, and move the exponent's bias from 127 to 7. */
    uint32_t normal = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120u << 3);
    uint32_t code = size < 0x3c800000 /* 2^-6 */ ? small : normal;
    code = size >= 0x43e00000 /* 448 */ ? 0x7e : code;
    code = size > 0x7f800000 ? 0x7f : code;
    return (uint8_t)(sign | (code & 0x7f));
}

/* Exact. */
static inline float number_from_e4m3(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80) << 24, size = code & 0x7f;
    /* Three bits of fraction become the upper ones of 23, and the exponent's bias moves from 7 to 127. */
    uint32_t normal = (size << 20) + (120u << 23);
    /* Subnormals are multiples of 2^-9, as if they stood behind the 1 of 2^-6: that is taken off again, exactly. */
    uint32_t small = number_bits(number_from_bits(normal + (1u << 23)) - 0x1p-6f);
    uint32_t bits = size < 8 ? small : normal;
    bits = size == 0x7f ? 0x7fc00000 : bits;
    return number_from_bits(sign | bits);
}

/* The smallest power of two that is >= a positive normal number. */
static inline float number_power_of_two_above(float value)
{
    return number_from_bits((number_bits(value) + 0x7fffff) & 0xff800000);
}

#endif
