// SPDX-License-Identifier: Apache-2.0
/* Places in the regions of the ranks. */
#ifndef CUDA_REGION_CUH
#define CUDA_REGION_CUH

#include "kernels/cuda/turn.cuh"

/* The place at `offset` in the region of `rank`. */
__device__ __forceinline__ unsigned char *region_at(const struct turn *turn, int rank, uint64_t offset)
{
    return turn->peers[rank] + offset;
}

/* Index of row j of rank r in an array of [R][T] rows. */
__device__ __forceinline__ size_t row_at(const struct exchange_shape &shape, int rank, int32_t j)
{
    return (size_t)rank * (size_t)shape.tokens + (size_t)j;
}

/* Line `of` at `offset` in the region of `rank`. */
__device__ __forceinline__ struct exchange_line *line_at(const struct turn *turn, int rank, uint64_t offset, int of)
{
    return (struct exchange_line *)region_at(turn, rank, offset) + of;
}

#endif
