// SPDX-License-Identifier: Apache-2.0
/* Writes a model's checkpoint once more, split over several files, by means of its own: nothing of the library's. */
#ifndef LIB_SHARDED_H
#define LIB_SHARDED_H

/*
 * Copies config.json and writes the tensors of model_dir/model.safetensors into `shards` files of `folder`, in turn, and
 * their index. What cannot be done ends the program.
 */
void sharded_copy(const char *model_dir, const char *folder, int shards);

/* Removes what sharded_copy has written, and the folder. */
void sharded_remove(const char *folder, int shards);

/* The path of shard 1 to `shards`, or of the index (shard 0); lies in a buffer of this thread until the next call. */
const char *sharded_path(const char *folder, int shard, int shards);

#endif
