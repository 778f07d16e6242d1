// SPDX-License-Identifier: Apache-2.0
/*
 * The tensors of a checkpoint's folder, whether they lie in one file or in several:
 *
 *     model.safetensors                  all tensors; if it is there, nothing else is looked at
 *     model.safetensors.index.json       names the shard of each tensor, else
 *
 * Every shard holds exactly the tensors that the index maps to it, so no tensor lies in two of them. All are mapped and
 * checked on opening (safetensors.h); after that a tensor that is found can be read. Errors name the file, and the tensor
 * where one is to blame; they touch no output.
 */
#ifndef WEIGHTS_CHECKPOINT_H
#define WEIGHTS_CHECKPOINT_H

#include "weights/safetensors.h"

struct checkpoint;

/* Returns 0, or -1 with the reason in `error`. */
int checkpoint_open(const char *folder, struct checkpoint **out, char *error, size_t error_bytes);

/* Frees the handle, all tensors and names, and the mappings; NULL is allowed. */
void checkpoint_close(struct checkpoint *checkpoint);

/* The path of the file, or of the index. */
const char *checkpoint_label(const struct checkpoint *checkpoint);

size_t checkpoint_count(const struct checkpoint *checkpoint);

/* The tensor of that name, or NULL. */
const struct safetensors_tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name);

/* The tensor of that name with exactly this type and shape, or NULL with the reason in `error`. */
const struct safetensors_tensor *checkpoint_require(const struct checkpoint *checkpoint, const char *name,
                                                    enum safetensors_dtype dtype, unsigned ndim, const uint64_t *shape,
                                                    char *error, size_t error_bytes);

#endif
