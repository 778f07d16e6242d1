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
    for (size_t i = 0; i < count; i++)
        if (isnan(row[i]))
            assert_int_equal(codes[i] & 0x7f, 0x7f);
        else
            assert_int_equal(codes[i], e4m3_nearest((float)((double)row[i] / (double)expected)));
}

static void check_row(const float *row, size_t count, bool power_of_two)
{
    uint8_t codes[512], codes_of_half[512];
    float scales[4], scales_of_half[4];
    uint16_t half[512];
    for (size_t i = 0; i < count; i++)
        half[i] = number_to_bf16(row[i]);
    rows->quantise(row, true, count, power_of_two, codes, scales);
    rows->quantise(half, false, count, power_of_two, codes_of_half, scales_of_half);
    for (size_t at = 0; at < count; at += 128) {
        size_t rest = count - at < 128 ? count - at : 128;
        float widened[128];
        for (size_t i = 0; i < rest; i++)
            widened[i] = number_from_bf16(half[at + i]);
        check_group(row + at, rest, power_of_two, codes + at, scales[at / 128]);
        check_group(widened, rest, power_of_two, codes_of_half + at, scales_of_half[at / 128]);
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
            check_row(row, counts[c], round % 2);
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

static void sums_are_in_order_and_not_contracted(void **state)
{
    (void)state;
    float values[32][64], weights[32], out[64];
    uint16_t half[32][64], out_half[64];
    struct rows_sum sum, sum_half;
    for (int round = 0; round < 300; round++) {
        int count = round % 33;
        sum.count = sum_half.count = count;
        for (int r = 0; r < count; r++) {
            weights[r] = sum.weight[r] = sum_half.weight[r] = (float)random_bits() / 4294967296.0f;
            sum.row[r] = values[r];
            sum_half.row[r] = half[r];
            for (size_t i = 0; i < 64; i++) {
                half[r][i] = number_to_bf16(((float)random_bits() - 2147483648.0f) / 1e6f);
                values[r][i] = number_from_bf16(half[r][i]);
            }
        }
        for (size_t elements = 8; elements <= 64; elements += 8) {
            rows->add(&sum, true, elements, out);
            rows->add(&sum_half, false, elements, out_half);
            for (size_t i = 0; i < elements; i++) {
                float expected = sum_in_order((const float(*)[64])values, weights, count, i);
                assert_memory_equal(&out[i], &expected, sizeof(float));
                assert_int_equal(out_half[i], number_to_bf16(expected));
            }
        }
    }
}

static void sums_begin_at_plus_zero(void **state)
{
    (void)state;
    const float row[4] = {-0.0f, -0.0f, 1.0f, NAN};
    float out[4];
    struct rows_sum sum = {.count = 1, .row = {row}, .weight = {1.0f}};
    rows->add(&sum, true, 4, out);
    assert_false(signbit(out[0]));
    assert_true(out[2] == 1.0f);
    assert_true(isnan(out[3]));
    sum.count = 0;
    rows->add(&sum, true, 4, out);
    for (int i = 0; i < 4; i++)
        assert_int_equal(number_bits(out[i]), 0);
}

/* Any bits at all: what the lanes do is what the one-by-one definitions of number.h do. */
static void wild_values_are_alike_everywhere(void **state)
{
    (void)state;
    float row[136];
    uint16_t out[136];
    uint8_t codes[136];
    float scales[2];
    struct rows_sum sum = {.count = 1, .weight = {1.0f}};
    for (int round = 0; round < 3000; round++) {
        uint16_t half[136];
        for (size_t i = 0; i < 136; i++) {
            half[i] = (uint16_t)random_bits();
            row[i] = number_from_bf16(half[i]);
        }
        sum.row[0] = half;
        rows->add(&sum, false, 136, out);
        rows->quantise(half, false, 136, round % 2, codes, scales);
        for (size_t i = 0; i < 136; i++) {
            assert_true(isnan(row[i]) ? isnan(number_from_bf16(out[i])) : out[i] == (row[i] == 0 ? 0 : half[i]));
            uint8_t code = number_to_e4m3(row[i] / scales[i / 128]);
            assert_true(isnan(row[i] / scales[i / 128]) ? (codes[i] & 0x7f) == 0x7f : codes[i] == code);
        }
    }
}

int main(void)
{
    const struct CMUnitTest number_tests[] = {
        cmocka_unit_test(bf16_rounds_to_nearest_even),  cmocka_unit_test(bf16_keeps_nan_and_infinity),
        cmocka_unit_test(e4m3_rounds_to_nearest_even),  cmocka_unit_test(e4m3_saturates_and_keeps_nan),
        cmocka_unit_test(powers_of_two_are_rounded_up),
    };
    const struct CMUnitTest row_tests[] = {
        cmocka_unit_test(rows_are_quantised_by_group),
        cmocka_unit_test(sums_are_in_order_and_not_contracted),
        cmocka_unit_test(sums_begin_at_plus_zero),
        cmocka_unit_test(wild_values_are_alike_everywhere),
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
