// SPDX-License-Identifier: Apache-2.0
/* Tensors: how arrays are handed to the library. */
#ifndef MUSTER_MEMORY_H
#define MUSTER_MEMORY_H

#include <stdint.h>

#include "muster/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Type codes and device types have DLPack's values; a test holds them against DLPack's own header. */
enum {
    MUSTER_TYPE_INT = 0,
    MUSTER_TYPE_UINT = 1,
    MUSTER_TYPE_FLOAT = 2,
    MUSTER_TYPE_BFLOAT = 4,
    MUSTER_TYPE_FLOAT8_E4M3FN = 10,
};

enum {
    MUSTER_DEVICE_CPU = 1,
    MUSTER_DEVICE_CUDA = 2,
    MUSTER_DEVICE_CUDA_MANAGED = 13, /* refused everywhere */
};

typedef struct muster_dtype {
    uint8_t code; /* MUSTER_TYPE_... */
    uint8_t bits; /* of one lane */
    uint16_t lanes; /* 1 */
} muster_dtype;

typedef struct muster_device {
    int32_t type; /* MUSTER_DEVICE_... */
    int32_t index;
} muster_device;

/*
 * An array, borrowed for the duration of a call. The layout is DLPack's DLTensor, so a DLTensor pointer can be cast.
 * `strides` counts elements and may be NULL for a compact row-major array; rows must be compact (last stride 1) and
 * outputs must be compact altogether. `byte_offset` is added to `data`.
 *
 * With a CUDA group `device` is {MUSTER_DEVICE_CUDA, the group's device}, and is taken at its word. The struct is read
 * by the call; the array is borrowed until the stream has passed the operation, or for the life of a graph that was
 * captured.
 */
typedef struct muster_tensor {
    void *data;
    muster_device device;
    int32_t ndim;
    muster_dtype dtype;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} muster_tensor;

/* The types in use, for initialisers: muster_tensor t = {.dtype = MUSTER_BF16, ...}. */
#define MUSTER_FP32 ((muster_dtype){MUSTER_TYPE_FLOAT, 32, 1})
#define MUSTER_FP16 ((muster_dtype){MUSTER_TYPE_FLOAT, 16, 1})
#define MUSTER_BF16 ((muster_dtype){MUSTER_TYPE_BFLOAT, 16, 1})
#define MUSTER_FP8 ((muster_dtype){MUSTER_TYPE_FLOAT8_E4M3FN, 8, 1})
#define MUSTER_INT32 ((muster_dtype){MUSTER_TYPE_INT, 32, 1})
#define MUSTER_INT64 ((muster_dtype){MUSTER_TYPE_INT, 64, 1})
#define MUSTER_UINT8 ((muster_dtype){MUSTER_TYPE_UINT, 8, 1})

#ifdef __cplusplus
}
#endif
#endif
