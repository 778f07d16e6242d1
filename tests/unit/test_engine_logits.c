// SPDX-License-Identifier: Apache-2.0
/* The engine's logits are those of Hugging Face transformers; the model predicts; wrong steps are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "state.h"
#include "test_engine.h"

enum { VECTOR_POSITIONS = 64, PIECE_BYTES = 16384, WINDOW = 512 };

/* ---- Against transformers: the file is described in models/make_vectors.py ---- */

struct vectors {
    int32_t tokens[VECTOR_POSITIONS];
    float logits[VECTOR_POSITIONS][VOCABULARY];
};

/* CRC-32 as zlib's. */
static uint32_t crc32_of_file(const char *path)
{
    FILE *in = fopen(path, "rb");
    expect(in != NULL, "%s cannot be read", path);
    uint32_t crc = 0xffffffff;
    for (int byte = getc(in); byte != EOF; byte = getc(in)) {
        crc ^= (uint32_t)byte;
        for (int i = 0; i < 8; i++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    fclose(in);
    return ~crc;
}

static void vectors_read(struct vectors *v)
{
    FILE *in = fopen(MUSTER_SOURCE_DIR "/tests/data/kjv_moe_logits.bin", "rb");
    char magic[8];
    uint32_t header[4];
    expect(in && fread(magic, sizeof(magic), 1, in) == 1 && fread(header, sizeof(header), 1, in) == 1, "no vectors");
    expect(memcmp(magic, "MUSTLOGI", 8) == 0 && header[0] == 1, "the vectors are in another format");
    expect(header[1] == VECTOR_POSITIONS && header[2] == VOCABULARY, "the vectors have another shape");
    expect(header[3] == crc32_of_file(MODEL_DIR "/model.safetensors"),
           "the vectors are those of other weights: run models/make_vectors.py");
    expect(fread(v->tokens, sizeof(v->tokens), 1, in) == 1 && fread(v->logits, sizeof(v->logits), 1, in) == 1,
           "the vectors are cut short");
    fclose(in);
}

static void compare_with_vectors(const struct vectors *want, float (*have)[VOCABULARY])
{
    double difference = 0, largest = 0;
    for (int p = 0; p < VECTOR_POSITIONS; p++)
        for (int v = 0; v < VOCABULARY; v++) {
            difference = fmax(difference, fabs((double)have[p][v] - (double)want->logits[p][v]));
            largest = fmax(largest, fabs((double)want->logits[p][v]));
        }
    printf("largest difference %.3g, largest logit %.4g, ratio %.3g\n", difference, largest, difference / largest);
    expect(difference < 1e-4 * largest, "the logits differ from transformers' by %g of the largest",
           difference / largest);
}

static void vectors_function(struct cluster_rank *self)
{
    static struct vectors want;
    static float have[VECTOR_POSITIONS][VOCABULARY];
    struct engine *engine = engine_start(self, EXPERTS, VECTOR_POSITIONS);
    struct engine_sequence *sequence;
    vectors_read(&want);
    memset(have, 0xff, sizeof(have));
    expect_status(engine_sequence_new(engine, 0, &sequence), MUSTER_OK, "engine_sequence_new");
    struct engine_item item = {.sequence = sequence,
                               .tokens = want.tokens,
                               .count = VECTOR_POSITIONS,
                               .want = ENGINE_LOGITS_ALL,
                               .logits = &have[0][0]};
    expect_status(engine_step(engine, &item, 1, NULL), MUSTER_OK, "engine_step");
    compare_with_vectors(&want, have);
    engine_sequence_free(sequence);
    engine_close(engine);
}

static void test_vectors(void **state)
{
    (void)state;
    struct cluster_options options = engine_cluster(1, EXPERTS, VECTOR_POSITIONS);
    assert_true(cluster_run(&options, vectors_function, NULL));
}

/* ---- Bits per byte, of a piece; `muster eval` measures the whole text ---- */

static double window_bits(struct engine *engine, struct engine_sequence *sequence, const int32_t *tokens)
{
    static float logits[WINDOW][VOCABULARY];
    struct engine_item item = {
        .sequence = sequence, .tokens = tokens, .count = WINDOW, .want = ENGINE_LOGITS_ALL, .logits = &logits[0][0]};
    double bits = 0;
    engine_sequence_cut(sequence, 0);
    expect_status(engine_step(engine, &item, 1, NULL), MUSTER_OK, "engine_step");
    for (int i = 0; i < WINDOW; i++)
        bits += engine_surprise_bits(logits[i], VOCABULARY, tokens[i + 1]);
    return bits;
}

static void bits_function(struct cluster_rank *self)
{
    static int32_t tokens[PIECE_BYTES + 1];
    struct engine *engine = engine_start(self, EXPERTS, WINDOW);
    struct engine_sequence *sequence;
    double bits = 0;
    text_read(0, PIECE_BYTES + 1, tokens);
    expect_status(engine_sequence_new(engine, WINDOW, &sequence), MUSTER_OK, "engine_sequence_new");
    for (int first = 0; first < PIECE_BYTES; first += WINDOW)
        bits += window_bits(engine, sequence, tokens + first);
    printf("%.4f bits per byte on %d bytes\n", bits / PIECE_BYTES, PIECE_BYTES);
    /* A text of letters, spaces and stops cannot be told in less than about 0.6: that would be a leak of what comes. */
    expect(bits / PIECE_BYTES < 2.2 && bits / PIECE_BYTES > 0.6, "%f bits per byte", bits / PIECE_BYTES);
    engine_sequence_free(sequence);
    engine_close(engine);
}

static void test_bits_per_byte(void **state)
{
    (void)state;
    struct cluster_options options = engine_cluster(1, EXPERTS, WINDOW);
    assert_true(cluster_run(&options, bits_function, NULL));
}

/* ---- Equal odds: the lower expert comes first ---- */

static void ties_function(struct cluster_rank *self)
{
    struct engine *engine = engine_start(self, EXPERTS, 4);
    struct engine_sequence *sequence;
    const int32_t token = 'A';
    struct engine_item item = {.count = 1, .tokens = &token};
    expect_status(engine_sequence_new(engine, 4, &sequence), MUSTER_OK, "engine_sequence_new");
    item.sequence = sequence;
    float *router = engine->weights.layer[LAYERS - 1].router;
    size_t row = (size_t)engine->weights.model.hidden_size;
    memset(router, 0, EXPERTS * row * sizeof(*router));
    /* Two experts whose odds are above the others' and equal to each other: 9 and 20, in one of two signs. */
    for (int sign = 0; sign < 2; sign++) {
        for (int i = 0; i < 2; i++)
            router[(i ? 20 : 9) * row] = sign ? -1.0f : 1.0f;
        engine_sequence_cut(sequence, 0);
        expect_status(engine_step(engine, &item, 1, NULL), MUSTER_OK, "engine_step");
        const int32_t *slots = engine->batch.slots, *home = engine->expert_to_slot;
        bool above = slots[0] == home[9];
        expect(above ? slots[1] == home[20] && slots[2] == home[0] && slots[3] == home[1]
                     : slots[0] == home[0] && slots[1] == home[1] && slots[2] == home[2] && slots[3] == home[3],
               "the experts are in slots %d %d %d %d", slots[0], slots[1], slots[2], slots[3]);
        *(int *)self->context += above;
    }
    engine_sequence_free(sequence);
    engine_close(engine);
}

static void test_ties(void **state)
{
    (void)state;
    int above = 0;
    struct cluster_options options = engine_cluster(1, EXPERTS, 4);
    assert_true(cluster_run(&options, ties_function, &above));
    assert_int_equal(above, 1);
}

/* ---- Steps that are refused run nothing and change nothing ---- */

static void refused(struct engine *engine, const struct engine_item *items, int32_t count, const char *says)
{
    muster_verdict verdict = {.step = 4711};
    expect_status(engine_step(engine, items, count, &verdict), MUSTER_ERR_ARGUMENT, says);
    expect(strstr(muster_last_error(), says) != NULL, "\"%s\" does not say \"%s\"", muster_last_error(), says);
    expect(verdict.step == 4711, "a step was run");
}

static void arguments_function(struct cluster_rank *self)
{
    static float logits[VOCABULARY];
    const int32_t good[8] = {65, 66, 67, 68, 69, 70, 71, 72}, high[2] = {65, 256}, low[1] = {-1};
    struct engine *engine = engine_start(self, EXPERTS, 8);
    struct engine_sequence *s = NULL, *other;
    struct engine_statistics statistics;
    expect_status(engine_sequence_new(engine, 1025, &s), MUSTER_ERR_ARGUMENT, "too long a sequence");
    expect_status(engine_sequence_new(engine, -1, &s), MUSTER_ERR_ARGUMENT, "a negative sequence");
    expect(s == NULL, "a sequence was made");
    expect_status(engine_sequence_new(engine, 6, &s), MUSTER_OK, "engine_sequence_new");
    expect_status(engine_sequence_new(engine, 0, &other), MUSTER_OK, "engine_sequence_new");
    expect(engine_sequence_room(other) == 1024, "room for %d", engine_sequence_room(other));

    struct engine_item item[2] = {{s, good, 2, ENGINE_LOGITS_LAST, logits}, {s, good, 2, ENGINE_LOGITS_NONE, NULL}};
    refused(engine, item, 2, "items[1].sequence: is in the step a second time");
    refused(engine, item, -1, "count = -1");
    refused(engine, NULL, 1, "items not NULL");
    item[1] = (struct engine_item){other, high, 2, ENGINE_LOGITS_NONE, NULL};
    refused(engine, item, 2, "items[1].tokens[1] = 256, must be 0 to 255");
    item[1].tokens = low;
    item[1].count = 1;
    refused(engine, item, 2, "items[1].tokens[0] = -1");
    item[1] = (struct engine_item){other, good, 7, ENGINE_LOGITS_NONE, NULL};
    refused(engine, item, 2, "9 tokens, must be at most 8 (max_tokens)");
    item[1].count = 0;
    refused(engine, item, 2, "count = 0, must be at least 1");
    item[1].sequence = NULL;
    refused(engine, item, 2, "items[1].sequence: must be a sequence of this engine");
    item[0].count = 7;
    refused(engine, item, 1, "the sequence has room for 6 more positions");
    item[0].count = 2;
    item[0].want = (enum engine_logits)3;
    refused(engine, item, 1, "items[0].want = 3");
    item[0].want = ENGINE_LOGITS_ALL;
    item[0].logits = NULL;
    refused(engine, item, 1, "items[0].logits: must not be NULL");

    engine_statistics(engine, &statistics);
    expect(statistics.steps == 0 && statistics.void_steps == 0, "steps were counted");
    expect(engine_sequence_length(s) == 0 && engine_sequence_length(other) == 0, "a sequence has grown");
    item[0] = (struct engine_item){s, good, 6, ENGINE_LOGITS_LAST, logits};
    expect_status(engine_step(engine, item, 1, NULL), MUSTER_OK, "engine_step");
    expect(engine_sequence_length(s) == 6 && engine_sequence_room(s) == 0, "length %d", engine_sequence_length(s));
    engine_sequence_free(other);
    engine_sequence_free(s);
    engine_close(engine);
}

static void test_arguments(void **state)
{
    (void)state;
    struct cluster_options options = engine_cluster(1, EXPERTS, 8);
    assert_true(cluster_run(&options, arguments_function, NULL));
}

static void open_function(struct cluster_rank *self)
{
    struct engine *engine = NULL;
    struct engine_config config = {.model_dir = "/nowhere",
                                   .group = self->group,
                                   .slots_per_rank = EXPERTS,
                                   .max_tokens = 8};
    expect_status(engine_open(NULL, &engine), MUSTER_ERR_ARGUMENT, "engine_open without a config");
    expect_status(engine_open(&config, NULL), MUSTER_ERR_ARGUMENT, "engine_open without an engine");
    expect_status(engine_open(&config, &engine), MUSTER_ERR_ARGUMENT, "engine_open of nowhere");
    expect(strstr(muster_last_error(), "/nowhere/config.json") != NULL, "error \"%s\"", muster_last_error());
    config.model_dir = MODEL_DIR;
    config.slots_per_rank = 33;
    expect_status(engine_open(&config, &engine), MUSTER_ERR_ARGUMENT, "engine_open with 33 slots");
    config.slots_per_rank = 31;
    expect_status(engine_open(&config, &engine), MUSTER_ERR_CAPACITY, "engine_open with 31 slots");
    config.slots_per_rank = EXPERTS;
    config.max_tokens = 8000;
    expect_status(engine_open(&config, &engine), MUSTER_ERR_MEMORY, "engine_open beyond memory_bytes");
    config.max_tokens = 0;
    expect_status(engine_open(&config, &engine), MUSTER_ERR_ARGUMENT, "engine_open with 0 tokens");
    config.group = NULL;
    expect_status(engine_open(&config, &engine), MUSTER_ERR_ARGUMENT, "engine_open without a group");
    expect(engine == NULL, "an engine was made");
}

static void test_open_errors(void **state)
{
    (void)state;
    struct cluster_options options = engine_cluster(1, EXPERTS, 8);
    assert_true(cluster_run(&options, open_function, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),   cmocka_unit_test(test_bits_per_byte), cmocka_unit_test(test_ties),
        cmocka_unit_test(test_arguments), cmocka_unit_test(test_open_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
