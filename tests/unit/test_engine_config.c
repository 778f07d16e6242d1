// SPDX-License-Identifier: Apache-2.0
/* config.json: what is read from the real one, and every malformed or unbuilt one is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "engine.h"

#define MODEL_DIR MUSTER_SOURCE_DIR "/models/kjv-moe"

static muster_status parse(const char *text, struct model_config *config)
{
    return model_config_parse(text, strlen(text), "a/config.json", config);
}

/* The real config.json with one field set to the JSON `value`; NULL: without the field. */
static muster_status parse_with(const char *name, const char *value, struct model_config *config)
{
    json_t *root = json_load_file(MODEL_DIR "/config.json", 0, NULL);
    assert_non_null(root);
    if (value)
        assert_int_equal(json_object_set_new(root, name, json_loads(value, JSON_DECODE_ANY, NULL)), 0);
    else
        json_object_del(root, name);
    char *text = json_dumps(root, 0);
    muster_status status = parse(text, config);
    free(text);
    json_decref(root);
    return status;
}

static void test_real(void **state)
{
    (void)state;
    struct model_config c = {0};
    assert_int_equal(model_config_read(MODEL_DIR, &c), MUSTER_OK);
    assert_int_equal(c.vocab_size, 256);
    assert_int_equal(c.hidden_size, 128);
    assert_int_equal(c.num_hidden_layers, 4);
    assert_int_equal(c.num_attention_heads, 4);
    assert_int_equal(c.num_key_value_heads, 2);
    assert_int_equal(c.head_dim, 32);
    assert_int_equal(c.num_experts, 32);
    assert_int_equal(c.num_experts_per_tok, 4);
    assert_int_equal(c.moe_intermediate_size, 64);
    assert_int_equal(c.max_position_embeddings, 1024);
    assert_true(c.rms_norm_eps == 1e-6f);
    assert_true(c.rope_theta == 10000.0f);
    assert_true(c.norm_topk_prob);
    assert_false(c.tie_word_embeddings);
}

static void test_values_are_read(void **state)
{
    (void)state;
    struct model_config c = {0};
    assert_int_equal(parse_with("hidden_size", "260", &c), MUSTER_OK);
    assert_int_equal(c.hidden_size, 260);
    assert_int_equal(parse_with("rope_theta", "1000000", &c), MUSTER_OK);
    assert_true(c.rope_theta == 1e6f);
    assert_int_equal(parse_with("rms_norm_eps", "0.5", &c), MUSTER_OK);
    assert_true(c.rms_norm_eps == 0.5f);
    assert_int_equal(parse_with("norm_topk_prob", "false", &c), MUSTER_OK);
    assert_false(c.norm_topk_prob);
    assert_int_equal(parse_with("tie_word_embeddings", "true", &c), MUSTER_OK);
    assert_true(c.tie_word_embeddings);
    assert_int_equal(parse_with("sliding_window", "4096", &c), MUSTER_OK); /* not used: use_sliding_window is false */
    assert_int_equal(parse_with("attention_bias", NULL, &c), MUSTER_OK);
}

/* One field made wrong; `says`: what the error must hold besides the label and the field's name. */
static const struct wrong_case {
    const char *name, *value;
    muster_status status;
    const char *says;
} wrong_cases[] = {
    {"vocab_size", "0", MUSTER_ERR_ARGUMENT, "vocab_size = 0, must be 1 to 1048576"},
    {"vocab_size", "1e2", MUSTER_ERR_ARGUMENT, "must be a whole number, and is a number"},
    {"hidden_size", NULL, MUSTER_ERR_ARGUMENT, "must be a whole number, and is missing"},
    {"hidden_size", "130", MUSTER_ERR_ARGUMENT, "multiple of 4"},
    {"hidden_size", "\"128\"", MUSTER_ERR_ARGUMENT, "and is a string"},
    {"hidden_size", "9223372036854775807", MUSTER_ERR_ARGUMENT, "must be 4 to 65536"},
    {"num_hidden_layers", "-1", MUSTER_ERR_ARGUMENT, "must be 1 to 1024"},
    {"num_attention_heads", "null", MUSTER_ERR_ARGUMENT, "and is null"},
    {"num_key_value_heads", "3", MUSTER_ERR_ARGUMENT, "must divide num_attention_heads = 4"},
    {"head_dim", "33", MUSTER_ERR_ARGUMENT, "must be even"},
    {"head_dim", "1025", MUSTER_ERR_ARGUMENT, "must be 2 to 1024"},
    {"num_experts", "[32]", MUSTER_ERR_ARGUMENT, "and is a list"},
    {"num_experts", "3", MUSTER_ERR_ARGUMENT, "num_experts_per_tok = 4, must be at most num_experts = 3"},
    {"num_experts_per_tok", "33", MUSTER_ERR_ARGUMENT, "must be 1 to 32"},
    {"moe_intermediate_size", "{}", MUSTER_ERR_ARGUMENT, "and is an object"},
    {"max_position_embeddings", "0", MUSTER_ERR_ARGUMENT, "must be 1 to"},
    {"rms_norm_eps", "-1e-6", MUSTER_ERR_ARGUMENT, "must be 0 to 1"},
    {"rms_norm_eps", "true", MUSTER_ERR_ARGUMENT, "must be a number, and is true"},
    {"rope_theta", "0", MUSTER_ERR_ARGUMENT, "must be 1 to"},
    {"rope_theta", "null", MUSTER_ERR_ARGUMENT, "must be a number, here or in rope_parameters, and is missing"},
    {"rope_theta", NULL, MUSTER_ERR_ARGUMENT, "must be a number, here or in rope_parameters, and is missing"},
    {"norm_topk_prob", "1", MUSTER_ERR_ARGUMENT, "must be true or false"},
    {"norm_topk_prob", NULL, MUSTER_ERR_ARGUMENT, "must be true or false, and is missing"},
    {"tie_word_embeddings", "0", MUSTER_ERR_ARGUMENT, "must be true or false, and is a whole number"},
    {"num_key_value_heads", NULL, MUSTER_ERR_ARGUMENT, "must be a whole number, and is missing"},
    {"num_experts", NULL, MUSTER_ERR_ARGUMENT, "must be a whole number, and is missing"},
    {"num_local_experts", "31", MUSTER_ERR_ARGUMENT, "num_experts = 32, but num_local_experts = 31"},
    {"num_local_experts", "\"32\"", MUSTER_ERR_ARGUMENT, "and is a string"},
    {"model_type", "\"qwen2_moe\"", MUSTER_ERR_UNSUPPORTED, "\"qwen2_moe\" is not supported; only \"qwen3_moe\""},
    {"model_type", NULL, MUSTER_ERR_ARGUMENT, "must be a string, and is missing"},
    {"hidden_act", "\"gelu\"", MUSTER_ERR_UNSUPPORTED, "only \"silu\""},
    {"attention_bias", "true", MUSTER_ERR_UNSUPPORTED, "must be false"},
    {"use_sliding_window", "true", MUSTER_ERR_UNSUPPORTED, "must be false"},
    {"mlp_only_layers", "[1]", MUSTER_ERR_UNSUPPORTED, "must be []"},
    {"decoder_sparse_step", "2", MUSTER_ERR_UNSUPPORTED, "must be 1"},
    {"partial_rotary_factor", "0.5", MUSTER_ERR_UNSUPPORTED, "must be 1"},
    {"rope_scaling", "{\"rope_type\": \"yarn\"}", MUSTER_ERR_UNSUPPORTED, "rope_scaling.rope_type = yarn is not"},
    {"rope_scaling", "{\"type\": \"linear\"}", MUSTER_ERR_UNSUPPORTED, "rope_scaling.type = linear is not"},
    {"rope_scaling", "{\"rope_type\": \"default\", \"type\": 3}", MUSTER_ERR_UNSUPPORTED, "type = a whole number"},
    {"rope_scaling", "{\"factor\": 2.0}", MUSTER_ERR_UNSUPPORTED, "rope_scaling.factor is not supported"},
    {"rope_scaling", "[]", MUSTER_ERR_ARGUMENT, "must be an object or null, and is a list"},
    {"rope_parameters", "{\"rope_type\": \"llama3\"}", MUSTER_ERR_UNSUPPORTED, "rope_parameters.rope_type = llama3"},
    {"rope_parameters", "{\"full_attention\": {}}", MUSTER_ERR_UNSUPPORTED, "rope_parameters.full_attention"},
    {"rope_parameters", "{\"partial_rotary_factor\": 0.5}", MUSTER_ERR_UNSUPPORTED, ".partial_rotary_factor"},
    {"rope_parameters", "{\"rope_theta\": 1000000}", MUSTER_ERR_ARGUMENT, "rope_parameters.rope_theta = 1e+06, but"},
    {"rope_parameters", "{\"rope_theta\": \"10000\"}", MUSTER_ERR_ARGUMENT, "rope_theta must be a number, and"},
    {"quantization_config", "{}", MUSTER_ERR_UNSUPPORTED, "must be null"},
};

static void test_wrong_fields(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(wrong_cases) / sizeof(wrong_cases[0]); i++) {
        const struct wrong_case *c = &wrong_cases[i];
        struct model_config config, before;
        memset(&config, 0x5a, sizeof(config));
        before = config;
        muster_status status = parse_with(c->name, c->value, &config);
        if (status != c->status || !strstr(muster_last_error(), c->says) || !strstr(muster_last_error(), c->name) ||
            !strstr(muster_last_error(), "a/config.json"))
            fail_msg("%s = %s: %s: %s", c->name, c->value ? c->value : "(removed)", muster_status_name(status),
                     muster_last_error());
        assert_memory_equal(&config, &before, sizeof(config));
    }
}

/* What changes nothing is accepted: the whole configuration must be the one of the file as it is. */
static const struct harmless_case {
    const char *name, *value;
} harmless_cases[] = {
    {"rope_scaling", "{}"},
    {"rope_scaling", NULL},
    {"rope_scaling", "{\"rope_type\": \"default\"}"},
    {"rope_scaling", "{\"type\": \"default\"}"},
    {"rope_scaling", "{\"rope_type\": \"default\", \"factor\": null}"},
    {"rope_parameters", "null"},
    {"rope_parameters", "{}"},
    {"rope_parameters", "{\"rope_theta\": 10000}"},
    {"rope_parameters", "{\"rope_theta\": 10000.0, \"rope_type\": \"default\", \"partial_rotary_factor\": 1.0}"},
    {"partial_rotary_factor", "1.0"},
    {"head_dim", NULL},
    {"head_dim", "null"},
    {"num_local_experts", "32"},
    {"tie_word_embeddings", NULL},
    {"tie_word_embeddings", "null"},
    {"torch_dtype", NULL},
    {"dtype", "\"bfloat16\""},
    {"mlp_only_layers", "null"},
    {"decoder_sparse_step", "null"},
    {"quantization_config", "null"},
    {"layer_types", "[\"full_attention\"]"},
    {"transformers_version", "\"5.0.0\""},
    {"a_field_of_tomorrow", "{\"deep\": [1, {\"er\": null}]}"},
};

static void test_harmless_fields(void **state)
{
    (void)state;
    struct model_config real, config;
    memset(&real, 0, sizeof(real));
    assert_int_equal(model_config_read(MODEL_DIR, &real), MUSTER_OK);
    for (size_t i = 0; i < sizeof(harmless_cases) / sizeof(harmless_cases[0]); i++) {
        const struct harmless_case *c = &harmless_cases[i];
        memset(&config, 0, sizeof(config));
        if (parse_with(c->name, c->value, &config) != MUSTER_OK || memcmp(&config, &real, sizeof(config)))
            fail_msg("%s = %s: %s", c->name, c->value ? c->value : "(removed)", muster_last_error());
    }
}

/* As transformers 5 writes the same model: theta inside rope_parameters, dtype, num_local_experts, no head_dim. */
static void test_transformers_5(void **state)
{
    (void)state;
    static const char text[] =
        "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"attention_bias\": false, \"attention_dropout\": 0.0,"
        " \"bos_token_id\": null, \"decoder_sparse_step\": 1, \"dtype\": \"bfloat16\", \"eos_token_id\": null,"
        " \"head_dim\": 32, \"hidden_act\": \"silu\", \"hidden_size\": 128, \"initializer_range\": 0.02,"
        " \"intermediate_size\": 256, \"max_position_embeddings\": 1024, \"mlp_only_layers\": [],"
        " \"model_type\": \"qwen3_moe\", \"moe_intermediate_size\": 64, \"norm_topk_prob\": true,"
        " \"num_attention_heads\": 4, \"num_experts_per_tok\": 4, \"num_hidden_layers\": 4,"
        " \"num_key_value_heads\": 2, \"num_local_experts\": 32, \"output_router_logits\": false,"
        " \"pad_token_id\": null, \"rms_norm_eps\": 1e-06,"
        " \"rope_parameters\": {\"rope_theta\": 10000.0, \"rope_type\": \"default\"}, \"router_aux_loss_coef\": 0.01,"
        " \"sliding_window\": null, \"tie_word_embeddings\": false, \"transformers_version\": \"5.0.0\","
        " \"use_cache\": true, \"use_sliding_window\": false, \"vocab_size\": 256}";
    struct model_config real, config;
    memset(&real, 0, sizeof(real));
    memset(&config, 0, sizeof(config));
    assert_int_equal(model_config_read(MODEL_DIR, &real), MUSTER_OK);
    if (parse(text, &config) != MUSTER_OK)
        fail_msg("%s", muster_last_error());
    assert_memory_equal(&config, &real, sizeof(config));
}

static void test_left_out_numbers(void **state)
{
    (void)state;
    struct model_config c = {0};
    assert_int_equal(parse_with("num_key_value_heads", "null", &c), MUSTER_OK);
    assert_int_equal(c.num_key_value_heads, 4);
    json_t *root = json_load_file(MODEL_DIR "/config.json", 0, NULL);
    assert_int_equal(json_object_del(root, "head_dim"), 0);
    json_object_set_new(root, "num_attention_heads", json_integer(6)); /* 128 over 6 */
    char *text = json_dumps(root, 0);
    assert_int_equal(parse(text, &c), MUSTER_ERR_ARGUMENT);
    assert_non_null(strstr(muster_last_error(), "a/config.json: head_dim is missing, and hidden_size = 128"));
    free(text);
    json_decref(root);
}

static void test_not_json(void **state)
{
    (void)state;
    static const char *const texts[] = {"",
                                        "{",
                                        "{\"model_type\": \"qwen3_moe\"",
                                        "{\"a\": 1, \"a\": 2}",
                                        "nul",
                                        "{\"a\": 1e999999}",
                                        "{} trailing",
                                        "\xff\xfe{}"};
    struct model_config config;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        assert_int_equal(parse(texts[i], &config), MUSTER_ERR_ARGUMENT);
        assert_non_null(strstr(muster_last_error(), "a/config.json: not JSON: line"));
    }
    assert_int_equal(parse("[]", &config), MUSTER_ERR_ARGUMENT);
    assert_non_null(strstr(muster_last_error(), "the file must be an object, and is a list"));
    assert_int_equal(parse("7", &config), MUSTER_ERR_ARGUMENT);
    assert_int_equal(model_config_parse("{}\0{}", 5, "a/config.json", &config), MUSTER_ERR_ARGUMENT);
}

/* A list in a list in a list ...: refused by depth, not by the end of the stack. */
static void test_deep(void **state)
{
    (void)state;
    size_t bytes = 200000;
    char *text = malloc(bytes);
    assert_non_null(text);
    memset(text, '[', bytes);
    struct model_config config;
    assert_int_equal(model_config_parse(text, bytes, "a/config.json", &config), MUSTER_ERR_ARGUMENT);
    free(text);
}

static void test_files(void **state)
{
    (void)state;
    char dir[] = "/tmp/muster-test-config-XXXXXX", path[64];
    uint64_t bytes = 77;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/config.json", dir);
    assert_int_equal(engine_memory_bytes(dir, 4, 11, 64, &bytes), MUSTER_ERR_ARGUMENT);
    assert_non_null(strstr(muster_last_error(), path));
    assert_non_null(strstr(muster_last_error(), "cannot be opened"));

    FILE *out = fopen(path, "w");
    assert_non_null(out);
    for (int i = 0; i <= MODEL_CONFIG_MAX_BYTES; i++)
        putc(' ', out);
    fclose(out);
    assert_int_equal(engine_memory_bytes(dir, 4, 11, 64, &bytes), MUSTER_ERR_ARGUMENT);
    assert_non_null(strstr(muster_last_error(), "larger than 1048576 bytes"));
    unlink(path);
    rmdir(dir);

    assert_int_equal(engine_memory_bytes(NULL, 4, 11, 64, &bytes), MUSTER_ERR_ARGUMENT);
    assert_non_null(strstr(muster_last_error(), "model_dir"));
    assert_int_equal(bytes, 77);
}

static void test_group_wishes(void **state)
{
    (void)state;
    uint64_t bytes = 0;
    int32_t experts = 0;
    struct engine_config config = {.model_dir = MODEL_DIR, .slots_per_rank = 11, .max_tokens = 64};
    muster_group_config group = MUSTER_GROUP_CONFIG_INIT;
    assert_int_equal(engine_experts(MODEL_DIR, &experts), MUSTER_OK);
    assert_int_equal(experts, 32);
    assert_int_equal(engine_memory_bytes(MODEL_DIR, 4, 11, 64, &bytes), MUSTER_OK);
    assert_int_equal(engine_group_config(&config, 4, &group), MUSTER_OK);
    assert_int_equal(group.memory_bytes, bytes);
    assert_true(bytes > 0);
    assert_int_equal(group.manual_ready, 1);
    assert_int_equal(group.min_ranks, 3); /* 3 * 11 slots hold 32 experts, 2 * 11 do not */
    group.min_ranks = 4;
    assert_int_equal(engine_group_config(&config, 4, &group), MUSTER_OK);
    assert_int_equal(group.min_ranks, 4);
    assert_int_equal(engine_group_config(&config, 2, &group), MUSTER_ERR_CAPACITY);
    for (int32_t slots = 0; slots <= 33; slots += 33) {
        config.slots_per_rank = slots;
        assert_int_equal(engine_group_config(&config, 4, &group), MUSTER_ERR_ARGUMENT);
        assert_non_null(strstr(muster_last_error(), "must be 1 to 32 (num_experts)"));
    }
    assert_int_equal(engine_memory_bytes(MODEL_DIR, 4, 11, 65537, &bytes), MUSTER_ERR_ARGUMENT);
    assert_non_null(strstr(muster_last_error(), "max_tokens"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_real),           cmocka_unit_test(test_values_are_read),
        cmocka_unit_test(test_wrong_fields),   cmocka_unit_test(test_harmless_fields),
        cmocka_unit_test(test_transformers_5), cmocka_unit_test(test_left_out_numbers),
        cmocka_unit_test(test_not_json),       cmocka_unit_test(test_deep),
        cmocka_unit_test(test_files),          cmocka_unit_test(test_group_wishes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
