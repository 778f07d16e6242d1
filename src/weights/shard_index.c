// SPDX-License-Identifier: Apache-2.0
#include "weights/shard_index.h"

#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "weights/refuse.h"

#define SUFFIX ".safetensors"

static int compare_texts(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static int compare_entries(const void *left, const void *right)
{
    return strcmp(((const struct shard_entry *)left)->tensor, ((const struct shard_entry *)right)->tensor);
}

/* ---- What is refused ---- */

static bool ends_in_suffix(const char *name)
{
    size_t length = strlen(name), suffix = strlen(SUFFIX);
    return length > suffix && strcmp(name + length - suffix, SUFFIX) == 0;
}

static int check_shard_name(const struct refusal *to, const char *tensor, const json_t *value)
{
    const char *name = json_string_value(value);
    if (name == NULL) {
        return refuse(to, tensor, "is not mapped to the name of a file (a string)");
    }
    if (strchr(name, '/') != NULL) {
        return refuse(to, tensor, "is mapped to '%.100s': shards must lie in the folder of the index", name);
    }
    if (!ends_in_suffix(name) || strlen(name) > NAME_MAX) {
        return refuse(to, tensor, "is mapped to '%.100s', which is no file name that ends in " SUFFIX, name);
    }
    return 0;
}

static int check_metadata(const struct refusal *to, const json_t *root)
{
    const json_t *metadata = json_object_get(root, "metadata");
    const json_t *total = json_object_get(metadata, "total_size");
    if (metadata != NULL && !json_is_object(metadata)) {
        return refuse(to, NULL, "metadata must be an object");
    }
    if (total != NULL && !(json_is_number(total) && json_number_value(total) >= 0)) {
        return refuse(to, NULL, "metadata.total_size must be a number from 0 up");
    }
    return 0;
}

/* ---- Reading ---- */

static int read_root(const struct refusal *to, const char *text, size_t bytes, json_t **root)
{
    json_error_t error;
    if (bytes > SHARD_INDEX_MAX_BYTES) {
        return refuse(to, NULL, "has %zu bytes, the limit is %u", bytes, SHARD_INDEX_MAX_BYTES);
    }
    *root = json_loadb(bytes ? text : "", bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (*root == NULL) {
        return refuse(to, NULL, "not JSON: line %d, column %d: %s", error.line, error.column, error.text);
    }
    if (!json_is_object(*root)) {
        return refuse(to, NULL, "must be an object");
    }
    return 0;
}

/* Sorts the names and leaves each only once. Returns how many there are. */
static size_t unique_names(const char **name, size_t count)
{
    size_t kept = 0;
    qsort(name, count, sizeof(*name), compare_texts);
    for (size_t i = 0; i < count; i++) {
        if (kept == 0 || strcmp(name[kept - 1], name[i]) != 0) {
            name[kept++] = name[i];
        }
    }
    return kept;
}

/* shard[] first takes the name of every entry's shard. */
static int list_shards(const struct refusal *to, json_t *map, struct shard_index *index)
{
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value)
    {
        if (check_shard_name(to, tensor, value) != 0) {
            return -1;
        }
        index->shard[index->tensors] = json_string_value(value);
        index->entry[index->tensors++].tensor = tensor;
    }
    index->shards = unique_names(index->shard, index->tensors);
    if (index->shards > SHARD_INDEX_MAX_SHARDS) {
        return refuse(to, NULL, "names %zu shards, the limit is %u", index->shards, SHARD_INDEX_MAX_SHARDS);
    }
    qsort(index->entry, index->tensors, sizeof(*index->entry), compare_entries);
    return 0;
}

static void number_shards(const json_t *map, struct shard_index *index)
{
    for (size_t i = 0; i < index->tensors; i++) {
        const char *name = json_string_value(json_object_get(map, index->entry[i].tensor));
        const char **at = bsearch(&name, index->shard, index->shards, sizeof(*index->shard), compare_texts);
        index->entry[i].shard = (size_t)(at - index->shard);
    }
}

static int read_index(const struct refusal *to, struct shard_index *index)
{
    json_t *map = json_object_get(index->json, "weight_map");
    if (json_object_size(map) == 0) { /* 0 for what is no object */
        return refuse(to, NULL, "has no weight_map (an object that names each tensor's file)");
    }
    if (check_metadata(to, index->json) != 0) {
        return -1;
    }
    index->entry = calloc(json_object_size(map), sizeof(*index->entry));
    index->shard = calloc(json_object_size(map), sizeof(*index->shard));
    if (index->entry == NULL || index->shard == NULL) {
        return refuse(to, NULL, "out of memory for %zu tensors", json_object_size(map));
    }
    if (list_shards(to, map, index) != 0) {
        return -1;
    }
    number_shards(map, index);
    return 0;
}

int shard_index_parse(const char *text, size_t bytes, const char *label, struct shard_index *out, char *error,
                      size_t error_bytes)
{
    const struct refusal to = {label, error, error_bytes};
    struct shard_index index = {0};
    json_t *root = NULL;
    int result = read_root(&to, text, bytes, &root);
    index.json = root;
    if (result == 0) {
        result = read_index(&to, &index);
    }
    if (result != 0) {
        shard_index_free(&index);
        return -1;
    }
    *out = index;
    return 0;
}

void shard_index_free(struct shard_index *index)
{
    free(index->entry);
    free(index->shard);
    json_decref(index->json);
    *index = (struct shard_index){0};
}

const struct shard_entry *shard_index_find(const struct shard_index *index, const char *tensor)
{
    const struct shard_entry key = {.tensor = tensor};
    return bsearch(&key, index->entry, index->tensors, sizeof(key), compare_entries);
}
