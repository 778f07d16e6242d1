// SPDX-License-Identifier: Apache-2.0
/* The sums have exactly the order that linear.h promises, whatever the compiler makes of the vectors; the sampler. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "engine.h"
#include "linear.h"

enum { LONGEST = 200 };

/* Values of very different size, so that another order would give other bits. */
static void fill(float *x, int32_t n, uint32_t seed)
{
    for (int32_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        float small = (float)(seed >> 8) / 16777216.0f - 0.5f;
        x[i] = ldexpf(small, (int)(seed % 13) - 6);
    }
}

static void expect_bits(float have, float want)
{
    assert_memory_equal(&have, &want, sizeof(have));
}

/* The order of linear.h, one float at a time. volatile: nothing is kept wider or fused. */
static float dot_in_order(const float *a, const float *b, int32_t n)
{
    volatile float part[16] = {0}, four[4], product;
    int32_t whole = n / 16 * 16;
    for (int32_t i = 0; i < whole; i++) {
        product = a[i] * b[i];
        part[i % 16] = part[i % 16] + product;
    }
    for (int j = 0; j < 4; j++) {
        volatile float low = part[j] + part[j + 4], high = part[j + 8] + part[j + 12];
        four[j] = low + high;
    }
    volatile float left = four[0] + four[1], right = four[2] + four[3], sum = left + right;
    for (int32_t i = whole; i < n; i++) {
        product = a[i] * b[i];
        sum = sum + product;
    }
    return sum;
}

static void test_dot_order(void **state)
{
    (void)state;
    float a[LONGEST], b[LONGEST];
    int other_bits = 0;
    for (int32_t n = 1; n <= LONGEST; n++) {
        fill(a, n, (uint32_t)n);
        fill(b, n, (uint32_t)n + 1000);
        expect_bits(linear_dot(a, b, n), dot_in_order(a, b, n));
        float plain = 0;
        for (int32_t i = 0; i < n; i++)
            plain += a[i] * b[i];
        other_bits += plain != dot_in_order(a, b, n);
    }
    assert_true(other_bits > LONGEST / 2); /* so the comparison above can fail */
}

static void test_apply_is_dots(void **state)
{
    (void)state;
    float weight[7 * 37], x[37], y[7];
    fill(weight, 7 * 37, 1);
    fill(x, 37, 2);
    linear_apply(weight, 7, 37, x, y);
    for (int32_t o = 0; o < 7; o++)
        expect_bits(y[o], dot_in_order(weight + o * 37, x, 37));
}

static void test_mix_order(void **state)
{
    (void)state;
    float rows[50 * 37], share[50], y[37];
    fill(rows, 50 * 37, 3);
    fill(share, 50, 4);
    for (int32_t columns = 1; columns <= 37; columns++) {
        linear_mix(share, rows, 50, columns, y);
        for (int32_t c = 0; c < columns; c++) {
            volatile float sum = 0, product;
            for (int32_t i = 0; i < 50; i++) {
                product = share[i] * rows[i * columns + c];
                sum = sum + product;
            }
            expect_bits(y[c], sum);
        }
    }
}

static void test_norm_and_exp(void **state)
{
    (void)state;
    float x[4] = {3, -1, 2, 1}, weight[4] = {1, 2, 1, -1}, y[4];
    linear_rms_norm(weight, x, 4, 0.25f, y); /* mean of squares 3.75, and eps: 4, so divided by 2 */
    static const float normed[4] = {1.5f, -1, 1, -0.5f};
    assert_memory_equal(y, normed, sizeof(y));
    float z[3] = {1000, 1000, -1000}; /* no overflow: the largest is taken off first */
    expect_bits(linear_exp_sum(z, 3), 2);
    expect_bits(z[0], 1);
    expect_bits(z[2], 0);
}

static void test_sampler(void **state)
{
    (void)state;
    float logits[256] = {0};
    assert_int_equal(engine_greedy(logits, 256), 0);
    assert_true(fabs(engine_surprise_bits(logits, 256, 77) - 8) < 1e-12);
    logits[40] = 5;
    logits[200] = 5;
    assert_int_equal(engine_greedy(logits, 256), 40);
    logits[200] = 600;
    assert_int_equal(engine_greedy(logits, 256), 200);
    assert_true(engine_surprise_bits(logits, 256, 200) < 1e-12);
    assert_true(fabs(engine_surprise_bits(logits, 256, 0) - 600 / log(2)) < 1e-9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dot_order),    cmocka_unit_test(test_apply_is_dots), cmocka_unit_test(test_mix_order),
        cmocka_unit_test(test_norm_and_exp), cmocka_unit_test(test_sampler),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
