// SPDX-License-Identifier: Apache-2.0
/* The inside of an engine: what its files share. */
#ifndef ENGINE_STATE_H
#define ENGINE_STATE_H

#include <stddef.h>

#include "engine.h"
#include "weights.h"

/* One layer of a sequence's cache; [kv heads][positions][head_dim] each, so that a head's rows lie end to end. */
struct cache_layer {
    float *keys, *values;
};

struct engine_sequence {
    struct engine *engine;
    int32_t length; /* positions of good steps; a step that is under way writes behind it */
    int32_t positions; /* there is room for */
    bool in_step;
    struct cache_layer *layer;
    float *memory;
};

/* One token of a step. */
struct row {
    struct engine_sequence *sequence;
    int32_t position;
    int32_t token;
};

/*
 * The rows of a step, and what is computed of them. H = hidden, T = max_tokens, K = experts per token, D = head_dim,
 * S = slots, R = ranks. Sized once, for the largest step.
 */
struct batch {
    int32_t count;
    struct row *row; /* [T] */
    float *hidden; /* [T][H] the residual stream */
    float *normed; /* [T][H] */
    float *rotation; /* [T][D]: cosines, then sines, of the row's position */
    float *query; /* [T][heads * D] */
    float *mixed; /* [T][heads * D] what attention puts together */
    float *added; /* [T][H] what attention or the experts add to the residual stream */
    float *key; /* [kv heads * D] of one row, on its way into the cache */
    float *value; /* the same */
    float *scores; /* [max positions] of one row and head */
    float *odds; /* [experts] of one row */
    float *inner; /* [2 * inner] of one row */
    int32_t *slots; /* [T][K] where the row's experts are */
    float *shares; /* [T][K] their weights */
    float *received; /* [S][R * T][H] rows for this rank's experts, then their results */
    int32_t *arrived; /* [S] how many */
};

struct engine {
    struct weights weights;
    muster_group *group;
    muster_ep *exchange; /* all layers take turns with it */
    int32_t rank, ranks, slots_per_rank, max_tokens;
    struct batch batch;
    uint32_t epoch; /* adopted; 0: none */
    bool open; /* engine_open() is done */
    int32_t *slot_to_expert; /* [ranks * slots]; every layer is placed alike */
    int32_t *expert_to_slot; /* [experts] for this rank's tokens */
    int32_t *held; /* [slots] what this rank's slots hold, in every layer; -1: nothing */
    uint64_t step_routes, step_remote_routes;
    struct engine_statistics statistics;
};

/* A [count][columns] array inside a batch. */
static inline float *batch_row(float *array, int32_t row, int32_t columns)
{
    return array + (size_t)row * (size_t)columns;
}

/* batch.c */
muster_status batch_new(const struct engine *e, struct batch *b);
void batch_free(struct batch *b);

/* attention.c: the rows' rotations, once per step; then what a layer's attention adds, into batch.added. */
void attention_rotations(struct engine *e);
void attention_layer(struct engine *e, int32_t layer);

/* experts.c: what a layer's experts add, into batch.added. Errors: those of dispatch and combine. */
muster_status experts_layer(struct engine *e, int32_t layer);
void experts_exchange_config(const struct model_config *model, int32_t slots_per_rank, int32_t max_tokens,
                             muster_ep_config *config);

#endif
