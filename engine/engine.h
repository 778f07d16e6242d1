// SPDX-License-Identifier: Apache-2.0
/*
 * The engine: a MoE language model in the Qwen3-MoE layout, served by a group of ranks. Attention is data-parallel (a
 * sequence and its key/value cache live on one rank), the experts are spread over the ranks and reached by dispatch and
 * combine. One forward pass is one step of the group, good or void as a whole.
 *
 * What a rank does:
 *
 *     struct engine_config config = {.model_dir = dir, .slots_per_rank = 11, .max_tokens = 64};
 *     muster_group_config group_config = MUSTER_GROUP_CONFIG_INIT;
 *     engine_group_config(&config, ranks, &group_config);
 *     muster_group_create(&group_config, &config.group);
 *     engine_open(&config, &engine);
 *     while (serving) {
 *         if (engine_wait_ready(engine, 100000) != MUSTER_OK)
 *             continue; // or stop, if it was not MUSTER_ERR_AGAIN
 *         if (engine_step(engine, items, count, NULL) == MUSTER_OK)
 *             use_logits();
 *     }
 *
 * The logits at a position are the same bits whether the position was reached by decoding, by prefill or by any
 * chunking, in any batch, on any number of ranks, wherever the experts are placed.
 *
 * Errors: muster_last_error() names the file, the field and the limit. One thread at a time per engine; an engine holds
 * its group, and its sequences hold the engine: free and close in that order.
 */
#ifndef ENGINE_H
#define ENGINE_H

#include <stdint.h>

#include "muster/muster.h"

struct engine;
struct engine_sequence;

struct engine_config {
    const char *model_dir; /* holds config.json and the checkpoint: docs/engine.md, Models */
    muster_group *group; /* created with manual_ready = 1 and memory_bytes of engine_memory_bytes() or more */
    int32_t slots_per_rank; /* (same) experts of a layer that a rank holds; 1..num_experts */
    int32_t max_tokens; /* (same) of one step on one rank, 1..65536 */
};

/*
 * Symmetric memory that the engine needs on each rank. Reads config.json only. Errors: ARGUMENT and UNSUPPORTED name
 * the file and the field.
 */
muster_status engine_memory_bytes(const char *model_dir, int32_t ranks, int32_t slots_per_rank, int32_t max_tokens,
                                  uint64_t *bytes);

/* num_experts of the model: how many experts a layer has. Errors: like engine_memory_bytes(). */
muster_status engine_experts(const char *model_dir, int32_t *experts);
muster_status engine_layers(const char *model_dir, int32_t *layers); /* num_hidden_layers, likewise */

/*
 * Sets what the engine wants of its group: memory_bytes, manual_ready, and a min_ranks that still holds every expert
 * (a larger one is kept). `config->group` is not looked at; everything else in *group stays as it is.
 */
muster_status engine_group_config(const struct engine_config *config, int32_t ranks, muster_group_config *group);

/*
 * Loads the model and adopts the installed view. Collective: all ranks call it with the same config; blocks until their
 * configurations were compared, at most the group's start_timeout_us. A rank that joins later calls it just so.
 * Errors: ARGUMENT, UNSUPPORTED (the model), MEMORY, CAPACITY, and those of muster_ep_create(). On failure *engine is
 * untouched.
 */
muster_status engine_open(const struct engine_config *config, struct engine **engine);

/* Frees the engine; no sequence of it may be left. Local, does not block. NULL is allowed. */
void engine_close(struct engine *engine);

int32_t engine_vocabulary(const struct engine *engine); /* logits of one position */
int32_t engine_max_positions(const struct engine *engine); /* the model's max_position_embeddings */

/*
 * Takes part in a new view: places the experts, loads those that are new in this rank's slots, and says that this rank
 * is ready. Does nothing if the installed view is adopted already. Blocks only for reading the file.
 * Errors: AGAIN: a newer view came meanwhile; call again. CAPACITY; the group's sticky error.
 */
muster_status engine_adopt(struct engine *engine);

/*
 * Adopts views as they come until the installed one is ready for steps, at most timeout_us (0: looks once).
 * Errors: AGAIN when the time is up; CAPACITY; the group's sticky error.
 */
muster_status engine_wait_ready(struct engine *engine, uint64_t timeout_us);

/* ---- sequences: tokens so far, as a key/value cache ---- */

/* Room for `positions` tokens, 1..engine_max_positions(); 0: as many as that. Errors: ARGUMENT, MEMORY. */
muster_status engine_sequence_new(struct engine *engine, int32_t positions, struct engine_sequence **sequence);
void engine_sequence_free(struct engine_sequence *sequence); /* NULL is allowed */
int32_t engine_sequence_length(const struct engine_sequence *sequence);
int32_t engine_sequence_room(const struct engine_sequence *sequence); /* positions that are left */

/* Forgets what lies at `length` and beyond; no effect on a shorter sequence. */
void engine_sequence_cut(struct engine_sequence *sequence, int32_t length);

/* ---- steps ---- */

enum engine_logits {
    ENGINE_LOGITS_NONE, /* prefill that goes on in a later step */
    ENGINE_LOGITS_LAST, /* [vocabulary]: after the last token */
    ENGINE_LOGITS_ALL, /* [count][vocabulary]: after each token */
};

/* Tokens to append to one sequence. A sequence may be in a step once. */
struct engine_item {
    struct engine_sequence *sequence;
    const int32_t *tokens;
    int32_t count; /* 1.. */
    enum engine_logits want;
    float *logits; /* not looked at with ENGINE_LOGITS_NONE */
};

/*
 * One forward pass over all items: prefill chunks and decodes of several sequences, max_tokens tokens at most in all. A
 * rank without work gives count = 0: the others need its experts. Reads the step's verdict, and hands it to the caller
 * if `verdict` is not NULL. Blocks like dispatch and combine.
 * OK: the sequences have grown and the logits are written. Anything else: the sequences are as they were, and no logits
 * were written. ARGUMENT: names the item; no step was run. VOID, TIMEOUT, PEER: the step is void; wait until the engine
 * is ready and run it again. Other errors: the group's sticky one.
 */
muster_status engine_step(struct engine *engine, const struct engine_item *items, int32_t count,
                          muster_verdict *verdict);

/* The token with the largest logit; of equals the lowest. */
int32_t engine_greedy(const float *logits, int32_t vocabulary);

/* How surprising `token` is, in bits: -log2 of its probability. */
double engine_surprise_bits(const float *logits, int32_t vocabulary, int32_t token);

/* ---- what happened ---- */

/* Counts since the engine was opened. Experts are counted per layer. */
struct engine_statistics {
    uint64_t steps; /* good ones */
    uint64_t void_steps;
    uint64_t tokens; /* of good steps */
    uint64_t routes; /* of good steps: token, layer and expert */
    uint64_t remote_routes; /* of them, to slots of other ranks */
    uint64_t experts_opened; /* loaded by engine_open() */
    uint64_t experts_loaded; /* loaded since then, because the view had changed */
    uint32_t epoch; /* adopted last */
    int32_t last_loaded; /* experts that its adoption loaded here */
    uint64_t load_begin_ns, load_end_ns; /* of it, CLOCK_MONOTONIC */
};

void engine_statistics(const struct engine *engine, struct engine_statistics *statistics);

#endif
