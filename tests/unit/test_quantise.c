// SPDX-License-Identifier: Apache-2.0
/* Number formats and row arithmetic, held against slow definitions in double precision. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/number.h"
#include "kernels/cpu/rows.h"

/* Every test of rows runs on every build of the arithmetic that this processor can run. */
static const struct rows_arithmetic *rows;

static uint64_t random_state = 88172645463325252u;

static uint32_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 16);
}

/* ------------------------------------------------------------------------------------------------------------ bf16 */

/* The bf16 nearest to a finite value, by comparing both neighbours in double precision. */
static uint16_t bf16_nearest(float value)
{
    uint16_t below = (uint16_t)(number_bits(value) >> 16); /* towards zero */
    uint16_t above = (uint16_t)(below + 1);
    double low = number_from_bf16(below), high = number_from_bf16(above), x = value;
    if (isinf(high)) /* the next value, had the exponent one more */
        high = copysign(ldexp(1.0, 128), x);
    double down = fabs(x - low), up = fabs(high - x);
    if (down != up)
        return down < up ? below : above;
    return below & 1 ? above : below;
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 0x10000; half++) {
        float exact = number_from_bf16((uint16_t)half);
        assert_true(isnan(exact) ? isnan(number_from_bf16(number_to_bf16(exact))) : number_to_bf16(exact) == half);
    }
    for (uint32_t half = 0; half < 0x10000; half++)
        for (uint32_t low = 0x7fff; low <= 0x8001; low++) {
            float value = number_from_bits(half << 16 | low);
            if (isfinite(value))
                assert_int_equal(number_to_bf16(value), bf16_nearest(value));
        }
    for (int i = 0; i < 1000000; i++) {
        float value = number_from_bits(random_bits());
        if (isfinite(value))
            assert_int_equal(number_to_bf16(value), bf16_nearest(value));
    }
}

static void bf16_keeps_nan_and_infinity(void **state)
{
    (void)state;
    assert_int_equal(number_to_bf16(INFINITY), 0x7f80);
    assert_int_equal(number_to_bf16(-INFINITY), 0xff80);
    for (uint32_t fraction = 1; fraction < 0x800000; fraction += 0x123) {
        assert_true(isnan(number_from_bf16(number_to_bf16(number_from_bits(0x7f800000 | fraction)))));
        assert_true(isnan(number_from_bf16(number_to_bf16(number_from_bits(0xff800000 | fraction)))));
    }
}

/* ------------------------------------------------------------------------------------------------------------ fp16 */

/* What a code means, by the definition of the format; the code after the largest number stands for what would follow. */
static double fp16_value(unsigned code)
{
    int exponent = code >> 10 & 31, fraction = code & 0x3ff;
    double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return code & 0x8000 ? -size : size;
}

static void fp16_means_what_the_format_says(void **state)
{
    (void)state;
    for (unsigned half = 0; half < 0x10000; half++) {
        unsigned size = half & 0x7fff, sign = half & 0x8000;
        float value = number_from_fp16((uint16_t)half);
        assert_int_equal(signbit(value) != 0, sign != 0);
        if (size < 0x7c00)
            assert_true((double)value == fp16_value(half));
        else if (size == 0x7c00)
            assert_true(isinf(value));
        else
            assert_int_equal(number_bits(value), sign << 16 | 0x7fc00000 | (half & 0x1ff) << 13); /* quiet */
        assert_int_equal(number_to_fp16(value), size > 0x7c00 ? half | 0x200 : half);
    }
}

/* What lies between two neighbours goes to the nearer one, the middle to the even one; likewise with the other sign. */
static void check_fp16_between(float value, uint16_t expected)
{
    assert_int_equal(number_to_fp16(value), expected);
    assert_int_equal(number_to_fp16(-value), expected | 0x8000);
}

static void fp16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint16_t low = 0; low < 0x7c00; low++) {
        uint16_t high = (uint16_t)(low + 1); /* infinity at the end, to which 2^16 stands as a neighbour */
        float value = (float)fp16_value(low), next = (float)fp16_value(high);
        float middle = (value + next) / 2; /* exact */
        check_fp16_between(nextafterf(value, INFINITY), low);
        check_fp16_between(nextafterf(middle, 0), low);
        check_fp16_between(middle, low & 1 ? high : low);
        check_fp16_between(nextafterf(middle, INFINITY), high);
        check_fp16_between(nextafterf(next, 0), high);
    }
    for (int i = 0; i < 1000000; i++) {
        float value = number_from_bits(random_bits() & 0x7fffffff);
        uint16_t half = number_to_fp16(value);
        if (isnan(value) || value >= 65536.0f) {
            assert_int_equal(isnan(value) ? half & 0x7e00 : half, isnan(value) ? 0x7e00 : 0x7c00);
            continue;
        }
        double off = fabs(fp16_value(half) - (double)value);
        assert_true(off <= fabs(fp16_value(half + 1u) - (double)value));
        assert_true(half == 0 || off <= fabs(fp16_value(half - 1u) - (double)value));
    }
}

static void fp16_keeps_nan_and_infinity(void **state)
{
    (void)state;
    check_fp16_between(65519.996f, 0x7bff);
    check_fp16_between(65520.0f, 0x7c00);
    check_fp16_between(3e38f, 0x7c00);
    check_fp16_between(INFINITY, 0x7c00);
    check_fp16_between(1e-45f, 0);
    for (uint32_t fraction = 1; fraction < 0x800000; fraction += 0x123)
        for (uint32_t sign = 0; sign < 2; sign++) {
            uint16_t half = number_to_fp16(number_from_bits(sign << 31 | 0x7f800000 | fraction));
            assert_int_equal(half, sign << 15 | 0x7e00 | fraction >> 13);
        }
}

/* ------------------------------------------------------------------------------------------------------------ e4m3 */

/* What a code means, by the definition of the format. */
static double e4m3_value(int code)
{
    int exponent = code >> 3 & 15, fraction = code & 7;
    double size = exponent ? ldexp(8 + fraction, exponent - 10) : ldexp(fraction, -9);
    return code & 0x80 ? -size : size;
}

/* The code nearest to a number, the even one of two; saturating. By trying all of them. */
static int e4m3_nearest(float value)
{
    double size = fabs((double)value), best_distance = INFINITY;
    int best = 0;
    for (int code = 0; code < 0x7f; code++) {
        double distance = fabs(e4m3_value(code) - size);
        if (distance < best_distance || (distance == best_distance && (code & 1) == 0)) {
            best = code;
            best_distance = distance;
        }
    }
    return best | (signbit(value) ? 0x80 : 0);
}

static void check_e4m3(float value)
{
    assert_int_equal(number_to_e4m3(value), e4m3_nearest(value));
    assert_int_equal(number_to_e4m3(-value), e4m3_nearest(-value));
}

static void e4m3_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (int code = 0; code < 0x7f; code++) {
        float value = (float)e4m3_value(code), next = (float)e4m3_value(code + 1);
        float middle = (value + next) / 2; /* exact */
        check_e4m3(value);
        if (code == 0x7e)
            break;
        check_e4m3(middle);
        check_e4m3(nextafterf(middle, 0));
        check_e4m3(nextafterf(middle, INFINITY));
        check_e4m3(nextafterf(value, INFINITY));
    }
    for (int i = 0; i < 300000; i++)
        check_e4m3(number_from_bits(0x3a000000 + random_bits() % 0x0b000000)); /* 2^-11 to past 448 */
}

static void e4m3_saturates_and_keeps_nan(void **state)
{
    (void)state;
    const float large[] = {448.0f, 448.01f, 464.0f, 480.0f, 1e9f, 3e38f, INFINITY};
    for (size_t i = 0; i < sizeof(large) / sizeof(large[0]); i++) {
        assert_int_equal(number_to_e4m3(large[i]), 0x7e);
        assert_int_equal(number_to_e4m3(-large[i]), 0xfe);
    }
    assert_int_equal(number_to_e4m3(NAN) & 0x7f, 0x7f);
    assert_int_equal(number_to_e4m3(-NAN) & 0x7f, 0x7f);
    assert_int_equal(number_to_e4m3(0.0f), 0);
    assert_int_equal(number_to_e4m3(-0.0f), 0x80);
    assert_int_equal(number_to_e4m3(1e-30f), 0);
}

static void e4m3_means_what_the_format_says(void **state)
{
    (void)state;
    for (int code = 0; code < 0x100; code++) {
        float value = number_from_e4m3((uint8_t)code);
        assert_int_equal(signbit(value) != 0, code >> 7);
        if ((code & 0x7f) == 0x7f)
            assert_true(isnan(value));
        else
            assert_true((double)value == e4m3_value(code));
    }
}

static void powers_of_two_are_rounded_up(void **state)
{
    (void)state;
    for (int i = 0; i < 100000; i++) {
        float value = number_from_bits(0x34000000 + random_bits() % 0x4a000000);
        int exponent;
        double fraction = frexp(value, &exponent);
        assert_true(number_power_of_two_above(value) == (float)ldexp(1.0, fraction == 0.5 ? exponent - 1 : exponent));
    }
}

/* -------------------------------------------------------------------------------------------------------- quantised */

static void check_group(const float *row, size_t count, bool power_of_two, const uint8_t *codes, float scale)
{
    float largest = 1e-4f;
    for (size_t i = 0; i < count; i++)
        largest = fmaxf(largest, fabsf(row[i])); /* ignores NaN */
    double exact = (double)largest / 448.0;
    float expected = (float)exact; /* the quotient of two floats, rounded once more, is the correctly rounded one */
    if (power_of_two)
        expected = (float)exp2(ceil(log2((double)expected)));
    assert_true(scale == expected);
    for (size_t i = 0; i < count; i++) {
        float quotient = (float)((double)row[i] / (double)expected);
        if (isnan(quotient)) /* infinity by infinity, too */
            assert_int_equal(codes[i] & 0x7f, 0x7f);
        else
            assert_int_equal(codes[i], e4m3_nearest(quotient));
    }
}

static const enum exchange_type types[] = {EXCHANGE_BF16, EXCHANGE_FP16, EXCHANGE_FP32};

/* Element i of an array of a type; number.h is tested above. */
static void element_set(void *row, enum exchange_type type, size_t i, float value)
{
    if (type == EXCHANGE_FP32)
        ((float *)row)[i] = value;
    else
        ((uint16_t *)row)[i] = type == EXCHANGE_FP16 ? number_to_fp16(value) : number_to_bf16(value);
}

static float element(const void *row, enum exchange_type type, size_t i)
{
    if (type == EXCHANGE_FP32)
        return ((const float *)row)[i];
    uint16_t half = ((const uint16_t *)row)[i];
    return type == EXCHANGE_FP16 ? number_from_fp16(half) : number_from_bf16(half);
}

static uint32_t element_bits(const void *row, enum exchange_type type, size_t i)
{
    return type == EXCHANGE_FP32 ? ((const uint32_t *)row)[i] : ((const uint16_t *)row)[i];
}

static void check_row(const float *values, enum exchange_type type, size_t count, bool power_of_two)
{
    uint8_t codes[512];
    float scales[4], row[512], widened[512];
    for (size_t i = 0; i < count; i++) {
        element_set(row, type, i, values[i]);
        widened[i] = element(row, type, i);
    }
    rows->quantise(row, type, count, power_of_two, codes, scales);
    for (size_t at = 0; at < count; at += 128) {
        size_t rest = count - at < 128 ? count - at : 128;
        check_group(widened + at, rest, power_of_two, codes + at, scales[at / 128]);
    }
}

static void rows_are_quantised_by_group(void **state)
{
    (void)state;
    static const size_t counts[] = {4, 8, 124, 128, 132, 256, 260, 512};
    float row[512];
    for (int round = 0; round < 200; round++) {
        float spread = ldexpf(1.0f, round % 40 - 20);
        for (size_t i = 0; i < 512; i++)
            row[i] = ((float)(random_bits() % 20001) - 10000.0f) / 10000.0f * spread;
        if (round % 7 == 0)
            row[random_bits() % 512] = NAN;
        for (size_t i = 0; round % 5 == 0 && i < 128; i++)
            row[i] = 0.0f;
        for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++)
            for (size_t t = 0; t < 3; t++)
                check_row(row, types[t], counts[c], round % 2);
    }
}

/* ------------------------------------------------------------------------------------------------------------- sums */

/* volatile: every product and every sum is a float of its own, whatever the compiler would like. */
static float sum_in_order(const float values[][64], const float *weights, int count, size_t i)
{
    volatile float total = 0.0f;
    for (int r = 0; r < count; r++) {
        volatile float product = weights[r] * values[r][i];
        total = total + product;
    }
    return total;
}

static void check_sums(enum exchange_type type, int count)
{
    float values[32][64], rounded[32][64], out[64];
    struct rows_sum sum = {.count = count};
    for (int r = 0; r < count; r++) {
        sum.weight[r] = (float)random_bits() / 4294967296.0f;
        sum.row[r] = rounded[r];
        for (size_t i = 0; i < 64; i++) {
            float spread = type == EXCHANGE_FP16 ? 1e6f : 1e5f; /* sums of fp16 are to stay finite */
            element_set(rounded[r], type, i, ((float)random_bits() - 2147483648.0f) / spread);
            values[r][i] = element(rounded[r], type, i);
        }
    }
    for (size_t elements = 8; elements <= 64; elements += 8) {
        rows->add(&sum, type, elements, out);
        for (size_t i = 0; i < elements; i++) {
            float expected;
            element_set(&expected, type, 0, sum_in_order((const float(*)[64])values, sum.weight, count, i));
            assert_int_equal(element_bits(out, type, i), element_bits(&expected, type, 0));
        }
    }
}

static void sums_are_in_order_and_not_contracted(void **state)
{
    (void)state;
    for (int round = 0; round < 300; round++)
        for (size_t t = 0; t < 3; t++)
            check_sums(types[t], round % 33);
}

static void sums_begin_at_plus_zero(void **state)
{
    (void)state;
    for (size_t t = 0; t < 3; t++) {
        float row[8], out[8];
        for (size_t i = 0; i < 8; i++)
            element_set(row, types[t], i, i < 4 ? -0.0f : i < 7 ? 1.0f : NAN);
        struct rows_sum sum = {.count = 1, .row = {row}, .weight = {1.0f}};
        rows->add(&sum, types[t], 8, out);
        for (size_t i = 0; i < 4; i++)
            assert_int_equal(element_bits(out, types[t], i), 0);
        assert_true(element(out, types[t], 6) == 1.0f);
        assert_true(isnan(element(out, types[t], 7)));
        sum.count = 0;
        rows->add(&sum, types[t], 8, out);
        for (size_t i = 0; i < 8; i++)
            assert_int_equal(element_bits(out, types[t], i), 0);
    }
}

/* Any bits at all: what the lanes do is what the one-by-one definitions of number.h do. */
static void check_wild(enum exchange_type type, bool power_of_two)
{
    uint16_t half[136], out[136];
    uint8_t codes[136];
    float scales[2];
    struct rows_sum sum = {.count = 1, .row = {half}, .weight = {1.0f}};
    for (size_t i = 0; i < 136; i++)
        half[i] = (uint16_t)random_bits();
    rows->add(&sum, type, 136, out);
    rows->quantise(half, type, 136, power_of_two, codes, scales);
    for (size_t i = 0; i < 136; i++) {
        float value = element(half, type, i), quotient = value / scales[i / 128];
        assert_true(isnan(value) ? isnan(element(out, type, i)) : out[i] == (value == 0 ? 0 : half[i]));
        assert_true(isnan(quotient) ? (codes[i] & 0x7f) == 0x7f : codes[i] == number_to_e4m3(quotient));
    }
}

static void wild_values_are_alike_everywhere(void **state)
{
    (void)state;
    for (int round = 0; round < 3000; round++) {
        check_wild(EXCHANGE_BF16, round % 2);
        check_wild(EXCHANGE_FP16, round % 2);
    }
}

enum { SOME = 136 }; /* whole blocks of vectors, single vectors, and some left over for one or another build */

/* Every code, to fp32 and back, at each place of a row: the bits of number.h, payloads of NaN included. */
static void every_fp16_is_alike_everywhere(void **state)
{
    (void)state;
    uint16_t row[SOME], out[SOME];
    struct rows_sum sum = {.count = 1, .row = {row}, .weight = {1.0f}};
    for (uint32_t first = 0; first < 0x10000; first++) {
        for (uint32_t i = 0; i < SOME; i++)
            row[i] = (uint16_t)(first + i * 977);
        rows->add(&sum, EXCHANGE_FP16, SOME, out);
        for (uint32_t i = 0; i < SOME; i++) {
            uint16_t expected = number_to_fp16(number_from_fp16(row[i]) + 0.0f);
            if (out[i] != expected) /* an assertion for each would take most of the time */
                assert_int_equal(out[i], expected);
        }
    }
}

/* A sum that is `value` in each element: 1 times it as weight. */
static void check_rounding(struct rows_sum *sum, float value)
{
    uint16_t out[SOME];
    sum->weight[0] = value;
    rows->add(sum, EXCHANGE_FP16, SOME, out);
    assert_int_equal(out[0], number_to_fp16(value + 0.0f));
    assert_memory_equal(out, out + 1, sizeof(out) - sizeof(*out));
}

static void every_rounding_to_fp16_is_alike_everywhere(void **state)
{
    (void)state;
    uint16_t ones[SOME];
    for (size_t i = 0; i < SOME; i++)
        ones[i] = 0x3c00;
    struct rows_sum sum = {.count = 1, .row = {ones}};
    for (unsigned code = 0; code < 0x10000; code++) {
        float value = number_from_fp16((uint16_t)code), next = number_from_fp16((uint16_t)(code ^ 1));
        float middle = (value + next) / 2;
        check_rounding(&sum, value);
        check_rounding(&sum, nextafterf(value, -INFINITY));
        check_rounding(&sum, middle);
        check_rounding(&sum, nextafterf(middle, INFINITY));
        check_rounding(&sum, nextafterf(middle, -INFINITY));
    }
    for (int i = 0; i < 100000; i++)
        check_rounding(&sum, number_from_bits(random_bits()));
}

/* ------------------------------------------------------------------------------------------------------- on the way home */

static const size_t home_counts[] = {4, 8, 12, 16, 24, 120, 128, 132, 136, 256, 264};

enum { MOST_HOME = 264, MOST_GROUPS = 3, MOST_ROWS = 32 };

/* What add() would round. */
static float sum_of(const void *const *row, enum exchange_type type, const float *weights, int count, size_t i)
{
    volatile float total = 0.0f;
    for (int r = 0; r < count; r++) {
        volatile float product = weights[r] * element(row[r], type, i);
        total = total + product;
    }
    return total;
}

static void check_sums_quantised(enum exchange_type type, int count, size_t elements, bool power_of_two)
{
    float row[MOST_ROWS][MOST_HOME], total[MOST_HOME], scales[MOST_GROUPS];
    uint8_t codes[MOST_HOME];
    struct rows_sum sum = {.count = count};
    for (int r = 0; r < count; r++) {
        sum.weight[r] = (float)random_bits() / 4294967296.0f;
        sum.row[r] = row[r];
        for (size_t i = 0; i < elements; i++)
            element_set(row[r], type, i, ((float)random_bits() - 2147483648.0f) / 1e6f);
    }
    if (count && random_bits() % 4 == 0)
        element_set(row[0], type, random_bits() % elements, random_bits() % 2 ? NAN : INFINITY);
    rows->add_quantise(&sum, type, elements, power_of_two, codes, scales);
    for (size_t i = 0; i < elements; i++)
        total[i] = sum_of(sum.row, type, sum.weight, count, i);
    for (size_t at = 0; at < elements; at += 128) {
        size_t rest = elements - at < 128 ? elements - at : 128;
        check_group(total + at, rest, power_of_two, codes + at, scales[at / 128]);
    }
}

static void sums_are_quantised_from_fp32(void **state)
{
    (void)state;
    for (int round = 0; round < 33 * 8; round++)
        for (size_t t = 0; t < 3; t++)
            check_sums_quantised(types[t], round % 33, home_counts[(size_t)round % 11], round % 2);
}

/* 432 lies in the middle of two codes. A rounding to bf16 or fp16 before would make 432 of what is just beside it. */
static void sums_are_rounded_once(void **state)
{
    (void)state;
    float row[2][8] = {{448.0f, 432.0f, 432.0f, 432.0f}, {0.0f, 0.0625f, -0.0625f, 0.0f}}, scale;
    uint16_t half[2][8];
    uint8_t codes[8];
    struct rows_sum sum = {.count = 2, .row = {half[0], half[1]}, .weight = {1.0f, 1.0f}};
    for (size_t t = 0; t < 3; t++) {
        for (size_t i = 0; i < 8; i++)
            for (size_t r = 0; r < 2; r++)
                if (types[t] != EXCHANGE_FP32)
                    element_set(half[r], types[t], i, row[r][i]);
        for (size_t r = 0; types[t] == EXCHANGE_FP32 && r < 2; r++)
            sum.row[r] = row[r];
        rows->add_quantise(&sum, types[t], 8, false, codes, &scale);
        assert_true(scale == 1.0f);
        assert_int_equal(codes[0], 0x7e);
        assert_int_equal(codes[1], 0x7e);
        assert_int_equal(codes[2], 0x7d);
        assert_int_equal(codes[3], 0x7e); /* the even one */
    }
}

static float home_value(const struct rows_sum *sum, int r, size_t i)
{
    volatile float value = (float)e4m3_value(((const uint8_t *)sum->row[r])[i]) * sum->scales[r][i / 128];
    return (((const uint8_t *)sum->row[r])[i] & 0x7f) == 0x7f ? NAN : value;
}

static void check_home_sum(const struct rows_sum *sum, enum exchange_type type, size_t elements)
{
    float out[MOST_HOME], expected;
    rows->add_quantised(sum, type, elements, out);
    for (size_t i = 0; i < elements; i++) {
        volatile float total = 0.0f;
        for (int r = 0; r < sum->count; r++) {
            volatile float product = sum->weight[r] * home_value(sum, r, i);
            total = total + product;
        }
        element_set(&expected, type, 0, total);
        if (isnan(total))
            assert_true(isnan(element(out, type, i)));
        else
            assert_int_equal(element_bits(out, type, i), element_bits(&expected, type, 0));
    }
}

/* Every code comes to stand at every place of a row. */
static void codes_are_added_in_order(void **state)
{
    (void)state;
    uint8_t codes[MOST_ROWS][MOST_HOME];
    float scales[MOST_ROWS][MOST_GROUPS];
    struct rows_sum sum = {.count = 0};
    for (int r = 0; r < MOST_ROWS; r++) {
        sum.row[r] = codes[r];
        sum.scales[r] = scales[r];
    }
    for (int round = 0; round < 33 * 16; round++) {
        sum.count = round < 256 ? 1 : round % 33;
        for (int r = 0; r < sum.count; r++) {
            sum.weight[r] = ((float)random_bits() - 2147483648.0f) / 2147483648.0f;
            for (size_t i = 0; i < MOST_HOME; i++)
                codes[r][i] = (uint8_t)(round < 256 ? (size_t)round + i : random_bits());
            for (size_t g = 0; g < MOST_GROUPS; g++)
                scales[r][g] = ldexpf(1.0f + (float)(random_bits() % 1000) / 1000.0f, (int)(random_bits() % 12) - 10);
        }
        if (round % 9 == 0)
            scales[0][0] = INFINITY;
        for (size_t t = 0; t < 3; t++)
            check_home_sum(&sum, types[t], home_counts[(size_t)round % 11]);
    }
}

int main(void)
{
    const struct CMUnitTest number_tests[] = {
        cmocka_unit_test(bf16_rounds_to_nearest_even),     cmocka_unit_test(bf16_keeps_nan_and_infinity),
        cmocka_unit_test(fp16_means_what_the_format_says), cmocka_unit_test(fp16_rounds_to_nearest_even),
        cmocka_unit_test(fp16_keeps_nan_and_infinity),     cmocka_unit_test(e4m3_rounds_to_nearest_even),
        cmocka_unit_test(e4m3_saturates_and_keeps_nan),    cmocka_unit_test(e4m3_means_what_the_format_says),
        cmocka_unit_test(powers_of_two_are_rounded_up),
    };
    const struct CMUnitTest row_tests[] = {
        cmocka_unit_test(rows_are_quantised_by_group),    cmocka_unit_test(sums_are_in_order_and_not_contracted),
        cmocka_unit_test(sums_begin_at_plus_zero),        cmocka_unit_test(wild_values_are_alike_everywhere),
        cmocka_unit_test(every_fp16_is_alike_everywhere), cmocka_unit_test(every_rounding_to_fp16_is_alike_everywhere),
        cmocka_unit_test(sums_are_quantised_from_fp32),   cmocka_unit_test(sums_are_rounded_once),
        cmocka_unit_test(codes_are_added_in_order),
    };
    const struct rows_arithmetic *builds[ROWS_MAX_BUILDS];
    int failures = cmocka_run_group_tests_name("numbers", number_tests, NULL, NULL);
    int count = rows_builds(builds);
    for (int i = 0; i < count; i++) {
        rows = builds[i];
        failures += cmocka_run_group_tests_name(rows->name, row_tests, NULL, NULL);
    }
    return failures;
}
