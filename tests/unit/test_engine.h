// SPDX-License-Identifier: Apache-2.0
/* What the tests of the engine share: the model, its text, and ranks that read along in it and compare every bit. */
#ifndef UNIT_TEST_ENGINE_H
#define UNIT_TEST_ENGINE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "lib/cluster.h"
#include "lib/pace.h"

#define MODEL_DIR MUSTER_SOURCE_DIR "/models/kjv-moe"

enum { EXPERTS = 32, LAYERS = 4, VOCABULARY = 256, READY_TIMEOUT_US = PACE_PATIENCE_MS * 1000 };

/* Where ranks open the model. */
static const char *engine_model_dir = MODEL_DIR;

/* The first `count` bytes of heldout.txt from `offset` on, as tokens. */
static inline void text_read(long offset, int32_t count, int32_t *tokens)
{
    FILE *in = fopen(MODEL_DIR "/heldout.txt", "rb");
    expect(in && fseek(in, offset, SEEK_SET) == 0, "heldout.txt cannot be read");
    for (int32_t i = 0; i < count; i++) {
        int byte = getc(in);
        expect(byte != EOF, "heldout.txt ends before byte %ld", offset + i);
        tokens[i] = byte;
    }
    fclose(in);
}

static inline struct cluster_options engine_cluster(int32_t ranks, int32_t slots, int32_t max_tokens)
{
    struct cluster_options options = {.ranks = ranks, .manual_ready = 1, .limit_s = 200};
    options.operation_timeout_us = PACE_PATIENCE_MS * 1000; /* no death here is found by waiting */
    options.step_timeout_us = PACE_PATIENCE_MS * 1000;
    expect_status(engine_memory_bytes(engine_model_dir, ranks, slots, max_tokens, &options.memory_bytes), MUSTER_OK,
                  "engine_memory_bytes");
    return options;
}

static inline struct engine *engine_start(struct cluster_rank *self, int32_t slots, int32_t max_tokens)
{
    struct engine *engine = NULL;
    struct engine_config config = {.model_dir = engine_model_dir,
                                   .group = self->group,
                                   .slots_per_rank = slots,
                                   .max_tokens = max_tokens};
    expect_status(engine_open(&config, &engine), MUSTER_OK, "engine_open");
    expect_status(engine_wait_ready(engine, READY_TIMEOUT_US), MUSTER_OK, "engine_wait_ready");
    return engine;
}

/* xorshift: the tests' own dice, the same on every run. */
static inline uint32_t dice(uint32_t *state, uint32_t sides)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state % sides;
}

/* ---- A reader: a sequence that reads a text in chunks, and compares its logits with those of one prefill ---- */

enum { TEXTS = 4, TEXT_TOKENS = 80 };

struct reference {
    int32_t tokens[TEXTS][TEXT_TOKENS];
    float logits[TEXTS][TEXT_TOKENS][VOCABULARY];
};

struct reader {
    struct engine_sequence *sequence;
    int32_t text;
    enum engine_logits want;
    float logits[TEXT_TOKENS][VOCABULARY];
};

static inline int32_t reader_at(const struct reader *r)
{
    return engine_sequence_length(r->sequence);
}

static inline struct engine_item reader_item(struct reader *r, const struct reference *reference, int32_t count)
{
    memset(r->logits, 0xff, sizeof(r->logits)); /* NaN: equal to nothing */
    return (struct engine_item){.sequence = r->sequence,
                                .tokens = reference->tokens[r->text] + reader_at(r),
                                .count = count,
                                .want = r->want,
                                .logits = &r->logits[0][0]};
}

/* After a good step that read `count` tokens. */
static inline void reader_compare(const struct reader *r, const struct reference *reference, int32_t count)
{
    int32_t end = reader_at(r), rows = r->want == ENGINE_LOGITS_ALL ? count : r->want == ENGINE_LOGITS_LAST;
    for (int32_t i = 0; i < rows; i++) {
        int32_t position = end - rows + i;
        expect(memcmp(r->logits[i], reference->logits[r->text][position], sizeof(r->logits[i])) == 0,
               "text %d, position %d, read with %d others: the logits are not those of one prefill", r->text, position,
               count - 1);
    }
}

/* Fills the reference: each text by one prefill on one rank. */
static inline void reference_function(struct cluster_rank *self)
{
    struct reference *reference = self->context;
    struct engine *engine = engine_start(self, EXPERTS, TEXT_TOKENS);
    for (int32_t t = 0; t < TEXTS; t++) {
        struct engine_sequence *sequence;
        text_read(1000 + 9000 * t, TEXT_TOKENS, reference->tokens[t]);
        expect_status(engine_sequence_new(engine, TEXT_TOKENS, &sequence), MUSTER_OK, "engine_sequence_new");
        struct engine_item item = {.sequence = sequence,
                                   .tokens = reference->tokens[t],
                                   .count = TEXT_TOKENS,
                                   .want = ENGINE_LOGITS_ALL,
                                   .logits = &reference->logits[t][0][0]};
        expect_status(engine_step(engine, &item, 1, NULL), MUSTER_OK, "engine_step");
        engine_sequence_free(sequence);
    }
    engine_close(engine);
}

static inline bool reference_make(struct reference *reference)
{
    struct cluster_options options = engine_cluster(1, EXPERTS, TEXT_TOKENS);
    return cluster_run(&options, reference_function, reference);
}

#endif
