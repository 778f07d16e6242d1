// SPDX-License-Identifier: Apache-2.0
/* Sequences: the keys and values of the positions so far. */
#include <stdlib.h>

#include "core/error.h"
#include "state.h"

static size_t layer_floats(const struct model_config *m, int32_t positions)
{
    return (size_t)m->num_key_value_heads * (size_t)positions * (size_t)m->head_dim;
}

static void place_layers(struct engine_sequence *s, const struct model_config *m)
{
    size_t floats = layer_floats(m, s->positions);
    for (int32_t i = 0; i < m->num_hidden_layers; i++) {
        s->layer[i].keys = s->memory + 2 * (size_t)i * floats;
        s->layer[i].values = s->layer[i].keys + floats;
    }
}

muster_status engine_sequence_new(struct engine *engine, int32_t positions, struct engine_sequence **sequence)
{
    const struct model_config *m = &engine->weights.model;
    if (positions < 0 || positions > m->max_position_embeddings)
        return error_set(MUSTER_ERR_ARGUMENT, "positions = %d, must be 1 to %d, or 0 for that many", positions,
                         m->max_position_embeddings);
    struct engine_sequence *s = calloc(1, sizeof(*s));
    if (!s)
        return error_set(MUSTER_ERR_MEMORY, "no memory for a sequence");
    s->engine = engine;
    s->positions = positions ? positions : m->max_position_embeddings;
    s->layer = calloc((size_t)m->num_hidden_layers, sizeof(*s->layer));
    /* Zeroed pages cost nothing until a position is used. */
    s->memory = calloc(2 * (size_t)m->num_hidden_layers, layer_floats(m, s->positions) * sizeof(float));
    if (!s->layer || !s->memory) {
        engine_sequence_free(s);
        return error_set(MUSTER_ERR_MEMORY, "no memory for a sequence of %d positions", positions);
    }
    place_layers(s, m);
    *sequence = s;
    return MUSTER_OK;
}

void engine_sequence_free(struct engine_sequence *s)
{
    if (!s)
        return;
    free(s->layer);
    free(s->memory);
    free(s);
}

int32_t engine_sequence_length(const struct engine_sequence *s)
{
    return s->length;
}

int32_t engine_sequence_room(const struct engine_sequence *s)
{
    return s->positions - s->length;
}

void engine_sequence_cut(struct engine_sequence *s, int32_t length)
{
    if (length >= 0 && length < s->length)
        s->length = length;
}
