// SPDX-License-Identifier: Apache-2.0
/* Creation: configurations that are wrong, that differ between ranks, or that need more memory than there is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mask.h"
#include "kernels/kernels.h"
#include "lib/rounds.h"

static const struct exchange_case base = {.name = "base",
                                          .hidden = 16,
                                          .max_tokens = 4,
                                          .slots = 2,
                                          .topk = 2,
                                          .payloads = 1,
                                          .payload = {{3, {MUSTER_TYPE_INT, 32, 1}}}};

/* A field that is set to something else. Fields of configurations are 32-bit numbers, but for a few. */
struct change {
    const char *field; /* as the message must name it */
    size_t offset;
    int32_t value;
    const char *limit; /* that the message must say */
};

#define AT(field) offsetof(muster_ep_config, field)
#define DTYPE(code, bits, lanes) ((code) | (bits) << 8 | (lanes) << 16) /* as its four bytes lie */

static const struct change wrong[] = {
    {"size", AT(size), sizeof(muster_ep_config) - 4, ""},
    {"hidden", AT(hidden), 0, ""},
    {"hidden", AT(hidden), 9, "16"},
    {"dtype", AT(dtype), DTYPE(MUSTER_TYPE_INT, 32, 1), "MUSTER_BF16, MUSTER_FP16 or MUSTER_FP32"},
    {"dtype", AT(dtype), DTYPE(MUSTER_TYPE_INT, 16, 1), "FP16"},
    {"dtype", AT(dtype), DTYPE(MUSTER_TYPE_FLOAT, 64, 1), "FP16"},
    {"dtype", AT(dtype), DTYPE(MUSTER_TYPE_FLOAT, 16, 2), "FP16"},
    {"dtype", AT(dtype), DTYPE(MUSTER_TYPE_BFLOAT, 16, 2), "FP16"},
    {"dtype", AT(dtype), DTYPE(MUSTER_TYPE_BFLOAT, 32, 1), "FP16"},
    {"max_tokens", AT(max_tokens), 0, "65536"},
    {"max_tokens", AT(max_tokens), 65537, "65536"},
    {"slots_per_rank", AT(slots_per_rank), 0, "1"},
    {"topk", AT(topk), 0, "32"},
    {"topk", AT(topk), 33, "32"},
    {"layout", AT(layout), 3, "2"},
    {"layout", AT(layout), -1, "0"},
    {"combine", AT(combine), 2, ""},
    {"combine", AT(layout), MUSTER_EP_RANK_MAJOR, "MUSTER_EP_EXPERT_MAJOR"}, /* with exact */
    {"combine", AT(layout), MUSTER_EP_FLAT, "MUSTER_EP_EXPERT_MAJOR"}, /* likewise */
    {"quantise", AT(quantise), 3, ""},
    {"quantise_return", AT(quantise_return), 3, "2"},
    {"quantise_return", AT(quantise_return), -1, "0"},
    {"payload_count", AT(payload_count), 8, "7"},
    {"payload_count", AT(payload_count), -1, "7"},
    {"payload[0]", AT(payload[0].elements), 0, "1"},
    {"payload[0]", AT(payload[0].dtype), DTYPE(MUSTER_TYPE_INT, 4, 1), ""},
    {"payload[0]", AT(payload[0].dtype), DTYPE(MUSTER_TYPE_INT, 128, 1), ""},
    {"payload[0]", AT(payload[0].dtype), DTYPE(MUSTER_TYPE_INT, 32, 4), ""},
};

static void change_apply(muster_ep_config *config, const struct change *change)
{
    memcpy((char *)config + change->offset, &change->value, sizeof(change->value));
}

#define COUNT(table) ((int)(sizeof(table) / sizeof((table)[0])))

static void wrong_configurations_need_no_group(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT(wrong); i++) {
        muster_ep_config config = case_config(&base);
        uint64_t bytes = 77;
        change_apply(&config, &wrong[i]);
        assert_int_equal(muster_ep_memory_bytes(&config, 4, &bytes), MUSTER_ERR_ARGUMENT);
        assert_non_null(strstr(muster_last_error(), wrong[i].field));
        assert_non_null(strstr(muster_last_error(), wrong[i].limit));
        assert_int_equal(bytes, 77);
    }
    muster_ep_config config = case_config(&base);
    uint64_t bytes = 77;
    assert_int_equal(muster_ep_memory_bytes(&config, 0, &bytes), MUSTER_ERR_ARGUMENT);
    assert_non_null(strstr(muster_last_error(), "ranks"));
    assert_int_equal(muster_ep_memory_bytes(&config, 129, &bytes), MUSTER_ERR_ARGUMENT);
    assert_non_null(strstr(muster_last_error(), "128"));
    assert_int_equal(bytes, 77);
    assert_int_equal(muster_ep_memory_bytes(&config, 4, NULL), MUSTER_ERR_ARGUMENT);
    assert_int_equal(muster_ep_memory_bytes(NULL, 4, &bytes), MUSTER_ERR_ARGUMENT);
}

/* Each number is allowed by itself; what they take together is more than a rank can have. */
static void enormous_exchanges_are_refused(void **state)
{
    (void)state;
    uint64_t bytes = 77;
    muster_ep_config config = MUSTER_EP_CONFIG_INIT;
    config.hidden = INT32_MAX - 7;
    config.dtype = MUSTER_FP32;
    config.max_tokens = 65536;
    config.slots_per_rank = INT32_MAX / MUSTER_MAX_RANKS;
    config.topk = MUSTER_EP_MAX_TOPK;
    config.layout = MUSTER_EP_RANK_MAJOR;
    config.combine = MUSTER_EP_REDUCED;
    config.load_stats = 1;
    config.payload_count = MUSTER_EP_MAX_PAYLOADS;
    for (int i = 0; i < MUSTER_EP_MAX_PAYLOADS; i++)
        config.payload[i] = (muster_ep_payload){"wide", INT32_MAX, {MUSTER_TYPE_INT, 64, 1}};
    assert_int_equal(muster_ep_memory_bytes(&config, MUSTER_MAX_RANKS, &bytes), MUSTER_ERR_ARGUMENT);
    assert_non_null(strstr(muster_last_error(), "hidden"));
    assert_non_null(strstr(muster_last_error(), "1152921504606846976")); /* 2^60 */
    assert_int_equal(bytes, 77);
    config.payload_count = 0;
    assert_int_equal(muster_ep_memory_bytes(&config, MUSTER_MAX_RANKS, &bytes), MUSTER_OK);
    assert_true(bytes > UINT64_C(3) << 55 && bytes <= UINT64_C(1) << 60);
}

/* Rows of fp16 need as much memory as rows of bf16, and half of what those of fp32 do. */
static void all_types_are_taken(void **state)
{
    (void)state;
    uint64_t bytes[ORACLE_FP32 + 1];
    for (enum oracle_type type = ORACLE_BF16; type <= ORACLE_FP32; type++) {
        muster_ep_config config = case_config(&base);
        config.hidden = 4096;
        config.dtype = case_dtype(type);
        assert_int_equal(muster_ep_memory_bytes(&config, 4, &bytes[type]), MUSTER_OK);
    }
    assert_true(bytes[ORACLE_FP16] == bytes[ORACLE_BF16]);
    assert_true(bytes[ORACLE_FP32] > bytes[ORACLE_FP16] + bytes[ORACLE_FP16] / 2);
}

/* Rows that go home as fp8 take a byte for each value and four for each group; in rank-major there is one area of them. */
static void quantised_returns_need_less_memory(void **state)
{
    (void)state;
    enum { HIDDEN = 4096, RANKS = 4, ROW = HIDDEN * 2, CODES = HIDDEN + HIDDEN / 128 * 4 };
    const uint64_t rows = RANKS * 4, routes = 4 * 2;
    /* Of 16 bytes, and only for results that come home as they are: for a row two a route, and 8 bytes or a payload's 4 each. */
    const uint64_t row_words = (2 * 2 + ROW / 8 + 3) * 16, result_words = ROW / 8 * 16;
    const struct {
        muster_ep_layout layout;
        muster_ep_combine_mode combine;
        uint64_t before, after;
    } all[] = {
        {MUSTER_EP_EXPERT_MAJOR, MUSTER_EP_EXACT, routes * (ROW + result_words) + rows * row_words, routes * CODES},
        {MUSTER_EP_EXPERT_MAJOR, MUSTER_EP_REDUCED, rows * (ROW + result_words + row_words), rows * CODES},
        {MUSTER_EP_RANK_MAJOR, MUSTER_EP_REDUCED, 2 * rows * ROW, rows * CODES},
    };
    for (int i = 0; i < COUNT(all); i++) {
        uint64_t plain, quantised;
        muster_ep_config config = case_config(&base);
        config.hidden = HIDDEN;
        config.layout = all[i].layout;
        config.combine = all[i].combine;
        assert_int_equal(muster_ep_memory_bytes(&config, RANKS, &plain), MUSTER_OK);
        config.quantise_return = MUSTER_EP_QUANTISE_FP8;
        assert_int_equal(muster_ep_memory_bytes(&config, RANKS, &quantised), MUSTER_OK);
        assert_int_equal(plain - quantised, all[i].before - all[i].after);
    }
}

/* A refused creation leaves the handle alone, is local, and the next creation works. */
static void refuse_wrong(struct cluster_rank *self)
{
    muster_ep *const untouched = (muster_ep *)(void *)self;
    for (int i = 0; i < COUNT(wrong); i++) {
        muster_ep_config config = case_config(&base);
        muster_ep *ep = untouched;
        change_apply(&config, &wrong[i]);
        muster_status status = muster_ep_create(self->group, &config, &ep);
        expect(status == MUSTER_ERR_ARGUMENT && ep == untouched && strstr(muster_last_error(), wrong[i].field),
               "wrong %s gave %s: \"%s\"", wrong[i].field, muster_status_name(status), muster_last_error());
    }
    muster_ep *ep = rounds_create(self, &base);
    rounds_exchange(self, ep, self->context);
    muster_ep_destroy(ep);
}

static void wrong_configurations_are_refused_locally(void **state)
{
    (void)state;
    struct world *world = world_make(&base, 2, mask_first(2), 1);
    struct cluster_options options = {.ranks = 2, .memory_bytes = rounds_memory_bytes(&base, 1, 2)};
    assert_true(cluster_run(&options, refuse_wrong, world));
    world_free(world);
}

/* ---- differences between ranks ---- */

/* Which field, what one rank has there, and the two values that the message must show. */
static const struct {
    struct change change;
    const char *usual, *other;
} differences[] = {
    {{"hidden", AT(hidden), 32, ""}, "16", "32"},
    {{"dtype", AT(dtype), DTYPE(MUSTER_TYPE_FLOAT, 32, 1), ""}, "", ""},
    {{"dtype", AT(dtype), DTYPE(MUSTER_TYPE_FLOAT, 16, 1), ""}, "", ""},
    {{"max_tokens", AT(max_tokens), 5, ""}, "4", "5"},
    {{"slots_per_rank", AT(slots_per_rank), 3, ""}, "2", "3"},
    {{"topk", AT(topk), 1, ""}, "2", "1"},
    {{"layout", AT(layout), MUSTER_EP_RANK_MAJOR, ""}, "", ""},
    {{"layout", AT(layout), MUSTER_EP_FLAT, ""}, "0", "2"},
    {{"combine", AT(combine), MUSTER_EP_EXACT, ""}, "", ""},
    {{"quantise", AT(quantise), MUSTER_EP_QUANTISE_FP8, ""}, "", ""},
    {{"quantise_return", AT(quantise_return), MUSTER_EP_QUANTISE_FP8_POW2, ""}, "0", "2"},
    {{"masked", AT(masked), 1, ""}, "0", "1"},
    {{"load_stats", AT(load_stats), 1, ""}, "0", "1"},
    {{"payload_count", AT(payload_count), 0, ""}, "1", "0"},
    {{"payload", AT(payload[0].elements), 4, ""}, "3", "4"},
    {{"payload", AT(payload[0].dtype), DTYPE(MUSTER_TYPE_FLOAT, 32, 1), ""}, "", ""},
};

static void expect_mismatch(muster_status status, const char *field, const char *usual, const char *other)
{
    const char *said = muster_last_error();
    expect(status == MUSTER_ERR_MISMATCH, "a different %s gave %s: \"%s\"", field, muster_status_name(status), said);
    expect(strstr(said, field) && strstr(said, usual) && strstr(said, other),
           "a different %s: the error lacks \"%s\", \"%s\" or \"%s\": \"%s\"", field, field, usual, other, said);
    for (int rank = 0; rank < 3; rank++) {
        char number[4];
        snprintf(number, sizeof(number), "%d", rank);
        expect(strstr(said, number), "a different %s: the error does not name rank %d: \"%s\"", field, rank, said);
    }
}

static void differ_in_name(struct cluster_rank *self)
{
    muster_ep_config config = case_config(&base);
    muster_ep *ep = NULL;
    if (self->rank == 2)
        config.payload[0].name = "other";
    muster_status status = muster_ep_create(self->group, &config, &ep);
    expect_mismatch(status, "payload", "extra", "other");
}

/* All ranks learn of it, not only the one that differs, and afterwards equal configurations work. */
static void differ_in_turn(struct cluster_rank *self)
{
    for (int i = 0; i < COUNT(differences); i++) {
        muster_ep_config config = case_config(&base);
        muster_ep *ep = NULL;
        const char *field = differences[i].change.field;
        cluster_at(field);
        config.combine = MUSTER_EP_REDUCED; /* goes with every layout */
        if (self->rank == i % 3)
            change_apply(&config, &differences[i].change);
        muster_status status = muster_ep_create(self->group, &config, &ep);
        expect_mismatch(status, field, differences[i].usual, differences[i].other);
        expect(!ep, "a handle came with the error");
    }
    differ_in_name(self);
    muster_ep *ep = rounds_create(self, &base);
    rounds_exchange(self, ep, self->context);
    muster_ep_destroy(ep);
}

static void different_configurations_are_named(void **state)
{
    (void)state;
    struct world *world = world_make(&base, 3, mask_first(3), 1);
    /* Room for all attempts: what a refused creation took need not come back. */
    struct cluster_options options = {.ranks = 3, .memory_bytes = 20 * rounds_memory_bytes(&base, 1, 3)};
    assert_true(cluster_run(&options, differ_in_turn, world));
    world_free(world);
}

struct group_difference {
    const char *field, *usual, *other;
};

static void differ_group(struct cluster_rank *self)
{
    const struct group_difference *difference = self->context;
    muster_group_config config = cluster_config(self);
    if (self->rank == 1 && strcmp(difference->field, "min_ranks") == 0)
        config.min_ranks = 2;
    if (self->rank == 1 && strcmp(difference->field, "memory_bytes") == 0)
        config.memory_bytes = 131072;
    expect_mismatch(cluster_join(self, &config), difference->field, difference->usual, difference->other);
    expect(!self->group, "a handle came with the error");
}

static void different_groups_are_named(void **state)
{
    (void)state;
    static const struct group_difference all[] = {{"min_ranks", "1", "2"}, {"memory_bytes", "65536", "131072"}};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        struct cluster_options options = {.ranks = 3, .memory_bytes = 65536, .no_groups = 1};
        assert_true(cluster_run(&options, differ_group, (void *)(uintptr_t)&all[i]));
    }
}

/* ---- memory ---- */

static void run_out_of_memory(struct cluster_rank *self)
{
    uint64_t bytes = rounds_memory_bytes(&base, 1, 2);
    char number[32];
    muster_ep *first = rounds_create(self, &base), *second = NULL;
    muster_ep_config config = case_config(&base);
    muster_status status = muster_ep_create(self->group, &config, &second);
    expect(status == MUSTER_ERR_MEMORY && !second, "a second exchange gave %s", muster_status_name(status));
    /* Half of the second one's bytes are there, the other half is missing. */
    snprintf(number, sizeof(number), "%llu", (unsigned long long)(bytes - bytes / 2));
    expect(strstr(muster_last_error(), number), "the error does not name the %s missing bytes: \"%s\"", number,
           muster_last_error());
    rounds_exchange(self, first, self->context);
    muster_ep_destroy(first);
}

static void too_little_memory(void **state)
{
    (void)state;
    struct world *world = world_make(&base, 2, mask_first(2), 1);
    uint64_t bytes = rounds_memory_bytes(&base, 1, 2);
    struct cluster_options options = {.ranks = 2, .memory_bytes = bytes + bytes / 2};
    assert_true(cluster_run(&options, run_out_of_memory, world));
    world_free(world);
}

/* ---- what muster_group_create refuses by itself ---- */

static void refuse_group(struct cluster_rank *self, muster_group_config config, const char *field)
{
    muster_group *const untouched = (muster_group *)(void *)self;
    self->group = untouched;
    muster_status status = cluster_join(self, &config);
    bool same = self->group == untouched;
    self->group = NULL;
    bool refused = status == MUSTER_ERR_ARGUMENT || (status == MUSTER_ERR_UNSUPPORTED && config.backend);
    expect(refused && same && strstr(muster_last_error(), field), "wrong %s gave %s: \"%s\"", field,
           muster_status_name(status), muster_last_error());
    cluster_part(self);
}

static void refuse_groups(struct cluster_rank *self)
{
    muster_group_config config = cluster_config(self);
    config.size = 8;
    refuse_group(self, config, "MUSTER_GROUP_CONFIG_INIT");
    config = cluster_config(self);
    config.rank = 1;
    refuse_group(self, config, "rank");
    config = cluster_config(self);
    config.ranks = MUSTER_MAX_RANKS + 1;
    refuse_group(self, config, "ranks");
    config = cluster_config(self);
    config.min_ranks = 2;
    refuse_group(self, config, "min_ranks");
    config = cluster_config(self);
    config.backend = (muster_backend)9;
    refuse_group(self, config, "backend");
    const uint64_t enormous[] = {UINT64_MAX, UINT64_MAX - 4096, UINT64_MAX - sizeof(struct region_header) + 1,
                                 (UINT64_C(1) << 60) + 1};
    for (int i = 0; i < COUNT(enormous); i++) {
        config = cluster_config(self);
        config.memory_bytes = enormous[i];
        refuse_group(self, config, "memory_bytes");
    }
    expect_status(muster_group_create(NULL, &self->group), MUSTER_ERR_ARGUMENT, "config NULL");
    config = cluster_config(self);
    expect_status(muster_group_create(&config, NULL), MUSTER_ERR_ARGUMENT, "group NULL");
    config.store = "nonsense";
    expect_status(muster_group_create(&config, &self->group), MUSTER_ERR_ARGUMENT, "store nonsense");
    expect(strstr(muster_last_error(), "store"), "the error does not name the store: \"%s\"", muster_last_error());
    config = cluster_config(self);
    expect_status(cluster_join(self, &config), MUSTER_OK, "the right configuration");
}

static void wrong_group_configurations(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = 1, .memory_bytes = 65536, .no_groups = 1};
    assert_true(cluster_run(&options, refuse_groups, NULL));
}

/* A rank that never comes is named when the time to start is up. */
static void wait_in_vain(struct cluster_rank *self)
{
    muster_group_config config = cluster_config(self);
    config.start_timeout_us = 300000;
    if (self->rank == 2)
        return;
    muster_status status = cluster_join(self, &config);
    expect(status == MUSTER_ERR_TIMEOUT && strstr(muster_last_error(), "2"), "a missing rank gave %s: \"%s\"",
           muster_status_name(status), muster_last_error());
}

static void missing_rank_is_named(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = 3, .memory_bytes = 65536, .no_groups = 1};
    assert_true(cluster_run(&options, wait_in_vain, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_configurations_need_no_group),
        cmocka_unit_test(enormous_exchanges_are_refused),
        cmocka_unit_test(all_types_are_taken),
        cmocka_unit_test(quantised_returns_need_less_memory),
        cmocka_unit_test(wrong_configurations_are_refused_locally),
        cmocka_unit_test(different_configurations_are_named),
        cmocka_unit_test(different_groups_are_named),
        cmocka_unit_test(too_little_memory),
        cmocka_unit_test(wrong_group_configurations),
        cmocka_unit_test(missing_rank_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
