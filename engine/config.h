// SPDX-License-Identifier: Apache-2.0
/* config.json of a Qwen3-MoE checkpoint: what shapes the computation, checked. What is not built is refused by name. */
#ifndef ENGINE_CONFIG_H
#define ENGINE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "muster/status.h"

enum { MODEL_CONFIG_MAX_BYTES = 1 << 20 };

struct model_config {
    int32_t vocab_size;
    int32_t hidden_size;
    int32_t num_hidden_layers;
    int32_t num_attention_heads;
    int32_t num_key_value_heads;
    int32_t head_dim;
    int32_t num_experts;
    int32_t num_experts_per_tok;
    int32_t moe_intermediate_size;
    int32_t max_position_embeddings;
    float rms_norm_eps;
    float rope_theta;
    bool norm_topk_prob;
    bool tie_word_embeddings;
};

/* Reads model_dir/config.json. Errors: ARGUMENT, UNSUPPORTED; *config is then untouched. */
muster_status model_config_read(const char *model_dir, struct model_config *config);

/* The same for the text itself; `label` stands for the file's name in messages. */
muster_status model_config_parse(const char *text, size_t bytes, const char *label, struct model_config *config);

#endif
