// SPDX-License-Identifier: Apache-2.0
/* Places in the regions of the ranks. */
#ifndef CUDA_REGION_CUH
#define CUDA_REGION_CUH

#include "kernels/cuda/turn.cuh"

/* The place at `offset` in the region of `rank`. */
__device__ __forceinline__ unsigned char *region_at(const struct turn *turn, int rank, uint64_t offset)
{
    return turn->view.peers[rank] + offset;
}

/* The same in this rank's own, which is known without a look at the view. */
__device__ __forceinline__ unsigned char *own_at(const struct cuda_launch &l, uint64_t offset)
{
    return l.own.base + offset;
}

/* Index of row j of rank r in an array of [R][T] rows. */
__device__ __forceinline__ size_t row_at(const struct exchange_shape &shape, int rank, int32_t j)
{
    return (size_t)rank * (size_t)shape.tokens + (size_t)j;
}

/* Line `of` of those that begin at `lines`. */
__device__ __forceinline__ struct exchange_line *line_at(unsigned char *lines, int of)
{
    return (struct exchange_line *)lines + of;
}

#endif
