// SPDX-License-Identifier: Apache-2.0
/* The oracle itself, against numbers worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/world.h"

static void bf16_codes_and_values_are_each_others(void **state)
{
    (void)state;
    for (unsigned code = 0; code <= 0xffff; code++) {
        double value = oracle_bf16_value((uint16_t)code);
        if (!isnan(value))
            assert_int_equal(oracle_bf16_from(value), code);
    }
    assert_int_equal(oracle_bf16_from(1.0), 0x3f80);
    assert_int_equal(oracle_bf16_from(-2.5), 0xc020);
    assert_int_equal(oracle_bf16_from((double)INFINITY), 0x7f80);
    assert_true(isnan(oracle_bf16_value(oracle_bf16_from((double)NAN))));
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    assert_int_equal(oracle_bf16_from(1.0 + ldexp(1, -8)), 0x3f80); /* tie, down to even */
    assert_int_equal(oracle_bf16_from(1.0 + 3 * ldexp(1, -8)), 0x3f82); /* tie, up to even */
    assert_int_equal(oracle_bf16_from(1.0 + ldexp(1, -8) + ldexp(1, -30)), 0x3f81); /* just above */
    assert_int_equal(oracle_bf16_from(2.0 - ldexp(1, -20)), 0x4000); /* carry into the exponent */
    assert_int_equal(oracle_bf16_from((double)FLT_MAX), 0x7f80); /* beyond the largest */
    assert_int_equal(oracle_bf16_from(ldexp(1, -133)), 0x0001); /* least subnormal */
    assert_int_equal(oracle_bf16_from(ldexp(1, -134)), 0x0000);
    assert_int_equal(oracle_bf16_from(-ldexp(3, -134)), 0x8002);
    assert_int_equal(oracle_bf16_from(ldexp(1, -126) - ldexp(1, -140)), 0x0080); /* subnormal up to least normal */
}

/* The usual rule on bits, which the oracle does not use: add half of the last place, less one if that would be odd. */
static void bf16_agrees_with_the_rule_on_bits(void **state)
{
    (void)state;
    uint64_t random = 7;
    for (int i = 0; i < 200000; i++) {
        uint32_t bits = (uint32_t)world_random(&random);
        float value;
        memcpy(&value, &bits, sizeof(value));
        if (isnan(value))
            continue;
        uint32_t want = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        assert_int_equal(oracle_bf16_from((double)value), want);
    }
}

static void fp16_codes_and_values_are_each_others(void **state)
{
    (void)state;
    for (unsigned code = 0; code <= 0xffff; code++) {
        double value = oracle_fp16_value((uint16_t)code);
        if (!isnan(value))
            assert_int_equal(oracle_fp16_from(value), code);
    }
    assert_int_equal(oracle_fp16_from(1.0), 0x3c00);
    assert_int_equal(oracle_fp16_from(-2.5), 0xc100);
    assert_int_equal(oracle_fp16_from(65504.0), 0x7bff); /* the largest */
    assert_int_equal(oracle_fp16_from((double)-INFINITY), 0xfc00);
    assert_true(isnan(oracle_fp16_value(oracle_fp16_from((double)NAN))));
}

static void fp16_rounds_to_nearest_even(void **state)
{
    (void)state;
    assert_int_equal(oracle_fp16_from(1.0 + ldexp(1, -11)), 0x3c00); /* tie, down to even */
    assert_int_equal(oracle_fp16_from(1.0 + 3 * ldexp(1, -11)), 0x3c02); /* tie, up to even */
    assert_int_equal(oracle_fp16_from(1.0 + ldexp(1, -11) + ldexp(1, -30)), 0x3c01); /* just above */
    assert_int_equal(oracle_fp16_from(2.0 - ldexp(1, -20)), 0x4000); /* carry into the exponent */
    assert_int_equal(oracle_fp16_from(65519.99), 0x7bff);
    assert_int_equal(oracle_fp16_from(65520.0), 0x7c00); /* halfway to 2^16 */
    assert_int_equal(oracle_fp16_from((double)-FLT_MAX), 0xfc00);
    assert_int_equal(oracle_fp16_from(ldexp(1, -24)), 0x0001); /* least subnormal */
    assert_int_equal(oracle_fp16_from(ldexp(1, -25)), 0x0000);
    assert_int_equal(oracle_fp16_from(-ldexp(3, -25)), 0x8002);
    assert_int_equal(oracle_fp16_from(ldexp(1, -14) - ldexp(1, -30)), 0x0400); /* subnormal up to least normal */
}

static void fp8_codes_and_values_are_each_others(void **state)
{
    (void)state;
    for (unsigned code = 0; code <= 0xff; code++) {
        double value = oracle_fp8_value((uint8_t)code);
        if ((code & 0x7f) == 0x7f)
            assert_true(isnan(value));
        else
            assert_int_equal(oracle_fp8_from((float)value), code);
    }
    assert_int_equal(oracle_fp8_from(1.0f), 0x38);
    assert_int_equal(oracle_fp8_from(448.0f), 0x7e);
    assert_int_equal(oracle_fp8_from(0.001953125f), 0x01); /* 2^-9, the least */
}

static void fp8_rounds_to_nearest_even_and_saturates(void **state)
{
    (void)state;
    assert_int_equal(oracle_fp8_from(1.0625f), 0x38); /* tie between 1 and 1.125 */
    assert_int_equal(oracle_fp8_from(1.1875f), 0x3a); /* tie between 1.125 and 1.25 */
    assert_int_equal(oracle_fp8_from(1.063f), 0x39);
    assert_int_equal(oracle_fp8_from(0.0009765625f), 0x00); /* half of the least */
    assert_int_equal(oracle_fp8_from(-0.0009765625f), 0x80);
    assert_int_equal(oracle_fp8_from(0.00293f), 0x02); /* 1.5 of the least and a little */
    assert_int_equal(oracle_fp8_from(464.0f), 0x7e);
    assert_int_equal(oracle_fp8_from(-1e30f), 0xfe);
    assert_int_equal(oracle_fp8_from(INFINITY), 0x7e);
    assert_int_equal(oracle_fp8_from(NAN) & 0x7f, 0x7f);
}

static void fp8_groups_have_the_documented_scales(void **state)
{
    (void)state;
    uint8_t codes[4];
    const float zeros[4] = {0.0f, -0.0f, 0.0f, 0.0f};
    assert_true(oracle_fp8_group(zeros, 4, ORACLE_SCALED, codes) == 1e-4f / 448.0f);
    assert_int_equal(codes[0], 0x00);
    assert_int_equal(codes[1], 0x80);
    const float values[4] = {448.0f, -224.0f, 1.0f, 0.5f};
    assert_true(oracle_fp8_group(values, 4, ORACLE_SCALED, codes) == 1.0f);
    assert_int_equal(codes[0], 0x7e);
    assert_int_equal(codes[1], 0xf6);
    assert_int_equal(codes[2], 0x38);
    assert_true(oracle_fp8_group(values, 4, ORACLE_SCALED_POW2, codes) == 1.0f);
    const float more[4] = {449.0f, 2.0f, 0.0f, 0.0f};
    assert_true(oracle_fp8_group(more, 4, ORACLE_SCALED_POW2, codes) == 2.0f);
    assert_int_equal(codes[1], 0x38);
    const float odd[4] = {NAN, 448.0f, 1.0f, 0.0f};
    assert_true(oracle_fp8_group(odd, 4, ORACLE_SCALED, codes) == 1.0f);
    assert_int_equal(codes[0] & 0x7f, 0x7f);
    assert_int_equal(codes[1], 0x7e);
}

static void differ_forgives_only_nan_payloads(void **state)
{
    (void)state;
    const uint16_t a[3] = {0x7fc0, 0x3f80, 0x0000}, b[3] = {0xffff, 0x3f80, 0x8000};
    assert_int_equal(oracle_differ(ORACLE_BF16, a, b, 2), -1);
    assert_int_equal(oracle_differ(ORACLE_BF16, a, b, 3), 2); /* +0 and -0 are not the same */
}

/*
 * Two ranks with two slots each. Rank 0 has two tokens: {slot 1, slot 2} and {slot 3, slot 2}; rank 1 has one: {slot 2,
 * none}. Hidden rows are one number four times.
 */
struct small {
    float hidden[2][2][4];
    int64_t slots[2][4];
    float weights[2][4];
    struct oracle_rank ranks[2];
    struct oracle_shape shape;
};

static void small_make(struct small *s)
{
    static const int64_t slots[2][4] = {{1, 2, 3, 2}, {2, -1, -1, -1}};
    memset(s, 0, sizeof(*s));
    memcpy(s->slots, slots, sizeof(slots));
    for (int rank = 0; rank < 2; rank++) {
        for (int i = 0; i < 8; i++)
            s->hidden[rank][i / 4][i % 4] = (float)(10 * rank + i / 4 + 1);
        for (int i = 0; i < 4; i++)
            s->weights[rank][i] = (float)(i + 1);
        s->ranks[rank] = (struct oracle_rank){.active = 1,
                                              .tokens = rank == 0 ? 2 : 1,
                                              .hidden = s->hidden[rank],
                                              .slots = s->slots[rank],
                                              .weights = s->weights[rank]};
    }
    s->shape = (struct oracle_shape){
        .ranks = 2, .slots = 2, .max_tokens = 2, .hidden = 4, .topk = 2, .type = ORACLE_FP32, .pad = 1, .invalid = -9};
}

static void small_expert_major(void **state)
{
    (void)state;
    struct small s;
    struct oracle_received got;
    small_make(&s);
    oracle_expert_major(&s.shape, s.ranks, 1, &got);
    const float *hidden = (const float *)(void *)got.hidden;
    assert_int_equal(got.counts[0], 3); /* slot 2: both tokens of rank 0, then that of rank 1 */
    assert_int_equal(got.counts[1], 1); /* slot 3: the second token of rank 0 */
    assert_true(hidden[0] == 1.0f && hidden[4] == 2.0f && hidden[8] == 11.0f && hidden[16] == 2.0f);
    const int32_t source[16] = {0, 0, 0, 1, 1, 0, -9, -9, 0, 1, -9, -9, -9, -9, -9, -9};
    assert_memory_equal(got.source, source, sizeof(source));
    assert_true(got.ranges[0] == 2 && got.ranges[1] == (INT64_C(2) << 32) + 1);
    assert_true(got.ranges[2] == 1 && got.ranges[3] == (INT64_C(1) << 32));
    assert_int_equal(got.hidden[3 * 16], ORACLE_CANARY);
    oracle_received_free(&got);
}

static void small_rank_major(void **state)
{
    (void)state;
    struct small s;
    struct oracle_received got;
    small_make(&s);
    oracle_rank_major(&s.shape, s.ranks, 1, &got);
    assert_int_equal(got.counts[0], 2);
    assert_int_equal(got.counts[1], 1);
    const int32_t slots[8] = {-1, 0, 1, 0, 0, -1, -9, -9};
    assert_memory_equal(got.slots, slots, sizeof(slots));
    const float weights[6] = {0.0f, 2.0f, 3.0f, 4.0f, 1.0f, 0.0f};
    assert_memory_equal(got.weights, weights, sizeof(weights));
    oracle_received_free(&got);
    s.ranks[0].active = 0;
    oracle_rank_major(&s.shape, s.ranks, 1, &got);
    assert_int_equal(got.counts[0], 0);
    assert_int_equal(got.slots[0], -9);
    assert_int_equal(oracle_dropped(&s.shape, s.ranks, 1), 0);
    s.ranks[0].active = 1;
    s.ranks[1].active = 0;
    assert_int_equal(oracle_dropped(&s.shape, s.ranks, 0), 3);
    oracle_received_free(&got);
}

static void small_flat(void **state)
{
    (void)state;
    struct small s;
    struct oracle_received got;
    small_make(&s);
    s.shape.max_tokens = 3;
    oracle_flat(&s.shape, s.ranks, 1, &got);
    const float *hidden = (const float *)(void *)got.hidden;
    assert_true(got.counts[0] == 2 && got.counts[1] == 1);
    assert_true(got.ranges[0] == 2 && got.ranges[1] == (INT64_C(2) << 32) + 1);
    assert_true(hidden[0] == 1.0f && hidden[4] == 2.0f && hidden[8] == 11.0f);
    assert_int_equal(got.hidden[3 * 16], ORACLE_CANARY);
    const int32_t slots[12] = {-1, 0, 1, 0, 0, -1, -9, -9, -9, -9, -9, -9};
    assert_memory_equal(got.slots, slots, sizeof(slots));
    const int32_t source[6] = {0, 0, 0, 1, 1, 0};
    assert_memory_equal(got.source, source, sizeof(source));
    oracle_received_free(&got);
    s.ranks[0].active = 0;
    oracle_flat(&s.shape, s.ranks, 1, &got);
    assert_true(got.counts[0] == 0 && got.counts[1] == 1);
    assert_true(got.source[0] == 1 && got.source[1] == 0 && got.slots[2] == -9);
    oracle_received_free(&got);
}

/* Rows of rank 1 are worth 1, 2 and 3: two of rank 0's tokens, then the one of rank 1. Rank 0 holds one row, worth 10. */
static void small_flat_combine(void **state)
{
    (void)state;
    struct small s;
    small_make(&s);
    float results[2][4 * 4] = {{10, 10, 10, 10}, {1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3}}, out[2][4];
    unsigned char *all[2] = {(unsigned char *)results[0], (unsigned char *)results[1]};
    oracle_combine_flat(&s.shape, s.ranks, all, 0, out);
    assert_true(out[0][0] == 11.0f && out[1][0] == 2.0f);
    oracle_combine_flat(&s.shape, s.ranks, all, 1, out);
    assert_true(out[0][0] == 3.0f);
}

static void small_loads(void **state)
{
    (void)state;
    struct small s;
    int32_t loads[8];
    small_make(&s);
    oracle_loads(&s.shape, s.ranks, loads);
    const int32_t want[8] = {0, 1, 2, 1, 0, 0, 1, 0};
    assert_memory_equal(loads, want, sizeof(want));
}

/* Expert rows are worth their global slot + 1; so token 0 of rank 0 is 1 * 2 + 2 * 3, token 1 is 3 * 4 + 4 * 3. */
static void small_combine(void **state)
{
    (void)state;
    struct small s;
    small_make(&s);
    float results[2][2 * 4 * 4], out[2][4];
    for (int rank = 0; rank < 2; rank++)
        for (int i = 0; i < 32; i++)
            results[rank][i] = (float)(rank * 2 + i / 16 + 1);
    unsigned char *all[2] = {(unsigned char *)results[0], (unsigned char *)results[1]};
    oracle_combine_exact(&s.shape, s.ranks, all, 0, out);
    assert_true(out[0][0] == 8.0f && out[0][3] == 8.0f && out[1][0] == 24.0f);
    oracle_combine_reduced(&s.shape, s.ranks, all, 0, out);
    assert_true(out[0][0] == 8.0f && out[1][3] == 24.0f);
    oracle_combine_exact(&s.shape, s.ranks, all, 1, out);
    assert_true(out[0][0] == 3.0f);
}

/* Exact adds in top-k order with a rounding after each product and each sum: 1e8 + 1 - 1e8 is 0 in fp32. */
static void exact_keeps_the_order_of_the_routes(void **state)
{
    (void)state;
    float hidden[4] = {0}, results[3 * 4] = {1e8f, 0, 0, 0, 1.0f, 0, 0, 0, -1e8f, 0, 0, 0}, out[4];
    unsigned char *all[1] = {(unsigned char *)results};
    int64_t order[3] = {0, 1, 2};
    struct oracle_rank rank = {.active = 1, .tokens = 1, .hidden = hidden, .slots = order};
    struct oracle_shape shape = {.ranks = 1, .slots = 3, .max_tokens = 1, .hidden = 4, .topk = 3, .type = ORACLE_FP32};
    oracle_combine_exact(&shape, &rank, all, 0, out);
    assert_true(out[0] == 0.0f);
    order[1] = 2;
    order[2] = 1;
    oracle_combine_exact(&shape, &rank, all, 0, out);
    assert_true(out[0] == 1.0f);
}

/* The pinned fp32 orders lie as close to the sum in double precision as their roundings allow. */
static void fp32_sums_are_near_the_real_ones(void **state)
{
    (void)state;
    struct exchange_case c = {
        .name = "near", .hidden = 16, .max_tokens = 5, .slots = 3, .topk = 6, .type = ORACLE_FP32};
    struct world *w = world_make(&c, 4, (muster_mask){{15, 0}}, 99);
    double sum[5 * 16], magnitude[5 * 16];
    float reduced[5 * 16];
    for (int rank = 0; rank < 4; rank++) {
        const float *exact = (const float *)(void *)w->combined[rank];
        oracle_combine_real(&w->shape, w->in, w->results, rank, sum, magnitude);
        oracle_combine_reduced(&w->shape, w->in, w->results, rank, reduced);
        for (int i = 0; i < 5 * 16; i++) {
            double bound = magnitude[i] * 7 * (double)FLT_EPSILON;
            assert_true(fabs((double)exact[i] - sum[i]) <= bound);
            assert_true(fabs((double)reduced[i] - sum[i]) <= bound);
        }
    }
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_codes_and_values_are_each_others),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(bf16_agrees_with_the_rule_on_bits),
        cmocka_unit_test(fp16_codes_and_values_are_each_others),
        cmocka_unit_test(fp16_rounds_to_nearest_even),
        cmocka_unit_test(fp8_codes_and_values_are_each_others),
        cmocka_unit_test(fp8_rounds_to_nearest_even_and_saturates),
        cmocka_unit_test(fp8_groups_have_the_documented_scales),
        cmocka_unit_test(differ_forgives_only_nan_payloads),
        cmocka_unit_test(small_expert_major),
        cmocka_unit_test(small_rank_major),
        cmocka_unit_test(small_flat),
        cmocka_unit_test(small_flat_combine),
        cmocka_unit_test(small_loads),
        cmocka_unit_test(small_combine),
        cmocka_unit_test(exact_keeps_the_order_of_the_routes),
        cmocka_unit_test(fp32_sums_are_near_the_real_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
