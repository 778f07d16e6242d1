// SPDX-License-Identifier: Apache-2.0
#include "config.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"

/* A whole number. The limits keep every product of two of them, in bytes, inside 64 bits. */
struct integer_field {
    const char *name;
    size_t offset;
    int32_t minimum, maximum;
};

static const struct integer_field integer_fields[] = {
    {"vocab_size", offsetof(struct model_config, vocab_size), 1, 1 << 20},
    {"hidden_size", offsetof(struct model_config, hidden_size), 4, 1 << 16},
    {"num_hidden_layers", offsetof(struct model_config, num_hidden_layers), 1, 1024},
    {"num_attention_heads", offsetof(struct model_config, num_attention_heads), 1, 1024},
    {"num_experts_per_tok", offsetof(struct model_config, num_experts_per_tok), 1, 32},
    {"moe_intermediate_size", offsetof(struct model_config, moe_intermediate_size), 1, 1 << 18},
    {"max_position_embeddings", offsetof(struct model_config, max_position_embeddings), 1, 1 << 24},
};

enum { INTEGER_FIELDS = sizeof(integer_fields) / sizeof(integer_fields[0]) };

/* These may be left out, be null, or have another name. */
static const struct integer_field head_dim_field = {"head_dim", offsetof(struct model_config, head_dim), 2, 1024};
static const struct integer_field kv_heads_field = {"num_key_value_heads",
                                                    offsetof(struct model_config, num_key_value_heads), 1, 1024};
static const struct integer_field experts_fields[] = {
    {"num_experts", offsetof(struct model_config, num_experts), 1, 4096},
    {"num_local_experts", offsetof(struct model_config, num_experts), 1, 4096},
};

/* ---- One field ---- */

static const char *type_name(const json_t *value)
{
    static const char *const names[] = {"an object", "a list", "a string", "a whole number",
                                        "a number",  "true",   "false",    "null"};
    return value ? names[json_typeof(value)] : "missing";
}

static muster_status wrong_type(const char *label, const char *name, const char *want, const json_t *value)
{
    return error_set(MUSTER_ERR_ARGUMENT, "%s: %s must be %s, and is %s", label, name, want, type_name(value));
}

static muster_status read_integer(const json_t *root, const char *label, const struct integer_field *field,
                                  struct model_config *config)
{
    const json_t *value = json_object_get(root, field->name);
    if (!json_is_integer(value))
        return wrong_type(label, field->name, "a whole number", value);
    json_int_t number = json_integer_value(value);
    if (number < field->minimum || number > field->maximum)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: %s = %lld, must be %d to %d", label, field->name, (long long)number,
                         field->minimum, field->maximum);
    int32_t narrow = (int32_t)number;
    memcpy((char *)config + field->offset, &narrow, sizeof(narrow));
    return MUSTER_OK;
}

static muster_status read_number(const json_t *value, const char *label, const char *name, double minimum,
                                 double maximum, float *out)
{
    if (!json_is_number(value))
        return wrong_type(label, name, "a number", value);
    double number = json_number_value(value);
    if (!(number >= minimum && number <= maximum))
        return error_set(MUSTER_ERR_ARGUMENT, "%s: %s = %g, must be %g to %g", label, name, number, minimum, maximum);
    *out = (float)number;
    return MUSTER_OK;
}

static muster_status read_flag(const json_t *root, const char *label, const char *name, bool *out)
{
    const json_t *value = json_object_get(root, name);
    if (!json_is_boolean(value))
        return wrong_type(label, name, "true or false", value);
    *out = json_is_true(value);
    return MUSTER_OK;
}

static muster_status check_text(const json_t *root, const char *label, const char *name, const char *want)
{
    const json_t *value = json_object_get(root, name);
    if (!json_is_string(value))
        return wrong_type(label, name, "a string", value);
    if (strcmp(json_string_value(value), want) == 0)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_UNSUPPORTED, "%s: %s = \"%.60s\" is not supported; only \"%s\" is", label, name,
                     json_string_value(value), want);
}

/* ---- Features that would change the logits, and are not built ---- */

static bool absent_or_null(const json_t *value)
{
    return !value || json_is_null(value);
}

static bool absent_or_false(const json_t *value)
{
    return absent_or_null(value) || json_is_false(value);
}

static bool absent_or_empty(const json_t *value)
{
    return absent_or_null(value) || (json_is_array(value) && json_array_size(value) == 0);
}

static bool absent_or_one(const json_t *value)
{
    return absent_or_null(value) || (json_is_number(value) && json_number_value(value) == 1);
}

static const struct {
    const char *name;
    bool (*allowed)(const json_t *value);
    const char *want;
} unbuilt_features[] = {
    {"attention_bias", absent_or_false, "false"},  {"use_sliding_window", absent_or_false, "false"},
    {"mlp_only_layers", absent_or_empty, "[]"},    {"decoder_sparse_step", absent_or_one, "1"},
    {"partial_rotary_factor", absent_or_one, "1"}, {"quantization_config", absent_or_null, "null"},
};

static muster_status refuse_unbuilt(const json_t *root, const char *label)
{
    for (size_t i = 0; i < sizeof(unbuilt_features) / sizeof(unbuilt_features[0]); i++)
        if (!unbuilt_features[i].allowed(json_object_get(root, unbuilt_features[i].name)))
            return error_set(MUSTER_ERR_UNSUPPORTED, "%s: %s is not supported: it must be %s", label,
                             unbuilt_features[i].name, unbuilt_features[i].want);
    return MUSTER_OK;
}

/* ---- Rotary positions: rope_theta, alone or inside rope_scaling (transformers 4) or rope_parameters (5) ---- */

/* One member of such an object. Plain rotary positions have a type and theta; whatever else is set would change them. */
static muster_status check_rope_member(const json_t *rope, const char *label, const char *object, const char *name)
{
    const json_t *value = json_object_get(rope, name);
    if (absent_or_null(value) || strcmp(name, "rope_theta") == 0)
        return MUSTER_OK;
    if (strcmp(name, "partial_rotary_factor") == 0 && absent_or_one(value))
        return MUSTER_OK;
    if (strcmp(name, "rope_type") != 0 && strcmp(name, "type") != 0)
        return error_set(MUSTER_ERR_UNSUPPORTED, "%s: %s.%.60s is not supported: it must be left out", label, object,
                         name);
    if (json_is_string(value) && strcmp(json_string_value(value), "default") == 0)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_UNSUPPORTED, "%s: %s.%s = %.60s is not supported; only \"default\" is", label, object,
                     name, json_is_string(value) ? json_string_value(value) : type_name(value));
}

/* Adds what one place says of theta; 0: no place has said anything yet. */
static muster_status read_theta(const json_t *value, const char *label, const char *place, float *theta)
{
    float said = 0;
    if (absent_or_null(value))
        return MUSTER_OK;
    muster_status status = read_number(value, label, place, 1, 1e12, &said);
    if (status == MUSTER_OK && *theta != 0 && *theta != said)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: %s = %g, but another rope_theta = %g: they must agree", label, place,
                         (double)said, (double)*theta);
    if (status == MUSTER_OK)
        *theta = said;
    return status;
}

static muster_status read_rope_object(const json_t *root, const char *label, const char *object, float *theta)
{
    const json_t *rope = json_object_get(root, object);
    if (absent_or_null(rope))
        return MUSTER_OK;
    if (!json_is_object(rope))
        return wrong_type(label, object, "an object or null", rope);
    for (void *at = json_object_iter((json_t *)rope); at; at = json_object_iter_next((json_t *)rope, at)) {
        muster_status status = check_rope_member(rope, label, object, json_object_iter_key(at));
        if (status != MUSTER_OK)
            return status;
    }
    char place[64];
    snprintf(place, sizeof(place), "%s.rope_theta", object);
    return read_theta(json_object_get(rope, "rope_theta"), label, place, theta);
}

static muster_status read_rope(const json_t *root, const char *label, float *theta)
{
    float said = 0;
    muster_status status = read_theta(json_object_get(root, "rope_theta"), label, "rope_theta", &said);
    if (status == MUSTER_OK)
        status = read_rope_object(root, label, "rope_scaling", &said);
    if (status == MUSTER_OK)
        status = read_rope_object(root, label, "rope_parameters", &said);
    if (status == MUSTER_OK && said == 0)
        return wrong_type(label, "rope_theta", "a number, here or in rope_parameters", NULL);
    *theta = said;
    return status;
}

/* ---- Whole numbers that need not be there under their name ---- */

/*
 * A guess would be wrong for a model whose heads have another width. Then its norm of queries has that width, too, and
 * the tensors' shapes are refused.
 */
static muster_status read_head_dim(const json_t *root, const char *label, struct model_config *config)
{
    if (!absent_or_null(json_object_get(root, head_dim_field.name)))
        return read_integer(root, label, &head_dim_field, config);
    int32_t dim = config->hidden_size / config->num_attention_heads;
    if (config->hidden_size % config->num_attention_heads || dim < head_dim_field.minimum ||
        dim > head_dim_field.maximum)
        return error_set(MUSTER_ERR_ARGUMENT,
                         "%s: head_dim is missing, and hidden_size = %d over num_attention_heads = %d gives none of %d "
                         "to %d",
                         label, config->hidden_size, config->num_attention_heads, head_dim_field.minimum,
                         head_dim_field.maximum);
    config->head_dim = dim;
    return MUSTER_OK;
}

/* Null means that heads share no keys. */
static muster_status read_kv_heads(const json_t *root, const char *label, struct model_config *config)
{
    if (!json_is_null(json_object_get(root, kv_heads_field.name)))
        return read_integer(root, label, &kv_heads_field, config);
    config->num_key_value_heads = config->num_attention_heads;
    return MUSTER_OK;
}

/* transformers 5 writes num_local_experts. */
static muster_status read_experts(const json_t *root, const char *label, struct model_config *config)
{
    struct model_config other = {0};
    bool local = !absent_or_null(json_object_get(root, experts_fields[1].name));
    bool both = local && !absent_or_null(json_object_get(root, experts_fields[0].name));
    muster_status status = read_integer(root, label, &experts_fields[local], config);
    if (status == MUSTER_OK && both)
        status = read_integer(root, label, &experts_fields[0], &other);
    if (status == MUSTER_OK && both && other.num_experts != config->num_experts)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: num_experts = %d, but num_local_experts = %d: they must agree",
                         label, other.num_experts, config->num_experts);
    return status;
}

/* ---- The whole ---- */

static muster_status read_integers(const json_t *root, const char *label, struct model_config *config)
{
    muster_status status = MUSTER_OK;
    for (int i = 0; i < INTEGER_FIELDS && status == MUSTER_OK; i++)
        status = read_integer(root, label, &integer_fields[i], config);
    if (status == MUSTER_OK)
        status = read_kv_heads(root, label, config);
    if (status == MUSTER_OK)
        status = read_head_dim(root, label, config);
    if (status == MUSTER_OK)
        status = read_experts(root, label, config);
    return status;
}

/* Left out, it is false: a checkpoint that ties them has no lm_head.weight, and is refused for that. */
static muster_status read_tie(const json_t *root, const char *label, bool *tie)
{
    if (absent_or_null(json_object_get(root, "tie_word_embeddings")))
        return MUSTER_OK;
    return read_flag(root, label, "tie_word_embeddings", tie);
}

static muster_status read_others(const json_t *root, const char *label, struct model_config *config)
{
    muster_status status =
        read_number(json_object_get(root, "rms_norm_eps"), label, "rms_norm_eps", 0, 1, &config->rms_norm_eps);
    if (status == MUSTER_OK)
        status = read_rope(root, label, &config->rope_theta);
    if (status == MUSTER_OK)
        status = read_flag(root, label, "norm_topk_prob", &config->norm_topk_prob);
    if (status == MUSTER_OK)
        status = read_tie(root, label, &config->tie_word_embeddings);
    return status;
}

static muster_status check_together(const struct model_config *c, const char *label)
{
    if (c->hidden_size % 4)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: hidden_size = %d, must be a multiple of 4 (16 bytes of fp32)", label,
                         c->hidden_size);
    if (c->head_dim % 2)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: head_dim = %d, must be even, for rotary positions", label,
                         c->head_dim);
    if (c->num_attention_heads % c->num_key_value_heads)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: num_key_value_heads = %d must divide num_attention_heads = %d",
                         label, c->num_key_value_heads, c->num_attention_heads);
    if (c->num_experts_per_tok > c->num_experts)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: num_experts_per_tok = %d, must be at most num_experts = %d", label,
                         c->num_experts_per_tok, c->num_experts);
    return MUSTER_OK;
}

static muster_status read_root(const json_t *root, const char *label, struct model_config *config)
{
    struct model_config read = {0};
    if (!json_is_object(root))
        return wrong_type(label, "the file", "an object", root);
    muster_status status = check_text(root, label, "model_type", "qwen3_moe");
    if (status == MUSTER_OK)
        status = check_text(root, label, "hidden_act", "silu");
    if (status == MUSTER_OK)
        status = refuse_unbuilt(root, label);
    if (status == MUSTER_OK)
        status = read_integers(root, label, &read);
    if (status == MUSTER_OK)
        status = read_others(root, label, &read);
    if (status == MUSTER_OK)
        status = check_together(&read, label);
    if (status == MUSTER_OK)
        *config = read;
    return status;
}

muster_status model_config_parse(const char *text, size_t bytes, const char *label, struct model_config *config)
{
    json_error_t error;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (!root)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: not JSON: line %d, column %d: %s", label, error.line, error.column,
                         error.text);
    muster_status status = read_root(root, label, config);
    json_decref(root);
    return status;
}

static muster_status read_text(FILE *in, const char *path, char *text, size_t *bytes)
{
    *bytes = fread(text, 1, MODEL_CONFIG_MAX_BYTES + 1, in);
    if (ferror(in))
        return error_set(MUSTER_ERR_ARGUMENT, "%s: cannot be read: %s", path, strerror(errno));
    if (*bytes > MODEL_CONFIG_MAX_BYTES)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: larger than %d bytes", path, MODEL_CONFIG_MAX_BYTES);
    return MUSTER_OK;
}

muster_status model_config_read(const char *model_dir, struct model_config *config)
{
    char path[4096];
    size_t bytes = 0;
    if (!model_dir || snprintf(path, sizeof(path), "%s/config.json", model_dir) >= (int)sizeof(path))
        return error_set(MUSTER_ERR_ARGUMENT, "model_dir: must be a path of at most %zu bytes", sizeof(path) - 13);
    FILE *in = fopen(path, "rb");
    if (!in)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: cannot be opened: %s", path, strerror(errno));
    char *text = malloc(MODEL_CONFIG_MAX_BYTES + 1);
    muster_status status =
        text ? read_text(in, path, text, &bytes) : error_set(MUSTER_ERR_MEMORY, "%s: no memory to read it", path);
    if (status == MUSTER_OK)
        status = model_config_parse(text, bytes, path, config);
    free(text);
    fclose(in);
    return status;
}
