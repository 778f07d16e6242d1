// SPDX-License-Identifier: Apache-2.0
/*
 * The launches of an exchange's operations: one file each, beside this one. A launch only enqueues; it can be captured.
 * The launch struct is passed by value, so nothing of it needs to outlive the call; what the tensors point at does.
 */
#ifndef CUDA_OPERATIONS_H
#define CUDA_OPERATIONS_H

#include <cuda_runtime_api.h>

#include "kernels/cuda/exchange.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Slots of all ranks together: a block counts routes to each of them in its shared memory. */
enum { OPERATIONS_MAX_SLOTS = 16384 };

/*
 * Threads of a block, at most. Combine adds up 16 bytes with each: 896 are a row of 7168 bf16, and can have 72 registers each. Where
 * threads share a row of dispatch, each has two pieces under way, and in words several, which takes up to 128 (ROW). Where
 * rows are streamed, warps work for themselves, with up to 80: as many as leave room for all stages (STREAM_WARP), or as
 * fast sums take (SUM_WARP).
 */
enum {
    OPERATIONS_MAX_THREADS = 896,
    OPERATIONS_MAX_WARPS = OPERATIONS_MAX_THREADS / 32,
    OPERATIONS_ROW_THREADS = 512,
    OPERATIONS_SUM_WARP_THREADS = 768,
    OPERATIONS_STREAM_WARP_THREADS = 672
};

/* With fewer there would be nobody to do one of the parts. */
enum { OPERATIONS_LEAST_BLOCKS = 4 };

/* Shared memory of a block, where the device has as much. */
enum { OPERATIONS_SHARED_BYTES = 220 * 1024 };

/*
 * How an operation on so many tokens of this rank (at most) shares the multiprocessors it may use. copies: of a dispatch that
 * both sends and receives, and what comes goes into arrays of the caller's.
 */
struct cuda_plan dispatch_plan(const struct exchange_shape *shape, int32_t tokens, bool copies,
                               const struct cuda_limits *limits);
struct cuda_plan combine_plan(const struct exchange_shape *shape, int32_t tokens, const struct cuda_limits *limits);

/* Whether a block's shared memory holds what dispatch needs there, in every plan. */
bool dispatch_fits(const struct exchange_shape *shape, const struct cuda_limits *limits);

/*
 * To be called once per device, the current one, before anything is launched there: loads the kernels and sets their
 * limits. *shared_bytes, what a block may be given, is made less if one of them cannot have as much.
 */
cudaError_t dispatch_prepare(int ordinal, int32_t *shared_bytes);
cudaError_t combine_prepare(int ordinal, int32_t *shared_bytes);

/* Either of send and receive may be NULL: then only the other half is launched. ft: see promise 10. */
cudaError_t dispatch_launch(const struct cuda_launch *launch, const struct dispatch_send_args *send,
                            const struct dispatch_receive_args *receive, bool ft, cudaStream_t stream);
/* tokens: of this rank's dispatch. */
cudaError_t combine_launch(const struct cuda_launch *launch, const struct combine_send_args *send,
                           const struct combine_receive_args *receive, int32_t tokens, bool ft, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
