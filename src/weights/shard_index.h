// SPDX-License-Identifier: Apache-2.0
/*
 * The index of a checkpoint that is split over several files, model.safetensors.index.json: an object whose weight_map
 * names for each tensor the file (the shard) that holds it. Nothing here touches a file.
 *
 * The index is checked strictly: no tensor twice, and shards are plain file names that end in .safetensors, so that none
 * lies outside the index's folder. The sizes in its metadata are not used: those of the shards themselves count.
 */
#ifndef WEIGHTS_SHARD_INDEX_H
#define WEIGHTS_SHARD_INDEX_H

#include <stddef.h>

#define SHARD_INDEX_MAX_BYTES 100000000u
#define SHARD_INDEX_MAX_SHARDS 4096u

struct shard_entry {
    const char *tensor;
    size_t shard; /* its number in shard_index.shard */
};

struct shard_index {
    void *json; /* owns all names */
    struct shard_entry *entry; /* [tensors], in the order of their names, as strcmp has it */
    size_t tensors;
    const char **shard; /* [shards] file names, in order */
    size_t shards;
};

/* Returns 0, or -1 with a sentence in `error` that begins with `label`; *out is then untouched. */
int shard_index_parse(const char *text, size_t bytes, const char *label, struct shard_index *out, char *error,
                      size_t error_bytes);
void shard_index_free(struct shard_index *index);

/* The entry of that tensor, or NULL. */
const struct shard_entry *shard_index_find(const struct shard_index *index, const char *tensor);

#endif
