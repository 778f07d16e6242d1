// SPDX-License-Identifier: Apache-2.0
/* Opening and closing an engine, and what it wants of its group. */
#include <stdlib.h>

#include "control/group.h"
#include "core/error.h"
#include "state.h"

static muster_status check_slots(const struct model_config *model, int32_t slots_per_rank)
{
    if (slots_per_rank >= 1 && slots_per_rank <= model->num_experts)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_ARGUMENT, "slots_per_rank = %d, must be 1 to %d (num_experts)", slots_per_rank,
                     model->num_experts);
}

static muster_status read_model(const char *model_dir, int32_t slots_per_rank, struct model_config *model)
{
    muster_status status = model_config_read(model_dir, model);
    return status == MUSTER_OK ? check_slots(model, slots_per_rank) : status;
}

static muster_status memory_bytes(const struct model_config *model, int32_t ranks, int32_t slots_per_rank,
                                  int32_t max_tokens, uint64_t *bytes)
{
    muster_ep_config exchange;
    experts_exchange_config(model, slots_per_rank, max_tokens, &exchange);
    return muster_ep_memory_bytes(&exchange, ranks, bytes);
}

muster_status engine_memory_bytes(const char *model_dir, int32_t ranks, int32_t slots_per_rank, int32_t max_tokens,
                                  uint64_t *bytes)
{
    struct model_config model;
    muster_status status = read_model(model_dir, slots_per_rank, &model);
    return status == MUSTER_OK ? memory_bytes(&model, ranks, slots_per_rank, max_tokens, bytes) : status;
}

muster_status engine_experts(const char *model_dir, int32_t *experts)
{
    struct model_config model;
    muster_status status = model_config_read(model_dir, &model);
    if (status == MUSTER_OK)
        *experts = model.num_experts;
    return status;
}

muster_status engine_layers(const char *model_dir, int32_t *layers)
{
    struct model_config model;
    muster_status status = model_config_read(model_dir, &model);
    if (status == MUSTER_OK)
        *layers = model.num_hidden_layers;
    return status;
}

muster_status engine_group_config(const struct engine_config *config, int32_t ranks, muster_group_config *group)
{
    struct model_config model;
    uint64_t bytes;
    muster_status status = read_model(config->model_dir, config->slots_per_rank, &model);
    if (status == MUSTER_OK)
        status = memory_bytes(&model, ranks, config->slots_per_rank, config->max_tokens, &bytes);
    if (status != MUSTER_OK)
        return status;
    int32_t needed = (model.num_experts + config->slots_per_rank - 1) / config->slots_per_rank;
    if (needed > ranks)
        return error_set(MUSTER_ERR_CAPACITY, "%d ranks with %d slots each cannot hold %d experts", ranks,
                         config->slots_per_rank, model.num_experts);
    group->memory_bytes = bytes;
    group->manual_ready = 1;
    group->min_ranks = group->min_ranks > needed ? group->min_ranks : needed;
    return MUSTER_OK;
}

/* ---- Opening ---- */

static muster_status new_placement(struct engine *e)
{
    size_t slots = (size_t)e->slots_per_rank;
    e->slot_to_expert = calloc((size_t)e->ranks * slots, sizeof(int32_t));
    e->expert_to_slot = calloc((size_t)e->weights.model.num_experts, sizeof(int32_t));
    e->held = calloc(slots, sizeof(int32_t));
    if (!e->slot_to_expert || !e->expert_to_slot || !e->held)
        return error_set(MUSTER_ERR_MEMORY, "no memory for the placement of %d slots", e->slots_per_rank);
    for (size_t i = 0; i < slots; i++)
        e->held[i] = -1;
    return MUSTER_OK;
}

static muster_status new_exchange(struct engine *e)
{
    muster_ep_config exchange;
    experts_exchange_config(&e->weights.model, e->slots_per_rank, e->max_tokens, &exchange);
    return muster_ep_create(e->group, &exchange, &e->exchange);
}

/* Newer views may come while the experts of one are loaded; each round is the answer to one of them. */
static muster_status adopt_first(struct engine *e)
{
    muster_status status = engine_adopt(e);
    while (status == MUSTER_ERR_AGAIN)
        status = engine_adopt(e);
    return status;
}

static muster_status fill_engine(struct engine *e, const struct engine_config *config)
{
    struct model_config model;
    muster_status status = read_model(config->model_dir, config->slots_per_rank, &model);
    if (status == MUSTER_OK)
        status = weights_open(config->model_dir, &model, config->slots_per_rank, &e->weights);
    if (status == MUSTER_OK)
        status = new_placement(e);
    if (status == MUSTER_OK)
        status = new_exchange(e); /* holds max_tokens against its limits, before a batch is sized by it */
    if (status == MUSTER_OK)
        status = batch_new(e, &e->batch);
    if (status == MUSTER_OK)
        status = adopt_first(e);
    return status;
}

muster_status engine_open(const struct engine_config *config, struct engine **engine)
{
    if (!config || !config->group || !engine)
        return error_set(MUSTER_ERR_ARGUMENT, "engine_open: %s must not be NULL",
                         !config   ? "config"
                         : !engine ? "engine"
                                   : "config.group");
    struct engine *e = calloc(1, sizeof(*e));
    if (!e)
        return error_set(MUSTER_ERR_MEMORY, "no memory for an engine");
    e->group = config->group;
    e->rank = muster_group_rank(config->group);
    e->ranks = group_ranks(config->group);
    e->slots_per_rank = config->slots_per_rank;
    e->max_tokens = config->max_tokens;
    muster_status status = fill_engine(e, config);
    if (status != MUSTER_OK) {
        engine_close(e);
        return status;
    }
    e->open = true;
    *engine = e;
    return MUSTER_OK;
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    muster_ep_destroy(e->exchange);
    batch_free(&e->batch);
    weights_close(&e->weights);
    free(e->slot_to_expert);
    free(e->expert_to_slot);
    free(e->held);
    free(e);
}

/* ---- Queries ---- */

int32_t engine_vocabulary(const struct engine *e)
{
    return e->weights.model.vocab_size;
}

int32_t engine_max_positions(const struct engine *e)
{
    return e->weights.model.max_position_embeddings;
}

void engine_statistics(const struct engine *e, struct engine_statistics *statistics)
{
    *statistics = e->statistics;
}
