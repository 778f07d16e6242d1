// SPDX-License-Identifier: Apache-2.0
/* model.safetensors.index.json: what is read from it, and that what is malformed or hostile is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights/shard_index.h"

#define A "model-00001-of-00002.safetensors"
#define B "model-00002-of-00002.safetensors"
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { ERROR_BYTES = 512 };

static int parse(const char *text, struct shard_index *index, char error[ERROR_BYTES])
{
    return shard_index_parse(text, strlen(text), "dir/index.json", index, error, ERROR_BYTES);
}

static void test_good_index(void **state)
{
    (void)state;
    struct shard_index index;
    char error[ERROR_BYTES] = "";
    const char *text = "{\"metadata\": {\"total_size\": 12, \"total_parameters\": 6, \"by\": null},"
                       " \"weight_map\": {\"z\": \"" B "\", \"a\": \"" A "\", \"m\": \"" B "\"}, \"more\": 1}";
    assert_int_equal(parse(text, &index, error), 0);
    assert_int_equal(index.shards, 2);
    assert_string_equal(index.shard[0], A);
    assert_string_equal(index.shard[1], B);
    assert_int_equal(index.tensors, 3);
    assert_string_equal(index.entry[0].tensor, "a");
    assert_string_equal(index.entry[2].tensor, "z");
    assert_int_equal(shard_index_find(&index, "a")->shard, 0);
    assert_int_equal(shard_index_find(&index, "m")->shard, 1);
    assert_int_equal(shard_index_find(&index, "z")->shard, 1);
    assert_null(shard_index_find(&index, "b"));
    assert_null(shard_index_find(&index, ""));
    shard_index_free(&index);
}

/* Any one of these must be refused, by a text that begins with the label and holds `says`; nothing else is touched. */
static void refused_bytes(const char *text, size_t bytes, const char *says)
{
    struct shard_index index, before;
    char error[ERROR_BYTES] = "";
    memset(&index, 0x5a, sizeof(index));
    before = index;
    int result = shard_index_parse(text, bytes, "dir/index.json", &index, error, sizeof(error));
    if (result != -1 || strncmp(error, "dir/index.json: ", 16) != 0 || !strstr(error, says))
        fail_msg("%.200s\nwanted: %s\ngot:    %s", text, says, error);
    for (const char *at = error; *at; at++)
        assert_true((unsigned char)*at >= 0x20 && *at != 0x7f);
    assert_memory_equal(&index, &before, sizeof(index));
    assert_int_equal(shard_index_parse(text, bytes, "dir/index.json", &index, NULL, 0), -1);
}

static void test_bad_indexes(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "not JSON: line 1"},
        {"{", "not JSON: line 1"},
        {"\x08\0\0\0", "not JSON"},
        {"{\"weight_map\": {\"a\": \"" A "\", \"a\": \"" B "\"}}", "duplicate object key near '\"a\"'"},
        {"{\"weight_map\": {}, \"weight_map\": {}}", "duplicate object key"},
        {"[]", "must be an object"},
        {"7", "must be an object"},
        {"{}", "has no weight_map"},
        {"{\"weight_map\": {}}", "has no weight_map"},
        {"{\"weight_map\": [\"" A "\"]}", "has no weight_map"},
        {"{\"weight_map\": {\"a\": 1}}", "tensor 'a' is not mapped to the name of a file"},
        {"{\"weight_map\": {\"a\": null}}", "tensor 'a' is not mapped to the name of a file"},
        {"{\"weight_map\": {\"a\": {\"b\": \"" A "\"}}}", "tensor 'a' is not mapped to the name of a file"},
        {"{\"weight_map\": {\"a\": \"../x.safetensors\"}}",
         "tensor 'a' is mapped to '../x.safetensors': shards must lie"},
        {"{\"weight_map\": {\"a\": \"/etc/x.safetensors\"}}", "'/etc/x.safetensors': shards must lie in the folder"},
        {"{\"weight_map\": {\"a\": \"sub/x.safetensors\"}}", "shards must lie in the folder of the index"},
        {"{\"weight_map\": {\"b\": \"" A "\", \"a\": \"\"}}", "tensor 'a' is mapped to '', which is no file name"},
        {"{\"weight_map\": {\"a\": \"..\"}}", "tensor 'a' is mapped to '..', which is no file name"},
        {"{\"weight_map\": {\"a\": \".safetensors\"}}", "which is no file name that ends in .safetensors"},
        {"{\"weight_map\": {\"a\": \"pytorch_model-00001-of-00002.bin\"}}", "no file name that ends in .safetensors"},
        {"{\"weight_map\": {\"\\u001b[31m\": \"\\u0007\"}}", "tensor '?[31m' is mapped to '?'"},
        {"{\"weight_map\": {\"a\": \"x\\u0000.safetensors\"}}", "not JSON"},
        {"{\"weight_map\": {\"a\": \"" A "\"}, \"metadata\": 5}", "metadata must be an object"},
        {"{\"weight_map\": {\"a\": \"" A "\"}, \"metadata\": {\"total_size\": -1}}", "total_size must be a number"},
        {"{\"weight_map\": {\"a\": \"" A "\"}, \"metadata\": {\"total_size\": \"9\"}}", "total_size must be a number"},
        {"{\"weight_map\": {\"a\": \"" A "\"}, \"metadata\": {\"total_size\": 1e999}}", "not JSON"},
    };
    for (size_t i = 0; i < COUNT(bad); i++)
        refused_bytes(bad[i].text, strlen(bad[i].text), bad[i].says);
    refused_bytes("{\"weight_map\": {\"a\": \"" A "\"}}\0{}", 34 + strlen(A), "not JSON");
}

/* Sizes that nobody means: a number too large to be any file's is allowed, since nothing is taken from it. */
static void test_absurd_sizes(void **state)
{
    (void)state;
    struct shard_index index;
    char error[ERROR_BYTES] = "";
    assert_int_equal(parse("{\"weight_map\": {\"a\": \"" A "\"}, \"metadata\": {\"total_size\": 9223372036854775807}}",
                           &index, error),
                     0);
    shard_index_free(&index);
    size_t bytes = (size_t)SHARD_INDEX_MAX_BYTES + 1;
    char *large = malloc(bytes);
    assert_non_null(large);
    memset(large, ' ', bytes);
    refused_bytes(large, bytes, "has 100000001 bytes, the limit is 100000000");
    memset(large, '[', 200000);
    refused_bytes(large, 200000, "not JSON");
    free(large);
}

static char *index_of_shards(unsigned shards, int name_bytes)
{
    json_t *map = json_object();
    for (unsigned i = 0; i < shards; i++) {
        char tensor[16], name[512];
        snprintf(tensor, sizeof(tensor), "t%u", i);
        snprintf(name, sizeof(name), "%0*u.safetensors", name_bytes, i);
        json_object_set_new(map, tensor, json_string(name));
    }
    json_t *root = json_pack("{s: o}", "weight_map", map);
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

static void test_many_shards(void **state)
{
    (void)state;
    struct shard_index index;
    char error[ERROR_BYTES] = "";
    char *text = index_of_shards(SHARD_INDEX_MAX_SHARDS, 5);
    assert_int_equal(parse(text, &index, error), 0);
    assert_int_equal(index.shards, SHARD_INDEX_MAX_SHARDS);
    for (size_t i = 1; i < index.shards; i++)
        assert_true(strcmp(index.shard[i - 1], index.shard[i]) < 0);
    for (size_t i = 0; i < index.tensors; i++)
        assert_int_equal(atoi(index.shard[index.entry[i].shard]), atoi(index.entry[i].tensor + 1));
    shard_index_free(&index);
    free(text);
    text = index_of_shards(SHARD_INDEX_MAX_SHARDS + 1, 5);
    refused_bytes(text, strlen(text), "names 4097 shards, the limit is 4096");
    free(text);
    text = index_of_shards(1, 300);
    refused_bytes(text, strlen(text), "tensor 't0' is mapped to '0000");
    free(text);
}

static int allocations_left;

static void *scarce_malloc(size_t size)
{
    return allocations_left-- > 0 ? malloc(size) : NULL;
}

/* The JSON parser runs out of memory at its n-th allocation, for every n: refused each time, nothing leaked. */
static void test_out_of_memory_is_refused(void **state)
{
    (void)state;
    int result = -1, refusals = 0;
    for (int n = 0; result != 0 && n < 1000; n++) {
        char error[ERROR_BYTES] = "";
        struct shard_index index;
        allocations_left = n;
        json_set_alloc_funcs(scarce_malloc, free);
        result = parse("{\"weight_map\": {\"a\": \"" A "\", \"b\": \"" B "\"}}", &index, error);
        json_set_alloc_funcs(malloc, free);
        assert_true(result == 0 || error[0] != '\0');
        refusals += result != 0;
        if (result == 0)
            shard_index_free(&index);
    }
    assert_int_equal(result, 0);
    assert_true(refusals > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_index),
        cmocka_unit_test(test_bad_indexes),
        cmocka_unit_test(test_absurd_sizes),
        cmocka_unit_test(test_many_shards),
        cmocka_unit_test(test_out_of_memory_is_refused),
    };
    return cmocka_run_group_tests_name("shard_index", tests, NULL, NULL);
}
