// SPDX-License-Identifier: Apache-2.0
/*
 * The model's weights in fp32, converted from the bf16 of a checkpoint in one file or several (weights/checkpoint.h).
 * What every rank needs is converted on opening; experts are converted into slots as placements change. The files stay
 * mapped for that.
 */
#ifndef ENGINE_WEIGHTS_H
#define ENGINE_WEIGHTS_H

#include "config.h"

struct checkpoint;

/* One layer. Matrices are [outputs][inputs], as in the file. */
struct weights_layer {
    float *input_norm; /* [hidden] */
    float *query, *key, *value; /* [heads * head_dim][hidden] */
    float *output; /* [hidden][heads * head_dim] */
    float *query_norm, *key_norm; /* [head_dim] */
    float *post_norm; /* [hidden] */
    float *router; /* [experts][hidden] */
    float *slots; /* [slots]: gate [inner][hidden], up [inner][hidden], down [hidden][inner] */
};

struct weights {
    struct model_config model;
    int32_t slots;
    struct checkpoint *checkpoint;
    float *embedding; /* [vocabulary][hidden] */
    float *norm; /* [hidden] */
    float *head; /* [vocabulary][hidden]; the embedding itself if the model ties them */
    struct weights_layer *layer;
    float *memory; /* all of the above lies here */
};

/* The three matrices of an expert. */
struct weights_expert {
    float *gate, *up, *down;
};

/*
 * Maps the checkpoint in model_dir, holds every tensor's name, type and shape against `model`, and converts all but the
 * experts. After that no load can fail. Errors: ARGUMENT names file and tensor; MEMORY.
 */
muster_status weights_open(const char *model_dir, const struct model_config *model, int32_t slots, struct weights *w);
void weights_close(struct weights *w);

/* Converts an expert of a layer into a slot. */
void weights_load_expert(struct weights *w, int32_t layer, int32_t slot, int32_t expert);

struct weights_expert weights_slot(const struct weights *w, int32_t layer, int32_t slot);

#endif
