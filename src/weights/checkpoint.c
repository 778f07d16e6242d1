// SPDX-License-Identifier: Apache-2.0
#include "weights/checkpoint.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "weights/map.h"
#include "weights/shard_index.h"

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"

struct item {
    const struct safetensors_tensor *tensor;
    const struct safetensors *shard; /* that it lies in */
};

struct checkpoint {
    char label[PATH_MAX];
    struct safetensors **shard;
    size_t shards;
    struct item *item; /* in the order of the tensors' names */
    size_t count;
};

static int join_path(const struct refusal *to, const char *folder, const char *name, char path[PATH_MAX])
{
    if (snprintf(path, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX) {
        return refuse(to, NULL, "the path is too long with %s: at most %d bytes", name, PATH_MAX - 1);
    }
    return 0;
}

static int allocate(const struct refusal *to, struct checkpoint *c, size_t shards)
{
    c->shard = calloc(shards, sizeof(struct safetensors *));
    return c->shard != NULL ? 0 : refuse(to, NULL, "out of memory for %zu shards", shards);
}

static int allocate_items(const struct refusal *to, struct checkpoint *c, size_t count)
{
    c->item = calloc(count + 1, sizeof(*c->item)); /* calloc of 0 may give NULL */
    c->count = count;
    return c->item != NULL ? 0 : refuse(to, NULL, "out of memory for %zu tensors", count);
}

/* ---- One file ---- */

static int open_single(const struct refusal *to, struct checkpoint *c)
{
    if (allocate(to, c, 1) != 0 || safetensors_open(c->label, &c->shard[0], to->error, to->error_bytes) != 0) {
        return -1;
    }
    c->shards = 1;
    if (allocate_items(to, c, safetensors_count(c->shard[0])) != 0) {
        return -1;
    }
    for (size_t i = 0; i < c->count; i++) {
        c->item[i] = (struct item){safetensors_at(c->shard[0], i), c->shard[0]};
    }
    return 0;
}

/* ---- Several ---- */

/* A tensor of the shard, to say what it is needed for. */
static const char *example_of(const struct shard_index *index, size_t shard)
{
    const struct shard_entry *entry = index->entry;
    while (entry->shard != shard) {
        entry++;
    }
    return entry->tensor;
}

static int open_shard(const struct refusal *to, const char *folder, const struct shard_index *index,
                      struct checkpoint *c)
{
    char path[PATH_MAX];
    size_t number = c->shards;
    if (join_path(to, folder, index->shard[number], path) != 0) {
        return -1;
    }
    if (safetensors_open(path, &c->shard[number], to->error, to->error_bytes) != 0) {
        return refuse_more(to, " (" INDEX " has tensor '%.100s' in it)", example_of(index, number));
    }
    c->shards++;
    return 0;
}

/* Every tensor of a shard must be the index's, and here by the index. */
static int take_shard(const struct refusal *index_to, const struct shard_index *index, size_t number,
                      struct checkpoint *c)
{
    const struct safetensors *shard = c->shard[number];
    const struct refusal to = {safetensors_label(shard), index_to->error, index_to->error_bytes};
    for (size_t i = 0; i < safetensors_count(shard); i++) {
        const struct safetensors_tensor *tensor = safetensors_at(shard, i);
        const struct shard_entry *entry = shard_index_find(index, tensor->name);
        if (entry == NULL) {
            return refuse(&to, tensor->name, "is not in the weight_map of " INDEX);
        }
        if (entry->shard != number) {
            return refuse(&to, tensor->name, "lies here, but " INDEX " has it in '%.100s': it must lie in one shard",
                          index->shard[entry->shard]);
        }
        c->item[entry - index->entry] = (struct item){tensor, shard};
    }
    return 0;
}

static int check_all_found(const struct refusal *index_to, const struct shard_index *index, const struct checkpoint *c)
{
    for (size_t i = 0; i < c->count; i++) {
        if (c->item[i].tensor == NULL) {
            const struct refusal to = {safetensors_label(c->shard[index->entry[i].shard]), index_to->error,
                                       index_to->error_bytes};
            return refuse(&to, index->entry[i].tensor, "is missing: " INDEX " has it here");
        }
    }
    return 0;
}

static int open_shards(const struct refusal *to, const char *folder, const struct shard_index *index,
                       struct checkpoint *c)
{
    if (allocate(to, c, index->shards) != 0 || allocate_items(to, c, index->tensors) != 0) {
        return -1;
    }
    while (c->shards < index->shards) {
        if (open_shard(to, folder, index, c) != 0) {
            return -1;
        }
    }
    for (size_t shard = 0; shard < c->shards; shard++) {
        if (take_shard(to, index, shard, c) != 0) {
            return -1;
        }
    }
    return check_all_found(to, index, c);
}

static int read_index(const struct refusal *to, struct shard_index *index)
{
    void *text = NULL;
    size_t bytes = 0;
    if (map_file(to, &text, &bytes) != 0) {
        return -1;
    }
    int result = shard_index_parse(text, bytes, to->label, index, to->error, to->error_bytes);
    unmap_file(text, bytes);
    return result;
}

static int open_indexed(const struct refusal *to, const char *folder, struct checkpoint *c)
{
    struct shard_index index;
    if (read_index(to, &index) != 0) {
        return -1;
    }
    int result = open_shards(to, folder, &index, c);
    shard_index_free(&index);
    return result;
}

/* ---- The whole ---- */

static int exists(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 || errno != ENOENT; /* what is there and cannot be read is an error of its own */
}

/* A single file wins, as it does for transformers. */
static int open_folder(const char *folder, struct checkpoint *c, char *error, size_t error_bytes)
{
    const struct refusal folder_to = {folder, error, error_bytes};
    const struct refusal to = {c->label, error, error_bytes};
    char single[PATH_MAX];
    if (join_path(&folder_to, folder, INDEX, c->label) != 0 || join_path(&folder_to, folder, SINGLE, single) != 0) {
        return -1;
    }
    if (exists(single)) {
        memcpy(c->label, single, sizeof(single));
        return open_single(&to, c);
    }
    if (!exists(c->label)) {
        return refuse(&folder_to, NULL, "there is neither " SINGLE " nor " INDEX " in this folder");
    }
    return open_indexed(&to, folder, c);
}

int checkpoint_open(const char *folder, struct checkpoint **out, char *error, size_t error_bytes)
{
    const struct refusal to = {folder, error, error_bytes};
    struct checkpoint *c = calloc(1, sizeof(*c));
    if (c == NULL) {
        return refuse(&to, NULL, "out of memory");
    }
    if (open_folder(folder, c, error, error_bytes) != 0) {
        checkpoint_close(c);
        return -1;
    }
    *out = c;
    return 0;
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    if (checkpoint == NULL) {
        return;
    }
    for (size_t i = 0; i < checkpoint->shards; i++) {
        safetensors_close(checkpoint->shard[i]);
    }
    free(checkpoint->shard);
    free(checkpoint->item);
    free(checkpoint);
}

const char *checkpoint_label(const struct checkpoint *checkpoint)
{
    return checkpoint->label;
}

size_t checkpoint_count(const struct checkpoint *checkpoint)
{
    return checkpoint->count;
}

static int compare_name(const void *name, const void *item)
{
    return strcmp(name, ((const struct item *)item)->tensor->name);
}

static const struct item *find(const struct checkpoint *checkpoint, const char *name)
{
    return bsearch(name, checkpoint->item, checkpoint->count, sizeof(*checkpoint->item), compare_name);
}

const struct safetensors_tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name)
{
    const struct item *item = find(checkpoint, name);
    return item != NULL ? item->tensor : NULL;
}

const struct safetensors_tensor *checkpoint_require(const struct checkpoint *checkpoint, const char *name,
                                                    enum safetensors_dtype dtype, unsigned ndim, const uint64_t *shape,
                                                    char *error, size_t error_bytes)
{
    const struct refusal to = {checkpoint->label, error, error_bytes};
    const struct item *item = find(checkpoint, name);
    if (item == NULL) {
        refuse(&to, name, "is missing; the model needs it");
        return NULL;
    }
    return safetensors_require(item->shard, name, dtype, ndim, shape, error, error_bytes);
}
