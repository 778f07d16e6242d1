// SPDX-License-Identifier: Apache-2.0
#include "weights.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "weights/checkpoint.h"

enum { MAX_NAME = 128, MAX_ERROR = 768, LAYER_TENSORS = 9, MODEL_TENSORS = 3, EXPERT_TENSORS = 3, LINE_FLOATS = 16 };

/* A tensor that the model has: its name, where it goes in memory, its shape. */
struct tensor {
    const char *name; /* of a layer's or an expert's tensors: the part behind the prefix */
    float **place;
    uint64_t rows, columns; /* columns 0: a vector of `rows` */
};

static size_t tensor_floats(const struct tensor *t)
{
    return (size_t)(t->rows * (t->columns ? t->columns : 1));
}

/* Every tensor starts on a cache line. */
static size_t in_lines(size_t floats)
{
    return (floats + LINE_FLOATS - 1) / LINE_FLOATS * LINE_FLOATS;
}

/* ---- What there is: the one list of names and shapes ---- */

static void model_tensors(struct weights *w, struct tensor t[MODEL_TENSORS])
{
    uint64_t vocabulary = (uint64_t)w->model.vocab_size, hidden = (uint64_t)w->model.hidden_size;
    t[0] = (struct tensor){"model.embed_tokens.weight", &w->embedding, vocabulary, hidden};
    t[1] = (struct tensor){"model.norm.weight", &w->norm, hidden, 0};
    t[2] = (struct tensor){"lm_head.weight", &w->head, vocabulary, hidden};
}

/* The head comes last, so that a model that ties it to the embedding has one tensor less. */
static int model_tensor_count(const struct weights *w)
{
    return w->model.tie_word_embeddings ? MODEL_TENSORS - 1 : MODEL_TENSORS;
}

static void layer_tensors(const struct model_config *m, struct weights_layer *l, struct tensor t[LAYER_TENSORS])
{
    uint64_t hidden = (uint64_t)m->hidden_size, head = (uint64_t)m->head_dim;
    uint64_t queries = (uint64_t)m->num_attention_heads * head, keys = (uint64_t)m->num_key_value_heads * head;
    t[0] = (struct tensor){"input_layernorm.weight", &l->input_norm, hidden, 0};
    t[1] = (struct tensor){"self_attn.q_proj.weight", &l->query, queries, hidden};
    t[2] = (struct tensor){"self_attn.k_proj.weight", &l->key, keys, hidden};
    t[3] = (struct tensor){"self_attn.v_proj.weight", &l->value, keys, hidden};
    t[4] = (struct tensor){"self_attn.o_proj.weight", &l->output, hidden, queries};
    t[5] = (struct tensor){"self_attn.q_norm.weight", &l->query_norm, head, 0};
    t[6] = (struct tensor){"self_attn.k_norm.weight", &l->key_norm, head, 0};
    t[7] = (struct tensor){"post_attention_layernorm.weight", &l->post_norm, hidden, 0};
    t[8] = (struct tensor){"mlp.gate.weight", &l->router, (uint64_t)m->num_experts, hidden};
}

static void expert_tensors(const struct model_config *m, struct weights_expert *e, struct tensor t[EXPERT_TENSORS])
{
    uint64_t hidden = (uint64_t)m->hidden_size, inner = (uint64_t)m->moe_intermediate_size;
    t[0] = (struct tensor){"gate_proj.weight", &e->gate, inner, hidden};
    t[1] = (struct tensor){"up_proj.weight", &e->up, inner, hidden};
    t[2] = (struct tensor){"down_proj.weight", &e->down, hidden, inner};
}

static void layer_name(int32_t layer, const char *tail, char name[MAX_NAME])
{
    snprintf(name, MAX_NAME, "model.layers.%d.%s", layer, tail);
}

static void expert_name(int32_t layer, int32_t expert, const char *tail, char name[MAX_NAME])
{
    snprintf(name, MAX_NAME, "model.layers.%d.mlp.experts.%d.%s", layer, expert, tail);
}

/* ---- Checking the checkpoint ---- */

static muster_status check_tensor(const struct weights *w, const char *name, const struct tensor *t)
{
    char error[MAX_ERROR];
    uint64_t shape[2] = {t->rows, t->columns};
    if (checkpoint_require(w->checkpoint, name, SAFETENSORS_BF16, t->columns ? 2 : 1, shape, error, sizeof(error)))
        return MUSTER_OK;
    return error_set(MUSTER_ERR_ARGUMENT, "%s", error);
}

static muster_status check_expert(struct weights *w, int32_t layer, int32_t expert)
{
    char name[MAX_NAME];
    struct weights_expert nowhere;
    struct tensor t[EXPERT_TENSORS];
    expert_tensors(&w->model, &nowhere, t);
    muster_status status = MUSTER_OK;
    for (int i = 0; i < EXPERT_TENSORS && status == MUSTER_OK; i++) {
        expert_name(layer, expert, t[i].name, name);
        status = check_tensor(w, name, &t[i]);
    }
    return status;
}

static muster_status check_layer(struct weights *w, int32_t layer)
{
    char name[MAX_NAME];
    struct tensor t[LAYER_TENSORS];
    layer_tensors(&w->model, &w->layer[layer], t);
    muster_status status = MUSTER_OK;
    for (int i = 0; i < LAYER_TENSORS && status == MUSTER_OK; i++) {
        layer_name(layer, t[i].name, name);
        status = check_tensor(w, name, &t[i]);
    }
    for (int32_t expert = 0; expert < w->model.num_experts && status == MUSTER_OK; expert++)
        status = check_expert(w, layer, expert);
    return status;
}

/* A tensor that the model has no use for (a bias, one more layer) would mean that another model was trained. */
static muster_status check_count(const struct weights *w)
{
    const struct model_config *m = &w->model;
    size_t want = (size_t)model_tensor_count(w) +
                  (size_t)m->num_hidden_layers * (LAYER_TENSORS + EXPERT_TENSORS * (size_t)m->num_experts);
    if (m->tie_word_embeddings && checkpoint_find(w->checkpoint, "lm_head.weight"))
        want++; /* the embedding once more, as some writers have it */
    if (checkpoint_count(w->checkpoint) == want)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_ARGUMENT, "%s: holds %zu tensors, the model of config.json has %zu",
                     checkpoint_label(w->checkpoint), checkpoint_count(w->checkpoint), want);
}

static muster_status check_checkpoint(struct weights *w)
{
    struct tensor t[MODEL_TENSORS];
    model_tensors(w, t);
    muster_status status = MUSTER_OK;
    for (int i = 0; i < model_tensor_count(w) && status == MUSTER_OK; i++)
        status = check_tensor(w, t[i].name, &t[i]);
    for (int32_t layer = 0; layer < w->model.num_hidden_layers && status == MUSTER_OK; layer++)
        status = check_layer(w, layer);
    return status == MUSTER_OK ? check_count(w) : status;
}

/* ---- Memory ---- */

static size_t slot_floats(const struct model_config *m)
{
    struct weights_expert nowhere;
    struct tensor t[EXPERT_TENSORS];
    size_t floats = 0;
    expert_tensors(m, &nowhere, t);
    for (int i = 0; i < EXPERT_TENSORS; i++)
        floats += in_lines(tensor_floats(&t[i]));
    return floats;
}

/* Gives each tensor its place from `next` on; with next NULL it only counts. Returns the floats that are taken. */
static size_t take_places(const struct tensor *t, int count, float *next)
{
    size_t floats = 0;
    for (int i = 0; i < count; i++) {
        if (next)
            *t[i].place = next + floats;
        floats += in_lines(tensor_floats(&t[i]));
    }
    return floats;
}

static size_t take_layer(struct weights *w, int32_t layer, float *next)
{
    struct tensor t[LAYER_TENSORS];
    layer_tensors(&w->model, &w->layer[layer], t);
    size_t floats = take_places(t, LAYER_TENSORS, next);
    if (next)
        w->layer[layer].slots = next + floats;
    return floats + (size_t)w->slots * slot_floats(&w->model);
}

static size_t take_all(struct weights *w, float *memory)
{
    struct tensor t[MODEL_TENSORS];
    model_tensors(w, t);
    size_t floats = take_places(t, model_tensor_count(w), memory);
    if (w->model.tie_word_embeddings)
        w->head = w->embedding;
    for (int32_t layer = 0; layer < w->model.num_hidden_layers; layer++)
        floats += take_layer(w, layer, memory ? memory + floats : NULL);
    return floats;
}

static muster_status allocate(struct weights *w)
{
    size_t bytes = take_all(w, NULL) * sizeof(float);
    w->memory = aligned_alloc(LINE_FLOATS * sizeof(float), bytes);
    if (!w->memory)
        return error_set(MUSTER_ERR_MEMORY, "no memory for %zu bytes of weights", bytes);
    take_all(w, w->memory);
    return MUSTER_OK;
}

/* ---- Loading ---- */

/* bf16 is the upper half of fp32. */
static void convert(const struct safetensors_tensor *from, size_t floats, float *to)
{
    const uint16_t *half = from->data;
    for (size_t i = 0; i < floats; i++) {
        uint32_t bits = (uint32_t)half[i] << 16;
        memcpy(&to[i], &bits, sizeof(bits));
    }
}

static void load(const struct weights *w, const char *name, const struct tensor *t)
{
    convert(checkpoint_find(w->checkpoint, name), tensor_floats(t), *t->place);
}

static void load_layer(struct weights *w, int32_t layer)
{
    char name[MAX_NAME];
    struct tensor t[LAYER_TENSORS];
    layer_tensors(&w->model, &w->layer[layer], t);
    for (int i = 0; i < LAYER_TENSORS; i++) {
        layer_name(layer, t[i].name, name);
        load(w, name, &t[i]);
    }
}

static void load_shared(struct weights *w)
{
    struct tensor t[MODEL_TENSORS];
    model_tensors(w, t);
    for (int i = 0; i < model_tensor_count(w); i++)
        load(w, t[i].name, &t[i]);
    for (int32_t layer = 0; layer < w->model.num_hidden_layers; layer++)
        load_layer(w, layer);
}

struct weights_expert weights_slot(const struct weights *w, int32_t layer, int32_t slot)
{
    struct weights_expert e;
    struct tensor t[EXPERT_TENSORS];
    expert_tensors(&w->model, &e, t);
    take_places(t, EXPERT_TENSORS, w->layer[layer].slots + (size_t)slot * slot_floats(&w->model));
    return e;
}

void weights_load_expert(struct weights *w, int32_t layer, int32_t slot, int32_t expert)
{
    char name[MAX_NAME];
    struct weights_expert e = weights_slot(w, layer, slot);
    struct tensor t[EXPERT_TENSORS];
    expert_tensors(&w->model, &e, t);
    for (int i = 0; i < EXPERT_TENSORS; i++) {
        expert_name(layer, expert, t[i].name, name);
        load(w, name, &t[i]);
    }
}

/* ---- Opening ---- */

static muster_status open_checkpoint(const char *model_dir, struct weights *w)
{
    char error[MAX_ERROR];
    if (checkpoint_open(model_dir, &w->checkpoint, error, sizeof(error)) != 0)
        return error_set(MUSTER_ERR_ARGUMENT, "%s", error);
    return MUSTER_OK;
}

muster_status weights_open(const char *model_dir, const struct model_config *model, int32_t slots, struct weights *w)
{
    *w = (struct weights){.model = *model, .slots = slots};
    muster_status status = open_checkpoint(model_dir, w);
    if (status != MUSTER_OK)
        return status;
    w->layer = calloc((size_t)model->num_hidden_layers, sizeof(*w->layer));
    status = w->layer ? check_checkpoint(w)
                      : error_set(MUSTER_ERR_MEMORY, "no memory for %d layers", model->num_hidden_layers);
    if (status == MUSTER_OK)
        status = allocate(w);
    if (status != MUSTER_OK) {
        weights_close(w);
        return status;
    }
    load_shared(w);
    return MUSTER_OK;
}

void weights_close(struct weights *w)
{
    free(w->memory);
    free(w->layer);
    checkpoint_close(w->checkpoint);
    *w = (struct weights){0};
}
