// SPDX-License-Identifier: Apache-2.0
#include "ep/shape.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "core/size.h"

enum { MAX_TOKENS = 65536, ROW_ALIGNMENT = 16 };

static bool dtype_is(muster_dtype a, muster_dtype b)
{
    return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

/* False: hidden states and results cannot be of that type. */
static bool type_of(muster_dtype dtype, enum exchange_type *type)
{
    const muster_dtype dtypes[] = {
        [EXCHANGE_BF16] = MUSTER_BF16,
        [EXCHANGE_FP16] = MUSTER_FP16,
        [EXCHANGE_FP32] = MUSTER_FP32,
    };
    for (int i = EXCHANGE_BF16; i <= EXCHANGE_FP32; i++)
        if (dtype_is(dtype, dtypes[i])) {
            *type = (enum exchange_type)i;
            return true;
        }
    return false;
}

static muster_status check_range(const char *field, int64_t value, int64_t least, int64_t most)
{
    if (value >= least && value <= most)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_ARGUMENT, "config: %s = %lld, must be %lld to %lld", field, (long long)value,
                     (long long)least, (long long)most);
}

static muster_status check_hidden(const muster_ep_config *c)
{
    enum exchange_type type;
    if (!type_of(c->dtype, &type))
        return error_set(MUSTER_ERR_ARGUMENT,
                         "config: dtype = {%d, %d, %d}, must be MUSTER_BF16, MUSTER_FP16 or MUSTER_FP32", c->dtype.code,
                         c->dtype.bits, c->dtype.lanes);
    int64_t bytes = (int64_t)c->hidden * (c->dtype.bits / 8);
    if (c->hidden < 1 || bytes % 16)
        return error_set(MUSTER_ERR_ARGUMENT,
                         "config: hidden = %d makes rows of %lld bytes, must be a positive multiple "
                         "of 16 bytes",
                         c->hidden, (long long)bytes);
    return MUSTER_OK;
}

static muster_status check_payload(const muster_ep_payload *payload, int32_t i)
{
    int bits = payload->dtype.bits;
    if (payload->dtype.lanes != 1 || (bits != 8 && bits != 16 && bits != 32 && bits != 64))
        return error_set(MUSTER_ERR_ARGUMENT,
                         "config: payload[%d].dtype has %d lanes of %d bits, must have one of 8, 16, "
                         "32 or 64",
                         i, payload->dtype.lanes, bits);
    if (payload->elements < 1)
        return error_set(MUSTER_ERR_ARGUMENT, "config: payload[%d].elements = %d, must be at least 1", i,
                         payload->elements);
    return MUSTER_OK;
}

static muster_status check_numbers(const muster_ep_config *c, int32_t ranks)
{
    const struct {
        const char *field;
        int64_t value, least, most;
    } rule[] = {
        {"ranks", ranks, 1, MUSTER_MAX_RANKS},
        {"max_tokens", c->max_tokens, 1, MAX_TOKENS},
        {"slots_per_rank", c->slots_per_rank, 1, INT32_MAX / MUSTER_MAX_RANKS},
        {"topk", c->topk, 1, MUSTER_EP_MAX_TOPK},
        {"layout", (int64_t)c->layout, MUSTER_EP_EXPERT_MAJOR, MUSTER_EP_FLAT},
        {"combine", (int64_t)c->combine, MUSTER_EP_EXACT, MUSTER_EP_REDUCED},
        {"quantise", (int64_t)c->quantise, MUSTER_EP_QUANTISE_NONE, MUSTER_EP_QUANTISE_FP8_POW2},
        {"quantise_return", (int64_t)c->quantise_return, MUSTER_EP_QUANTISE_NONE, MUSTER_EP_QUANTISE_FP8_POW2},
        {"masked", c->masked, 0, 1},
        {"load_stats", c->load_stats, 0, 1},
        {"payload_count", c->payload_count, 0, MUSTER_EP_MAX_PAYLOADS},
    };
    for (size_t i = 0; i < sizeof(rule) / sizeof(rule[0]); i++) {
        muster_status status = check_range(rule[i].field, rule[i].value, rule[i].least, rule[i].most);
        if (status != MUSTER_OK)
            return status;
    }
    return MUSTER_OK;
}

/* No field is too large by itself, but together they may be. */
static muster_status check_total(const muster_ep_config *c, int32_t ranks)
{
    struct exchange_shape shape;
    shape_make(c, ranks, 0, &shape);
    if (shape.end <= SIZE_MOST_BYTES)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_ARGUMENT,
                     "config: rows of hidden = %d and %d payloads, max_tokens = %d of each of %d ranks, take more than "
                     "the %llu bytes of symmetric memory that a rank may have",
                     c->hidden, c->payload_count, c->max_tokens, ranks, (unsigned long long)SIZE_MOST_BYTES);
}

muster_status shape_check(const muster_ep_config *config, int32_t ranks)
{
    if (!config)
        return error_set(MUSTER_ERR_ARGUMENT, "config: must not be NULL");
    if (config->size != sizeof(*config))
        return error_set(MUSTER_ERR_ARGUMENT, "config: size = %zu, must be %zu; start from MUSTER_EP_CONFIG_INIT",
                         config->size, sizeof(*config));
    muster_status status = check_numbers(config, ranks);
    if (status == MUSTER_OK)
        status = check_hidden(config);
    for (int32_t i = 0; status == MUSTER_OK && i < config->payload_count; i++)
        status = check_payload(&config->payload[i], i);
    if (status == MUSTER_OK && config->layout != MUSTER_EP_EXPERT_MAJOR && config->combine == MUSTER_EP_EXACT)
        status = error_set(MUSTER_ERR_ARGUMENT, "config: combine = MUSTER_EP_EXACT needs layout = "
                                                "MUSTER_EP_EXPERT_MAJOR: rank-major and flat rows are sums already");
    return status == MUSTER_OK ? check_total(config, ranks) : status;
}

/* Whether a caller may write results where they lie in the region, so that nothing else may be stored there. */
static bool keeps_results(const struct exchange_shape *shape)
{
    return !shape->expert_major && !shape->quantise_return;
}

/* Takes `bytes`; everything begins on a cache line, so that no line has two writers. */
static uint64_t take(uint64_t *next, uint64_t bytes)
{
    uint64_t offset = *next;
    *next = size_add(*next, size_round_up(bytes, REGION_ALIGNMENT));
    return offset;
}

uint64_t shape_rows(const struct exchange_shape *shape)
{
    return (uint64_t)shape->ranks * (uint64_t)shape->tokens;
}

static void add_array(struct exchange_shape *shape, uint64_t *next, size_t row_bytes)
{
    shape->array[shape->arrays++] =
        (struct exchange_array){.offset = take(next, size_times(shape_rows(shape), row_bytes)), .row_bytes = row_bytes};
}

static size_t scale_bytes(int32_t hidden)
{
    return ((size_t)hidden + MUSTER_EP_FP8_GROUP - 1) / MUSTER_EP_FP8_GROUP * sizeof(float);
}

static void make_arrays(const muster_ep_config *config, struct exchange_shape *shape, uint64_t *next)
{
    size_t hidden = (size_t)config->hidden;
    add_array(shape, next, config->quantise ? hidden : shape->result_bytes);
    if (config->quantise)
        add_array(shape, next, scale_bytes(config->hidden));
    for (int32_t i = 0; i < config->payload_count; i++)
        add_array(shape, next, (size_t)config->payload[i].elements * (config->payload[i].dtype.bits / 8u));
}

/* Codes and scales each begin on 16 bytes, so that a row can be moved that many at a time. */
static void make_return(struct exchange_shape *shape)
{
    shape->return_bytes = shape->result_bytes;
    if (!shape->quantise_return)
        return;
    shape->return_scales = size_round_up((uint64_t)shape->hidden, ROW_ALIGNMENT);
    shape->return_bytes = shape->return_scales + size_round_up(scale_bytes(shape->hidden), ROW_ALIGNMENT);
}

static int32_t told_words(const struct exchange_shape *shape)
{
    int32_t counts = shape->expert_major ? shape->slots : shape->flat ? shape->ranks : 0;
    return EXCHANGE_TOLD_COUNTS + counts / 2 + counts % 2;
}

/* The widest that the rows of an array divide into, up to 8 bytes. */
static int32_t word_bytes(size_t row_bytes)
{
    size_t widest = row_bytes & (~row_bytes + 1);
    return (int32_t)(widest < 8 ? widest : 8);
}

/*
 * Rows in words (see kernels/cuda/words.cuh): expert-major only, since other layouts are used where they arrive. None if
 * the hidden states do not divide into 16 bytes, words would carry less than 4 bytes, or rows are too long.
 */
static void make_words(struct exchange_shape *shape)
{
    size_t next = 2 * (size_t)shape->topk, bytes = shape->result_bytes;
    bool can = shape->expert_major && !shape->quantise_return && shape->array[0].row_bytes % ROW_ALIGNMENT == 0;
    for (int a = 0; a < shape->arrays; a++) {
        struct exchange_array *array = &shape->array[a];
        array->word_bytes = word_bytes(array->row_bytes);
        array->first_word = (int32_t)next;
        can = can && array->word_bytes >= 4;
        next += array->row_bytes / (size_t)array->word_bytes;
        bytes += array->row_bytes;
    }
    if (!can || bytes > EXCHANGE_WORD_BYTES)
        return;
    shape->word_row_words = (int32_t)next;
    shape->word_tokens = shape->tokens < EXCHANGE_WORD_TOKENS ? shape->tokens : EXCHANGE_WORD_TOKENS;
}

static uint64_t words_area_of_rows(const struct exchange_shape *shape)
{
    return (uint64_t)shape->ranks * (uint64_t)shape->word_tokens * (uint64_t)shape->word_row_words *
           sizeof(struct exchange_word);
}

static uint64_t words_area_of_results(const struct exchange_shape *shape)
{
    uint64_t rows = (uint64_t)shape->word_tokens * (uint64_t)(shape->exact ? shape->topk : shape->ranks);
    return rows * shape->result_bytes / 8 * sizeof(struct exchange_word);
}

/*
 * Fields are held to limits that keep products of counts far inside 64 bits; rows may be so long that theirs are not.
 *
 * Nothing here depends on how many tokens a step has: a slow rank of one step and a fast one of the next agree.
 */
static void make_offsets(const muster_ep_config *config, uint64_t begin, struct exchange_shape *shape)
{
    uint64_t next = begin, ranks = (uint64_t)shape->ranks, rows = shape_rows(shape);
    uint64_t routes = (uint64_t)shape->tokens * (uint64_t)shape->topk;
    shape->begin = begin;
    shape->dispatch_line = take(&next, ranks * sizeof(struct exchange_line));
    shape->combine_line = take(&next, ranks * sizeof(struct exchange_line));
    shape->loads = take(&next, shape->load_stats ? ranks * ranks * (uint64_t)shape->slots * sizeof(int32_t) : 0);
    shape->row_token = take(&next, rows * sizeof(int32_t));
    shape->row_slot = take(&next, ranks * routes * sizeof(int32_t));
    shape->row_weight = take(&next, ranks * routes * sizeof(float));
    make_arrays(config, shape, &next);
    make_words(shape);
    shape->results = take(&next, shape->exact ? 0 : size_times(rows, shape->return_bytes));
    shape->home = take(&next, shape->exact ? size_times(routes, shape->return_bytes) : 0);
    shape->told = take(&next, ranks * (uint64_t)shape->told_words * sizeof(struct exchange_word));
    shape->word_rows = take(&next, words_area_of_rows(shape));
    shape->word_results = take(&next, words_area_of_results(shape));
    shape->row_index = take(&next, ranks * routes * sizeof(int32_t));
    shape->row_flag = take(&next, rows * sizeof(uint64_t));
    shape->arrived = keeps_results(shape) ? take(&next, size_times(rows, shape->return_bytes)) : shape->results;
    shape->arrived_flag = take(&next, rows * sizeof(uint64_t));
    shape->state = take(&next, EXCHANGE_STATE_BYTES);
    shape->counted = take(&next, EXCHANGE_COUNTERS * (1 + ranks + ranks * (uint64_t)shape->slots) * sizeof(int32_t));
    shape->rows_from = take(&next, ranks * sizeof(int32_t));
    shape->words_from = take(&next, ranks * sizeof(int32_t));
    shape->rows_before = take(&next, ranks * sizeof(int32_t));
    shape->token_ranks = take(&next, (uint64_t)shape->tokens * 2 * sizeof(uint64_t));
    shape->token_slots = take(&next, routes * sizeof(int32_t));
    shape->token_weights = take(&next, routes * sizeof(float));
    shape->end = next;
}

void shape_make(const muster_ep_config *config, int32_t ranks, uint64_t begin, struct exchange_shape *shape)
{
    *shape = (struct exchange_shape){
        .ranks = ranks,
        .slots = config->slots_per_rank,
        .tokens = config->max_tokens,
        .topk = config->topk,
        .hidden = config->hidden,
        .expert_major = config->layout == MUSTER_EP_EXPERT_MAJOR,
        .flat = config->layout == MUSTER_EP_FLAT,
        .exact = config->combine == MUSTER_EP_EXACT,
        .masked = config->masked != 0,
        .load_stats = config->load_stats != 0,
        .quantise = config->quantise,
        .quantise_return = config->quantise_return,
        .result_bytes = (size_t)config->hidden * (config->dtype.bits / 8u),
    };
    type_of(config->dtype, &shape->type);
    shape->told_words = told_words(shape);
    make_return(shape);
    make_offsets(config, begin, shape);
}

int shape_payload(const struct exchange_shape *shape, int payload)
{
    return payload + (shape->quantise ? 2 : 1);
}

/* ------------------------------------------------------------------------------------------------------- comparison */

struct text {
    char *at;
    size_t left;
};

__attribute__((format(printf, 2, 3))) static void text_add(struct text *text, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int length = vsnprintf(text->at, text->left, format, list);
    va_end(list);
    size_t used = length < 0 ? 0 : (size_t)length;
    used = used < text->left ? used : text->left - 1;
    text->at += used;
    text->left -= used;
}

/* Names are for people: what would break a line of the comparison becomes '?'. */
static void text_add_name(struct text *text, const char *name)
{
    for (int i = 0; name && name[i] && i < SHAPE_NAME_BYTES; i++)
        text_add(text, "%c", name[i] > ' ' && name[i] < 127 && name[i] != '=' ? name[i] : '?');
}

static void text_add_payload(struct text *text, const muster_ep_payload *payload, int32_t i)
{
    text_add(text, "payload%d.name=", i);
    text_add_name(text, payload->name);
    text_add(text, "\npayload%d.elements=%d\npayload%d.dtype=%d/%d\n", i, payload->elements, i, payload->dtype.code,
             payload->dtype.bits);
}

void shape_fields(const muster_ep_config *config, char out[SHAPE_FIELDS_BYTES])
{
    struct text text = {out, SHAPE_FIELDS_BYTES};
    text_add(&text, "hidden=%d\ndtype=%d/%d\nmax_tokens=%d\nslots_per_rank=%d\ntopk=%d\nlayout=%d\ncombine=%d\n",
             config->hidden, config->dtype.code, config->dtype.bits, config->max_tokens, config->slots_per_rank,
             config->topk, (int)config->layout, (int)config->combine);
    text_add(&text, "quantise=%d\nquantise_return=%d\nmasked=%d\nload_stats=%d\npayload_count=%d\n",
             (int)config->quantise, (int)config->quantise_return, config->masked, config->load_stats,
             config->payload_count);
    for (int32_t i = 0; i < config->payload_count; i++)
        text_add_payload(&text, &config->payload[i], i);
}
