// SPDX-License-Identifier: Apache-2.0
/* Dispatch and combine against the oracle: every shape, layout, type and routing, byte for byte, canaries included. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/rounds.h"

#define EXPERT_MAJOR .layout = MUSTER_EP_EXPERT_MAJOR
#define RANK_MAJOR .layout = MUSTER_EP_RANK_MAJOR, .combine = MUSTER_EP_REDUCED
#define FLAT .layout = MUSTER_EP_FLAT, .combine = MUSTER_EP_REDUCED
#define REDUCED .combine = MUSTER_EP_REDUCED
#define UNEVEN .tokens = TOKENS_UNEVEN
#define FP16 .type = ORACLE_FP16
#define FP32 .type = ORACLE_FP32
#define FP8 .quantise = MUSTER_EP_QUANTISE_FP8
#define POW2 .quantise = MUSTER_EP_QUANTISE_FP8_POW2
#define RETURN_FP8 .quantise_return = MUSTER_EP_QUANTISE_FP8
#define RETURN_POW2 .quantise_return = MUSTER_EP_QUANTISE_FP8_POW2
#define WILD .values = VALUES_WILD
#define EVERY .values = VALUES_EVERY

static const struct exchange_case plain_cases[] = {
    {.name = "bf16 of 16 bytes", .hidden = 8, .max_tokens = 3, .slots = 1, .topk = 1},
    {.name = "fp32 of 16 bytes", .hidden = 4, .max_tokens = 3, .slots = 2, .topk = 2, FP32, .ids64 = 1},
    {.name = "fp16 of 16 bytes", .hidden = 8, .max_tokens = 3, .slots = 2, .topk = 2, FP16},
    {.name = "fp16 exact", .hidden = 88, .max_tokens = 6, .slots = 3, .topk = 4, FP16, UNEVEN, .pad = 1, .ids64 = 1},
    {.name = "fp16 reduced", .hidden = 136, .max_tokens = 5, .slots = 4, .topk = 8, FP16, REDUCED, UNEVEN},
    {.name = "fp16 rank-major", .hidden = 40, .max_tokens = 6, .slots = 3, .topk = 5, FP16, RANK_MAJOR, UNEVEN},
    {.name = "fp16 rank-major in place",
     .hidden = 24,
     .max_tokens = 4,
     .slots = 2,
     .topk = 3,
     FP16,
     RANK_MAJOR,
     .in_place = 1},
    {.name = "uneven", .hidden = 24, .max_tokens = 9, .slots = 3, .topk = 4, UNEVEN, .pad = 1},
    {.name = "reduced", .hidden = 64, .max_tokens = 7, .slots = 4, .topk = 8, REDUCED, UNEVEN},
    {.name = "reduced fp32", .hidden = 20, .max_tokens = 5, .slots = 5, .topk = 3, REDUCED, FP32, .ids64 = 1},
    {.name = "rank-major", .hidden = 32, .max_tokens = 6, .slots = 3, .topk = 5, RANK_MAJOR, UNEVEN},
    {.name = "rank-major fp32 padded",
     .hidden = 12,
     .max_tokens = 4,
     .slots = 2,
     .topk = 2,
     RANK_MAJOR,
     FP32,
     .pad = 1,
     UNEVEN},
    {.name = "rank-major in place",
     .hidden = 40,
     .max_tokens = 5,
     .slots = 2,
     .topk = 4,
     RANK_MAJOR,
     UNEVEN,
     .in_place = 1},
    {.name = "flat", .hidden = 32, .max_tokens = 6, .slots = 3, .topk = 5, FLAT, UNEVEN},
    {.name = "flat fp16", .hidden = 40, .max_tokens = 6, .slots = 3, .topk = 5, FP16, FLAT, UNEVEN, .ids64 = 1},
    {.name = "flat fp32 padded", .hidden = 12, .max_tokens = 4, .slots = 2, .topk = 2, FLAT, FP32, .pad = 1, UNEVEN},
    {.name = "flat full", .hidden = 16, .max_tokens = 4, .slots = 2, .topk = 6, FLAT, .no_weights = 1, .pad = 1},
    {.name = "top-32", .hidden = 16, .max_tokens = 3, .slots = 33, .topk = 32},
    {.name = "top-32 reduced", .hidden = 16, .max_tokens = 3, .slots = 9, .topk = 32, REDUCED},
    {.name = "2880", .hidden = 2880, .max_tokens = 2, .slots = 2, .topk = 4, UNEVEN},
    {.name = "no weights", .hidden = 16, .max_tokens = 4, .slots = 2, .topk = 3, .no_weights = 1},
    {.name = "rank-major no weights",
     .hidden = 16,
     .max_tokens = 4,
     .slots = 2,
     .topk = 3,
     RANK_MAJOR,
     .no_weights = 1},
};

static const struct exchange_case routing_cases[] = {
    {.name = "most have no tokens", .hidden = 16, .max_tokens = 6, .slots = 2, .topk = 2, .tokens = TOKENS_MOSTLY_NONE},
    {.name = "nobody has tokens",
     .hidden = 16,
     .max_tokens = 6,
     .slots = 2,
     .topk = 2,
     .tokens = TOKENS_NONE,
     .pad = 1},
    {.name = "nobody has tokens, rank-major",
     .hidden = 16,
     .max_tokens = 6,
     .slots = 2,
     .topk = 2,
     RANK_MAJOR,
     .tokens = TOKENS_NONE},
    {.name = "nobody has tokens, flat",
     .hidden = 16,
     .max_tokens = 6,
     .slots = 2,
     .topk = 2,
     FLAT,
     .tokens = TOKENS_NONE,
     .pad = 1},
    {.name = "most have no tokens, flat",
     .hidden = 16,
     .max_tokens = 6,
     .slots = 2,
     .topk = 2,
     FLAT,
     .tokens = TOKENS_MOSTLY_NONE,
     .pad = 1},
    {.name = "no routes", .hidden = 16, .max_tokens = 5, .slots = 2, .topk = 3, .routes = ROUTES_NONE, .load_stats = 1},
    {.name = "no routes, reduced",
     .hidden = 16,
     .max_tokens = 5,
     .slots = 2,
     .topk = 3,
     .routes = ROUTES_NONE,
     REDUCED},
    {.name = "local routes", .hidden = 16, .max_tokens = 5, .slots = 4, .topk = 3, .routes = ROUTES_LOCAL, UNEVEN},
    {.name = "local routes, flat", .hidden = 16, .max_tokens = 5, .slots = 4, .topk = 3, .routes = ROUTES_LOCAL, FLAT},
    {.name = "one hot slot",
     .hidden = 16,
     .max_tokens = 8,
     .slots = 3,
     .topk = 2,
     .routes = ROUTES_HOTSPOT,
     UNEVEN,
     .load_stats = 1},
    {.name = "one hot slot, rank-major",
     .hidden = 16,
     .max_tokens = 8,
     .slots = 3,
     .topk = 2,
     RANK_MAJOR,
     .routes = ROUTES_HOTSPOT,
     .load_stats = 1,
     .in_place = 1},
    {.name = "one hot slot, flat",
     .hidden = 16,
     .max_tokens = 8,
     .slots = 3,
     .topk = 2,
     FLAT,
     UNEVEN,
     .routes = ROUTES_HOTSPOT,
     .load_stats = 1},
    {.name = "loads", .hidden = 8, .max_tokens = 6, .slots = 3, .topk = 4, UNEVEN, .load_stats = 1},
};

static const struct exchange_case quantised_cases[] = {
    {.name = "fp8 of one whole group", .hidden = 128, .max_tokens = 4, .slots = 2, .topk = 2, FP8},
    {.name = "fp8 with a short group", .hidden = 272, .max_tokens = 3, .slots = 2, .topk = 2, FP8, WILD, UNEVEN},
    {.name = "fp8 shorter than a group", .hidden = 8, .max_tokens = 3, .slots = 2, .topk = 2, FP8, WILD},
    {.name = "pow2 with a short group", .hidden = 136, .max_tokens = 3, .slots = 2, .topk = 2, POW2, WILD, REDUCED},
    {.name = "fp8 from fp32", .hidden = 260, .max_tokens = 3, .slots = 2, .topk = 2, FP8, WILD, FP32},
    {.name = "pow2 from fp32, rank-major",
     .hidden = 132,
     .max_tokens = 3,
     .slots = 2,
     .topk = 2,
     POW2,
     WILD,
     FP32,
     RANK_MAJOR,
     UNEVEN},
    {.name = "fp8 from fp16", .hidden = 272, .max_tokens = 3, .slots = 2, .topk = 2, FP8, WILD, FP16, UNEVEN},
    {.name = "fp8 from fp16, reduced", .hidden = 8, .max_tokens = 3, .slots = 2, .topk = 2, FP8, WILD, FP16, REDUCED},
    {.name = "pow2 from fp16, rank-major",
     .hidden = 136,
     .max_tokens = 3,
     .slots = 2,
     .topk = 2,
     POW2,
     WILD,
     FP16,
     RANK_MAJOR},
    {.name = "fp8 rank-major in place",
     .hidden = 144,
     .max_tokens = 3,
     .slots = 2,
     .topk = 2,
     FP8,
     RANK_MAJOR,
     .in_place = 1},
    {.name = "fp8 flat", .hidden = 272, .max_tokens = 4, .slots = 2, .topk = 2, FP8, WILD, FLAT, UNEVEN, .pad = 1},
    {.name = "pow2 from fp32, flat", .hidden = 132, .max_tokens = 4, .slots = 2, .topk = 2, POW2, FP32, FLAT, UNEVEN},
    {.name = "wild bf16", .hidden = 64, .max_tokens = 4, .slots = 2, .topk = 3, WILD},
    {.name = "wild fp16", .hidden = 64, .max_tokens = 4, .slots = 2, .topk = 3, WILD, FP16},
    {.name = "wild fp16 reduced", .hidden = 72, .max_tokens = 4, .slots = 2, .topk = 3, WILD, FP16, REDUCED},
    {.name = "wild fp16 rank-major", .hidden = 64, .max_tokens = 4, .slots = 2, .topk = 3, WILD, FP16, RANK_MAJOR},
    {.name = "wild fp32", .hidden = 64, .max_tokens = 4, .slots = 2, .topk = 3, WILD, FP32},
    {.name = "wild bf16 reduced", .hidden = 64, .max_tokens = 4, .slots = 2, .topk = 3, WILD, REDUCED},
    {.name = "wild fp32 rank-major", .hidden = 64, .max_tokens = 4, .slots = 2, .topk = 3, WILD, FP32, RANK_MAJOR},
    {.name = "wild fp16 flat", .hidden = 64, .max_tokens = 4, .slots = 2, .topk = 3, WILD, FP16, FLAT, UNEVEN},
};

/* Rows go home as fp8: every mode, layout and type, with and without fp8 on the way out. */
static const struct exchange_case returned_cases[] = {
    {.name = "fp8 home, exact", .hidden = 128, .max_tokens = 4, .slots = 2, .topk = 3, RETURN_FP8},
    {.name = "fp8 home, exact, short group", .hidden = 272, .max_tokens = 3, .slots = 3, .topk = 4, RETURN_FP8, UNEVEN},
    {.name = "fp8 home, less than a group", .hidden = 8, .max_tokens = 3, .slots = 2, .topk = 2, RETURN_FP8, WILD},
    {.name = "fp8 home, reduced", .hidden = 256, .max_tokens = 5, .slots = 4, .topk = 8, RETURN_FP8, REDUCED, UNEVEN},
    {.name = "pow2 home, reduced, wild",
     .hidden = 136,
     .max_tokens = 4,
     .slots = 4,
     .topk = 6,
     RETURN_POW2,
     REDUCED,
     WILD},
    {.name = "fp8 home, rank-major",
     .hidden = 272,
     .max_tokens = 5,
     .slots = 3,
     .topk = 5,
     RETURN_FP8,
     RANK_MAJOR,
     UNEVEN},
    {.name = "pow2 home, rank-major, wild",
     .hidden = 144,
     .max_tokens = 4,
     .slots = 2,
     .topk = 3,
     RETURN_POW2,
     RANK_MAJOR,
     WILD},
    {.name = "fp8 home, fp16 exact, wild",
     .hidden = 152,
     .max_tokens = 4,
     .slots = 2,
     .topk = 3,
     RETURN_FP8,
     FP16,
     WILD},
    {.name = "fp8 home, fp16 reduced",
     .hidden = 264,
     .max_tokens = 4,
     .slots = 3,
     .topk = 5,
     RETURN_FP8,
     FP16,
     REDUCED,
     WILD},
    {.name = "pow2 home, fp16 rank-major",
     .hidden = 40,
     .max_tokens = 4,
     .slots = 3,
     .topk = 5,
     RETURN_POW2,
     FP16,
     RANK_MAJOR,
     UNEVEN},
    {.name = "pow2 home, fp32 exact, wild",
     .hidden = 132,
     .max_tokens = 4,
     .slots = 2,
     .topk = 3,
     RETURN_POW2,
     FP32,
     WILD},
    {.name = "fp8 home, fp32 reduced, wild",
     .hidden = 260,
     .max_tokens = 4,
     .slots = 3,
     .topk = 5,
     RETURN_FP8,
     FP32,
     REDUCED,
     WILD,
     UNEVEN},
    {.name = "fp8 home, fp32 rank-major",
     .hidden = 4,
     .max_tokens = 4,
     .slots = 3,
     .topk = 5,
     RETURN_FP8,
     FP32,
     RANK_MAJOR,
     WILD},
    {.name = "fp8 both ways, exact", .hidden = 136, .max_tokens = 4, .slots = 2, .topk = 3, RETURN_POW2, FP8, UNEVEN},
    {.name = "fp8 both ways, reduced", .hidden = 272, .max_tokens = 4, .slots = 3, .topk = 4, RETURN_FP8, FP8, REDUCED},
    {.name = "fp8 both ways, rank-major",
     .hidden = 272,
     .max_tokens = 4,
     .slots = 3,
     .topk = 4,
     RETURN_FP8,
     POW2,
     RANK_MAJOR},
    {.name = "fp8 home, halves, exact",
     .hidden = 136,
     .max_tokens = 4,
     .slots = 2,
     .topk = 3,
     RETURN_FP8,
     UNEVEN,
     .halves = 1},
    {.name = "fp8 home, halves, reduced, strided",
     .hidden = 136,
     .max_tokens = 4,
     .slots = 3,
     .topk = 4,
     RETURN_FP8,
     REDUCED,
     .halves = 1,
     .strided = 1},
    {.name = "fp8 home, halves, rank-major, strided",
     .hidden = 136,
     .max_tokens = 4,
     .slots = 3,
     .topk = 4,
     RETURN_FP8,
     RANK_MAJOR,
     .halves = 1,
     .strided = 1},
    {.name = "fp8 home, exact, strided fp32",
     .hidden = 132,
     .max_tokens = 4,
     .slots = 2,
     .topk = 3,
     RETURN_FP8,
     FP32,
     .strided = 1},
    {.name = "fp8 home, no routes",
     .hidden = 136,
     .max_tokens = 4,
     .slots = 2,
     .topk = 3,
     RETURN_FP8,
     REDUCED,
     .routes = ROUTES_NONE},
    {.name = "fp8 home, local routes",
     .hidden = 136,
     .max_tokens = 4,
     .slots = 4,
     .topk = 3,
     RETURN_FP8,
     .routes = ROUTES_LOCAL},
    {.name = "fp8 home, long rows", .hidden = 7168, .max_tokens = 2, .slots = 4, .topk = 8, RETURN_FP8, REDUCED},
    {.name = "fp8 home, top-32", .hidden = 264, .max_tokens = 3, .slots = 33, .topk = 32, RETURN_FP8, WILD},
};

#define SEVEN_PAYLOADS                                                                                            \
    .payloads = 7,                                                                                                \
    .payload = {{1, {MUSTER_TYPE_UINT, 8, 1}}, {3, {MUSTER_TYPE_INT, 8, 1}},    {5, {MUSTER_TYPE_BFLOAT, 16, 1}}, \
                {1, {MUSTER_TYPE_INT, 32, 1}}, {7, {MUSTER_TYPE_FLOAT, 32, 1}}, {1, {MUSTER_TYPE_INT, 64, 1}},    \
                {9, {MUSTER_TYPE_UINT, 64, 1}}}

static const struct exchange_case form_cases[] = {
    {.name = "seven payloads", .hidden = 16, .max_tokens = 5, .slots = 3, .topk = 3, UNEVEN, SEVEN_PAYLOADS},
    {.name = "seven payloads, rank-major",
     .hidden = 16,
     .max_tokens = 5,
     .slots = 3,
     .topk = 3,
     RANK_MAJOR,
     UNEVEN,
     SEVEN_PAYLOADS,
     .pad = 1},
    {.name = "seven payloads, flat",
     .hidden = 16,
     .max_tokens = 5,
     .slots = 3,
     .topk = 3,
     FLAT,
     UNEVEN,
     SEVEN_PAYLOADS,
     .pad = 1},
    {.name = "seven payloads, fp8", .hidden = 136, .max_tokens = 5, .slots = 3, .topk = 3, UNEVEN, FP8, SEVEN_PAYLOADS},
    {.name = "strided", .hidden = 24, .max_tokens = 5, .slots = 2, .topk = 3, UNEVEN, .strided = 1, SEVEN_PAYLOADS},
    {.name = "strided 64-bit ids, reduced",
     .hidden = 24,
     .max_tokens = 5,
     .slots = 2,
     .topk = 3,
     .strided = 1,
     .ids64 = 1,
     REDUCED,
     .load_stats = 1,
     .pad = 1},
    {.name = "strided fp8 rank-major",
     .hidden = 136,
     .max_tokens = 5,
     .slots = 2,
     .topk = 3,
     .strided = 1,
     FP8,
     RANK_MAJOR,
     UNEVEN},
    {.name = "strided flat", .hidden = 24, .max_tokens = 5, .slots = 2, .topk = 3, .strided = 1, FLAT, UNEVEN},
    {.name = "strided fp8 flat",
     .hidden = 136,
     .max_tokens = 5,
     .slots = 2,
     .topk = 3,
     .strided = 1,
     FP8,
     FLAT,
     UNEVEN},
    {.name = "strided fp32", .hidden = 20, .max_tokens = 5, .slots = 2, .topk = 3, .strided = 1, FP32},
    {.name = "strided fp16", .hidden = 40, .max_tokens = 5, .slots = 2, .topk = 3, .strided = 1, FP16, UNEVEN},
    {.name = "strided fp16 reduced", .hidden = 24, .max_tokens = 5, .slots = 2, .topk = 3, .strided = 1, FP16, REDUCED},
    {.name = "strided fp8 from fp16", .hidden = 152, .max_tokens = 5, .slots = 2, .topk = 3, .strided = 1, FP16, FP8},
    {.name = "halves fp16", .hidden = 24, .max_tokens = 5, .slots = 2, .topk = 3, UNEVEN, .halves = 1, FP16},
    {.name = "halves", .hidden = 24, .max_tokens = 5, .slots = 2, .topk = 3, UNEVEN, .halves = 1},
    {.name = "halves reduced, strided",
     .hidden = 24,
     .max_tokens = 5,
     .slots = 2,
     .topk = 3,
     UNEVEN,
     .halves = 1,
     REDUCED,
     .strided = 1},
    {.name = "halves rank-major",
     .hidden = 24,
     .max_tokens = 5,
     .slots = 2,
     .topk = 3,
     UNEVEN,
     .halves = 1,
     RANK_MAJOR,
     SEVEN_PAYLOADS},
    {.name = "halves rank-major in place",
     .hidden = 24,
     .max_tokens = 5,
     .slots = 2,
     .topk = 3,
     UNEVEN,
     .halves = 1,
     RANK_MAJOR,
     .in_place = 1},
    {.name = "halves flat",
     .hidden = 24,
     .max_tokens = 5,
     .slots = 2,
     .topk = 3,
     UNEVEN,
     .halves = 1,
     FLAT,
     SEVEN_PAYLOADS},
    {.name = "halves flat fp8",
     .hidden = 136,
     .max_tokens = 5,
     .slots = 2,
     .topk = 3,
     UNEVEN,
     .halves = 1,
     FLAT,
     FP8,
     .strided = 1,
     .pad = 1},
};

/* All 65536 codes of a type go through dispatch, and what experts make of them through combine. */
static const struct exchange_case every_code_cases[] = {
    {.name = "every fp16", .hidden = 8192, .max_tokens = 8, .slots = 2, .topk = 4, FP16, EVERY, .no_weights = 1},
    {.name = "every fp16 reduced", .hidden = 8192, .max_tokens = 8, .slots = 2, .topk = 4, FP16, EVERY, REDUCED},
    {.name = "every fp16 home as fp8", .hidden = 8192, .max_tokens = 8, .slots = 2, .topk = 4, FP16, EVERY, RETURN_FP8},
    {.name = "fp8 from every fp16", .hidden = 8192, .max_tokens = 8, .slots = 2, .topk = 4, FP16, EVERY, FP8},
    {.name = "every bf16", .hidden = 8192, .max_tokens = 8, .slots = 2, .topk = 4, EVERY},
};

static const struct exchange_case large_group_cases[] = {
    {.name = "exact", .hidden = 16, .max_tokens = 3, .slots = 2, .topk = 6, UNEVEN, .load_stats = 1, .pad = 1},
    {.name = "rank-major", .hidden = 8, .max_tokens = 3, .slots = 2, .topk = 8, UNEVEN, RANK_MAJOR},
    {.name = "fp8 reduced", .hidden = 16, .max_tokens = 2, .slots = 3, .topk = 32, UNEVEN, REDUCED, FP8},
    {.name = "fp8 home", .hidden = 24, .max_tokens = 2, .slots = 3, .topk = 32, UNEVEN, REDUCED, RETURN_FP8},
    {.name = "flat", .hidden = 8, .max_tokens = 3, .slots = 2, .topk = 8, UNEVEN, FLAT, .pad = 1},
};

#define COUNT(cases) ((int)(sizeof(cases) / sizeof((cases)[0])))

static void every_case(int ranks)
{
    assert_true(rounds_run(ranks, plain_cases, COUNT(plain_cases), 2, false));
    assert_true(rounds_run(ranks, routing_cases, COUNT(routing_cases), 2, false));
    assert_true(rounds_run(ranks, quantised_cases, COUNT(quantised_cases), 2, false));
    assert_true(rounds_run(ranks, returned_cases, COUNT(returned_cases), 2, false));
    assert_true(rounds_run(ranks, form_cases, COUNT(form_cases), 2, false));
}

static void one_rank(void **state)
{
    (void)state;
    every_case(1);
}

static void two_ranks(void **state)
{
    (void)state;
    every_case(2);
}

static void three_ranks(void **state)
{
    (void)state;
    every_case(3);
}

static void four_ranks(void **state)
{
    (void)state;
    every_case(4);
}

static void eight_ranks(void **state)
{
    (void)state;
    assert_true(rounds_run(8, plain_cases, COUNT(plain_cases), 2, false));
    assert_true(rounds_run(8, form_cases, COUNT(form_cases), 1, false));
}

static void thirteen_ranks(void **state)
{
    (void)state;
    assert_true(rounds_run(13, large_group_cases, COUNT(large_group_cases), 2, false));
    assert_true(rounds_run(13, routing_cases, COUNT(routing_cases), 1, false));
}

static void the_most_ranks(void **state)
{
    (void)state;
    assert_true(rounds_run(MUSTER_MAX_RANKS, large_group_cases, COUNT(large_group_cases), 2, false));
}

/* The counts change from round to round, and each time another rank comes late: rounds must not run into each other. */
static void eight_rounds_with_a_late_rank(void **state)
{
    (void)state;
    static const struct exchange_case cases[] = {
        {.name = "late, exact", .hidden = 64, .max_tokens = 17, .slots = 2, .topk = 3, UNEVEN, .load_stats = 1},
        {.name = "late, reduced", .hidden = 64, .max_tokens = 17, .slots = 2, .topk = 3, UNEVEN, REDUCED, FP8},
        {.name = "late, rank-major",
         .hidden = 64,
         .max_tokens = 17,
         .slots = 2,
         .topk = 3,
         UNEVEN,
         RANK_MAJOR,
         .in_place = 1},
        {.name = "late, fp8 home", .hidden = 264, .max_tokens = 17, .slots = 2, .topk = 3, UNEVEN, REDUCED, RETURN_FP8},
        {.name = "late, flat", .hidden = 64, .max_tokens = 17, .slots = 2, .topk = 3, UNEVEN, FLAT, .pad = 1},
        {.name = "late, halves",
         .hidden = 64,
         .max_tokens = 17,
         .slots = 2,
         .topk = 3,
         .tokens = TOKENS_MOSTLY_NONE,
         .halves = 1},
        {.name = "late, local", .hidden = 64, .max_tokens = 17, .slots = 2, .topk = 3, UNEVEN, .routes = ROUTES_LOCAL},
    };
    assert_true(rounds_run(4, cases, COUNT(cases), 8, true));
}

/* More tokens than any other case: what ids and ranges must hold. */
static void many_tokens(void **state)
{
    (void)state;
    static const struct exchange_case cases[] = {
        {.name = "many tokens", .hidden = 8, .max_tokens = 3000, .slots = 2, .topk = 2, UNEVEN},
        {.name = "many tokens, rank-major", .hidden = 8, .max_tokens = 3000, .slots = 2, .topk = 2, UNEVEN, RANK_MAJOR},
        {.name = "many tokens, flat", .hidden = 8, .max_tokens = 3000, .slots = 2, .topk = 2, UNEVEN, FLAT},
    };
    assert_true(rounds_run(2, &cases[1], 2, 1, false));
    assert_true(rounds_run(1, &cases[0], 1, 1, false));
}

static void every_code(void **state)
{
    (void)state;
    assert_true(rounds_run(2, every_code_cases, COUNT(every_code_cases), 1, false));
}

/* An argument, if there is one, chooses tests by their names, for example one_rank. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_rank),       cmocka_unit_test(two_ranks),
        cmocka_unit_test(three_ranks),    cmocka_unit_test(four_ranks),
        cmocka_unit_test(eight_ranks),    cmocka_unit_test(thirteen_ranks),
        cmocka_unit_test(the_most_ranks), cmocka_unit_test(many_tokens),
        cmocka_unit_test(every_code),     cmocka_unit_test(eight_rounds_with_a_late_rank),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
