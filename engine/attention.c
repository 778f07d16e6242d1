// SPDX-License-Identifier: Apache-2.0
/*
 * Attention with rotary positions, normed queries and keys, and shared key/value heads. A row is computed from its own
 * hidden state and the cache up to its position, position by position: so it is the same bits in any chunking.
 */
#include <math.h>
#include <string.h>

#include "linear.h"
#include "state.h"

/* ---- Rotation by position ---- */

static void row_rotation(const struct model_config *m, int32_t position, float *rotation)
{
    int32_t half = m->head_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        float frequency = 1.0f / powf(m->rope_theta, (float)(2 * i) / (float)m->head_dim);
        float angle = (float)position * frequency;
        rotation[i] = cosf(angle);
        rotation[half + i] = sinf(angle);
    }
}

void attention_rotations(struct engine *e)
{
    const struct model_config *m = &e->weights.model;
    struct batch *b = &e->batch;
    for (int32_t i = 0; i < b->count; i++)
        row_rotation(m, b->row[i].position, batch_row(b->rotation, i, m->head_dim));
}

/* Pairs are (i, i + half): the layout's "rotate half". */
static void rotate_head(const float *rotation, int32_t half, float *head)
{
    const float *cosine = rotation, *sine = rotation + half;
    for (int32_t i = 0; i < half; i++) {
        float low = head[i], high = head[half + i];
        head[i] = low * cosine[i] - high * sine[i];
        head[half + i] = high * cosine[i] + low * sine[i];
    }
}

static void norm_and_rotate(const struct model_config *m, const float *weight, const float *rotation, int32_t heads,
                            float *rows)
{
    for (int32_t h = 0; h < heads; h++) {
        float *head = batch_row(rows, h, m->head_dim);
        linear_rms_norm(weight, head, m->head_dim, m->rms_norm_eps, head);
        rotate_head(rotation, m->head_dim / 2, head);
    }
}

/* ---- Queries of this step, keys and values into the cache ---- */

static float *cache_at(const struct model_config *m, const struct engine_sequence *s, float *array, int32_t head,
                       int32_t position)
{
    return array + ((size_t)head * (size_t)s->positions + (size_t)position) * (size_t)m->head_dim;
}

static void cache_store(const struct model_config *m, const struct row *row, int32_t layer, const float *key,
                        const float *value)
{
    const struct cache_layer *cache = &row->sequence->layer[layer];
    size_t bytes = (size_t)m->head_dim * sizeof(float);
    for (int32_t h = 0; h < m->num_key_value_heads; h++) {
        size_t from = (size_t)h * (size_t)m->head_dim;
        memcpy(cache_at(m, row->sequence, cache->keys, h, row->position), key + from, bytes);
        memcpy(cache_at(m, row->sequence, cache->values, h, row->position), value + from, bytes);
    }
}

static void project_row(struct engine *e, int32_t layer, int32_t i)
{
    const struct model_config *m = &e->weights.model;
    const struct weights_layer *w = &e->weights.layer[layer];
    struct batch *b = &e->batch;
    int32_t queries = m->num_attention_heads * m->head_dim, keys = m->num_key_value_heads * m->head_dim;
    const float *x = batch_row(b->normed, i, m->hidden_size), *rotation = batch_row(b->rotation, i, m->head_dim);
    float *query = batch_row(b->query, i, queries);
    linear_apply(w->query, queries, m->hidden_size, x, query);
    linear_apply(w->key, keys, m->hidden_size, x, b->key);
    linear_apply(w->value, keys, m->hidden_size, x, b->value);
    norm_and_rotate(m, w->query_norm, rotation, m->num_attention_heads, query);
    norm_and_rotate(m, w->key_norm, rotation, m->num_key_value_heads, b->key);
    cache_store(m, &b->row[i], layer, b->key, b->value);
}

/* ---- Mixing ---- */

/* One head of one row: softmax over the positions up to its own, in their order. */
static void mix_head(const struct model_config *m, const float *query, const float *keys, const float *values,
                     int32_t positions, float *scores, float *mixed)
{
    float scale = 1.0f / sqrtf((float)m->head_dim);
    linear_apply(keys, positions, m->head_dim, query, scores);
    for (int32_t p = 0; p < positions; p++)
        scores[p] *= scale;
    float sum = linear_exp_sum(scores, positions);
    for (int32_t p = 0; p < positions; p++)
        scores[p] /= sum;
    linear_mix(scores, values, positions, m->head_dim, mixed);
}

static void mix_row(struct engine *e, int32_t layer, int32_t i)
{
    const struct model_config *m = &e->weights.model;
    struct batch *b = &e->batch;
    const struct row *row = &b->row[i];
    const struct cache_layer *cache = &row->sequence->layer[layer];
    int32_t shared = m->num_attention_heads / m->num_key_value_heads, width = m->num_attention_heads * m->head_dim;
    for (int32_t h = 0; h < m->num_attention_heads; h++) {
        size_t at = (size_t)i * (size_t)width + (size_t)h * (size_t)m->head_dim;
        mix_head(m, b->query + at, cache_at(m, row->sequence, cache->keys, h / shared, 0),
                 cache_at(m, row->sequence, cache->values, h / shared, 0), row->position + 1, b->scores, b->mixed + at);
    }
}

void attention_layer(struct engine *e, int32_t layer)
{
    const struct model_config *m = &e->weights.model;
    const struct weights_layer *w = &e->weights.layer[layer];
    struct batch *b = &e->batch;
    int32_t hidden = m->hidden_size, width = m->num_attention_heads * m->head_dim;
    for (int32_t i = 0; i < b->count; i++) {
        linear_rms_norm(w->input_norm, batch_row(b->hidden, i, hidden), hidden, m->rms_norm_eps,
                        batch_row(b->normed, i, hidden));
        project_row(e, layer, i);
    }
    for (int32_t i = 0; i < b->count; i++) {
        mix_row(e, layer, i);
        linear_apply(w->output, hidden, width, batch_row(b->mixed, i, width), batch_row(b->added, i, hidden));
    }
}
