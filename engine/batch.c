// SPDX-License-Identifier: Apache-2.0
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "state.h"

/* One array of a batch: its place and its size in 4-byte elements. */
struct part {
    void *place; /* of the pointer */
    size_t elements;
};

enum { MAX_PARTS = 16 };

static int batch_parts(const struct engine *e, struct batch *b, struct part part[MAX_PARTS])
{
    const struct model_config *m = &e->weights.model;
    size_t tokens = (size_t)e->max_tokens, hidden = (size_t)m->hidden_size, head = (size_t)m->head_dim;
    size_t queries = (size_t)m->num_attention_heads * head, keys = (size_t)m->num_key_value_heads * head;
    size_t topk = (size_t)m->num_experts_per_tok, slots = (size_t)e->slots_per_rank;
    const struct part parts[] = {
        {&b->hidden, tokens * hidden},
        {&b->normed, tokens * hidden},
        {&b->added, tokens * hidden},
        {&b->rotation, tokens * head},
        {&b->query, tokens * queries},
        {&b->mixed, tokens * queries},
        {&b->key, keys},
        {&b->value, keys},
        {&b->scores, (size_t)m->max_position_embeddings},
        {&b->odds, (size_t)m->num_experts},
        {&b->inner, 2 * (size_t)m->moe_intermediate_size},
        {&b->slots, tokens * topk},
        {&b->shares, tokens * topk},
        {&b->received, slots * (size_t)e->ranks * tokens * hidden},
        {&b->arrived, slots},
    };
    int count = (int)(sizeof(parts) / sizeof(parts[0]));
    for (int i = 0; i < count; i++)
        part[i] = parts[i];
    return count;
}

muster_status batch_new(const struct engine *e, struct batch *b)
{
    struct part part[MAX_PARTS];
    int count = batch_parts(e, b, part);
    *b = (struct batch){.row = calloc((size_t)e->max_tokens, sizeof(*b->row))};
    bool complete = b->row != NULL;
    for (int i = 0; i < count; i++) {
        void *array = calloc(part[i].elements, sizeof(float));
        complete = complete && array;
        memcpy(part[i].place, &array, sizeof(array));
    }
    if (complete)
        return MUSTER_OK;
    batch_free(b);
    return error_set(MUSTER_ERR_MEMORY, "no memory for steps of %d tokens on %d ranks with %d slots", e->max_tokens,
                     e->ranks, e->slots_per_rank);
}

void batch_free(struct batch *b)
{
    void *arrays[] = {b->row,   b->hidden, b->normed, b->added, b->rotation, b->query,  b->mixed,    b->key,
                      b->value, b->scores, b->odds,   b->inner, b->slots,    b->shares, b->received, b->arrived};
    for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++)
        free(arrays[i]);
    *b = (struct batch){0};
}
