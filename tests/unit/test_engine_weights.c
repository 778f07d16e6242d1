// SPDX-License-Identifier: Apache-2.0
/* Weights: what is converted, and checkpoints that do not fit their config.json or are damaged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/sharded.h"
#include "weights.h"
#include "weights/checkpoint.h"

#define MODEL_DIR MUSTER_SOURCE_DIR "/models/kjv-moe"

static struct model_config real_config(void)
{
    struct model_config config;
    assert_int_equal(model_config_read(MODEL_DIR, &config), MUSTER_OK);
    return config;
}

static void refused(const char *dir, const struct model_config *config, const char *says)
{
    struct weights w;
    muster_status status = weights_open(dir, config, 8, &w);
    if (status != MUSTER_ERR_ARGUMENT || !strstr(muster_last_error(), says) ||
        strncmp(muster_last_error(), dir, strlen(dir)) != 0)
        fail_msg("wanted \"%s\", got %s: %s", says, muster_status_name(status), muster_last_error());
}

/* Every bf16 value widened, by another way than the engine's. */
static void expect_converted(const struct weights *w, const char *name, const float *have)
{
    const struct safetensors_tensor *t = checkpoint_find(w->checkpoint, name);
    assert_non_null(t);
    const unsigned char *byte = t->data;
    for (size_t i = 0; i < t->bytes / 2; i++) {
        unsigned char wide[4] = {0, 0, byte[2 * i], byte[2 * i + 1]};
        assert_memory_equal(&have[i], wide, 4); /* little-endian, as the file is */
    }
}

static void test_conversion(void **state)
{
    (void)state;
    struct model_config config = real_config();
    struct weights w;
    assert_int_equal(weights_open(MODEL_DIR, &config, 3, &w), MUSTER_OK);
    expect_converted(&w, "model.embed_tokens.weight", w.embedding);
    expect_converted(&w, "lm_head.weight", w.head);
    expect_converted(&w, "model.layers.3.self_attn.o_proj.weight", w.layer[3].output);
    expect_converted(&w, "model.layers.0.mlp.gate.weight", w.layer[0].router);
    weights_load_expert(&w, 2, 0, 31);
    weights_load_expert(&w, 2, 1, 7);
    weights_load_expert(&w, 2, 2, 9);
    weights_load_expert(&w, 2, 1, 30);
    expect_converted(&w, "model.layers.2.mlp.experts.31.gate_proj.weight", weights_slot(&w, 2, 0).gate);
    expect_converted(&w, "model.layers.2.mlp.experts.30.up_proj.weight", weights_slot(&w, 2, 1).up);
    expect_converted(&w, "model.layers.2.mlp.experts.30.down_proj.weight", weights_slot(&w, 2, 1).down);
    expect_converted(&w, "model.layers.2.mlp.experts.9.gate_proj.weight", weights_slot(&w, 2, 2).gate);
    expect_converted(&w, "model.layers.3.input_layernorm.weight", w.layer[3].input_norm);
    weights_close(&w);
}

static void test_tied_head(void **state)
{
    (void)state;
    struct model_config config = real_config();
    struct weights w;
    config.tie_word_embeddings = true;
    assert_int_equal(weights_open(MODEL_DIR, &config, 1, &w), MUSTER_OK);
    assert_ptr_equal(w.head, w.embedding);
    weights_close(&w);
}

static void test_wrong_shapes(void **state)
{
    (void)state;
    struct model_config config = real_config();
    config.vocab_size = 255;
    refused(MODEL_DIR, &config, "model.embed_tokens.weight");
    config = real_config();
    config.num_key_value_heads = 4;
    refused(MODEL_DIR, &config, "model.layers.0.self_attn.k_proj.weight");
    config = real_config();
    config.moe_intermediate_size = 32;
    refused(MODEL_DIR, &config, "model.layers.0.mlp.experts.0.gate_proj.weight");
    config = real_config();
    config.head_dim = 64;
    config.num_attention_heads = 2;
    config.num_key_value_heads = 1;
    refused(MODEL_DIR, &config, "model.layers.0.self_attn.q_norm.weight");
}

static void test_wrong_counts(void **state)
{
    (void)state;
    struct model_config config = real_config();
    config.num_hidden_layers = 5;
    refused(MODEL_DIR, &config, "model.layers.4.input_layernorm.weight");
    config.num_hidden_layers = 3;
    refused(MODEL_DIR, &config, "holds 423 tensors, the model of config.json has 318");
    config = real_config();
    config.num_experts = 33;
    refused(MODEL_DIR, &config, "model.layers.0.mlp.gate.weight");
}

static void copy_bytes(const char *path, size_t bytes)
{
    FILE *in = fopen(MODEL_DIR "/model.safetensors", "rb"), *out = fopen(path, "wb");
    assert_non_null(in);
    assert_non_null(out);
    for (size_t i = 0; i < bytes; i++)
        putc(getc(in), out);
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

static void test_damaged_files(void **state)
{
    (void)state;
    char dir[] = "/tmp/muster-test-weights-XXXXXX", path[64];
    struct model_config config = real_config();
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    refused(dir, &config, "there is neither model.safetensors nor model.safetensors.index.json in this folder");
    static const size_t sizes[] = {0, 7, 8, 1000, 1000000, 6899519};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        copy_bytes(path, sizes[i]);
        refused(dir, &config, path);
    }
    unlink(path);
    rmdir(dir);
}

static void expect_same_experts(struct weights *a, struct weights *b, int32_t layer)
{
    size_t bytes = 3 * (size_t)a->model.hidden_size * (size_t)a->model.moe_intermediate_size * sizeof(float);
    for (int32_t expert = 0; expert < a->model.num_experts; expert++) {
        weights_load_expert(a, layer, 0, expert);
        weights_load_expert(b, layer, 0, expert);
        assert_memory_equal(a->layer[layer].slots, b->layer[layer].slots, bytes);
    }
}

/* Every bit is the same, however many files it came from; so logits are. */
static void test_sharded_copies(void **state)
{
    (void)state;
    struct model_config config = real_config();
    struct weights whole, w;
    assert_int_equal(weights_open(MODEL_DIR, &config, 1, &whole), MUSTER_OK);
    for (int shards = 1; shards <= 7; shards += 3) {
        char dir[] = "/tmp/muster-test-weights-XXXXXX";
        assert_non_null(mkdtemp(dir));
        sharded_copy(MODEL_DIR, dir, shards);
        if (weights_open(dir, &config, 1, &w) != MUSTER_OK)
            fail_msg("%d shards: %s", shards, muster_last_error());
        for (int32_t layer = 0; layer < config.num_hidden_layers; layer++)
            expect_same_experts(&whole, &w, layer);
        /* The last layer's experts end all: what lies before them is what is shared, and the slots that are equal now. */
        assert_memory_equal(whole.memory, w.memory, (size_t)((char *)whole.layer[3].slots - (char *)whole.memory));
        weights_close(&w);
        sharded_remove(dir, shards);
    }
    weights_close(&whole);
}

/* What is wrong with a shard or the index reaches the engine's caller, with the file and the tensor. */
static void test_damaged_shards(void **state)
{
    (void)state;
    char dir[] = "/tmp/muster-test-weights-XXXXXX";
    struct model_config config = real_config();
    assert_non_null(mkdtemp(dir));
    sharded_copy(MODEL_DIR, dir, 3);
    assert_int_equal(truncate(sharded_path(dir, 2, 3), 100000), 0);
    refused(dir, &config, "model-00002-of-00003.safetensors: tensor '");
    refused(dir, &config, "(model.safetensors.index.json has tensor '");
    assert_int_equal(unlink(sharded_path(dir, 2, 3)), 0);
    refused(dir, &config, "model-00002-of-00003.safetensors: cannot be opened");
    sharded_copy(MODEL_DIR, dir, 3);
    config.moe_intermediate_size = 32;
    refused(dir, &config, "safetensors: tensor 'model.layers.0.mlp.experts.0.gate_proj.weight' is BF16 [64, 128]");
    config.moe_intermediate_size = 64;
    config.num_hidden_layers = 5;
    refused(dir, &config, "index.json: tensor 'model.layers.4.input_layernorm.weight' is missing");
    config.num_hidden_layers = 3;
    refused(dir, &config, "index.json: holds 423 tensors, the model of config.json has 318");
    sharded_remove(dir, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conversion),     cmocka_unit_test(test_tied_head),
        cmocka_unit_test(test_wrong_shapes),   cmocka_unit_test(test_wrong_counts),
        cmocka_unit_test(test_damaged_files),  cmocka_unit_test(test_sharded_copies),
        cmocka_unit_test(test_damaged_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
