// SPDX-License-Identifier: Apache-2.0
/*
 * Reads safetensors files: 8 bytes of header length (little-endian), a JSON header that names each tensor's type,
 * shape and place, then the tensors' bytes, end to end.
 *
 * The file is mapped read-only, and nothing is copied: pages are read when a tensor's data is touched. The whole header
 * is checked on opening, strictly: every tensor lies inside the file, has the size that its type and shape give, is
 * aligned to its elements, and the tensors cover the data without overlap or hole. So a tensor that is found can be
 * read without another check. What the check cannot prevent is a file cut short later, while it is mapped.
 *
 * Functions that can fail write a sentence into error[error_bytes] (always terminated; error may be NULL when
 * error_bytes is 0) and touch no other output. There is no global state; a handle may be read from several threads.
 */
#ifndef WEIGHTS_SAFETENSORS_H
#define WEIGHTS_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_MAX_HEADER_BYTES 100000000u /* the format's own limit */
#define SAFETENSORS_MAX_DIMS 8u
#define SAFETENSORS_ALIGNMENT 8u /* of the file's first byte; the largest element */

enum safetensors_dtype {
    SAFETENSORS_BOOL,
    SAFETENSORS_U8,
    SAFETENSORS_I8,
    SAFETENSORS_F8_E4M3,
    SAFETENSORS_F8_E5M2,
    SAFETENSORS_F8_E8M0,
    SAFETENSORS_U16,
    SAFETENSORS_I16,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_U32,
    SAFETENSORS_I32,
    SAFETENSORS_F32,
    SAFETENSORS_U64,
    SAFETENSORS_I64,
    SAFETENSORS_F64,
    SAFETENSORS_DTYPES,
};

struct safetensors_tensor {
    const char *name;
    const void *data; /* inside the mapping; NULL when bytes is 0 */
    size_t bytes;
    uint64_t shape[SAFETENSORS_MAX_DIMS];
    unsigned ndim;
    enum safetensors_dtype dtype;
};

struct safetensors;

/* Maps and checks the file at `path`. Returns 0, or -1 with the reason in `error`. */
int safetensors_open(const char *path, struct safetensors **out, char *error, size_t error_bytes);

/*
 * The same for a file's content in memory, which is borrowed: it must stay as it is until safetensors_close, and begin
 * at a multiple of SAFETENSORS_ALIGNMENT. `label` stands for the file's name in messages.
 */
int safetensors_parse(const void *content, size_t size, const char *label, struct safetensors **out, char *error,
                      size_t error_bytes);

/* Frees the handle, all its tensors and names, and the mapping; NULL is allowed. */
void safetensors_close(struct safetensors *file);

/* The file's name, or what stands for it. */
const char *safetensors_label(const struct safetensors *file);

/* Tensors in the order of their names (as strcmp has it). */
size_t safetensors_count(const struct safetensors *file);
const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t index);

/* The tensor of that name, or NULL. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name);

/* The tensor of that name with exactly this type and shape, or NULL with the reason in `error`. */
const struct safetensors_tensor *safetensors_require(const struct safetensors *file, const char *name,
                                                     enum safetensors_dtype dtype, unsigned ndim, const uint64_t *shape,
                                                     char *error, size_t error_bytes);

/* "BF16" and the like, as the header spells it; the bytes of one element. */
const char *safetensors_dtype_name(enum safetensors_dtype dtype);
size_t safetensors_dtype_bytes(enum safetensors_dtype dtype);

#endif
