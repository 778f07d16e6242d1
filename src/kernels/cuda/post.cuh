// SPDX-License-Identifier: Apache-2.0
/*
 * Flags that many warps of a block want raised. A release waits for every store of the multiprocessor that is under way,
 * and while rows stream there are always some: with a release for each row the warps would spend their time on those. So
 * they post their flags, and one warp, the block's postman, fences for all that it finds and then stores them.
 */
#ifndef CUDA_POST_CUH
#define CUDA_POST_CUH

#include "kernels/cuda/memory.cuh"

enum { POST_BOXES = 32 }; /* one for each warp of a block, which has no more */

/* A flag for each lane. In shared memory. */
struct post_box {
    uint64_t *flag[32]; /* NULL: none */
    uint32_t full; /* since the owner filled it, until the postman has emptied it */
};

struct post_office {
    struct post_box box[POST_BOXES];
    uint32_t open; /* warps that may still post */
};

/* Once, by all threads of the block, before a barrier. */
__device__ __forceinline__ void post_open(struct post_office *office, int warps)
{
    if (threadIdx.x < POST_BOXES)
        office->box[threadIdx.x].full = 0;
    if (threadIdx.x == 0)
        office->open = (uint32_t)warps;
}

/* What this lane's flag (NULL: none) tells of is stored, and known to be stored by this lane. The whole warp. */
__device__ inline void post_flags(struct post_office *office, uint64_t *flag)
{
    struct post_box *box = &office->box[threadIdx.x / 32];
    while (share_read(&box->full)) /* the postman waits for stores, which end */
        __nanosleep(50);
    __syncwarp();
    box->flag[threadIdx.x & 31] = flag;
    __syncwarp();
    if ((threadIdx.x & 31) == 0)
        share_write(&box->full, 1);
}

/* The warp posts no more. */
__device__ __forceinline__ void post_close(struct post_office *office)
{
    __syncwarp();
    if ((threadIdx.x & 31) == 0)
        share_add(&office->open, ~0u);
}

/*
 * The postman's round, until all warps have closed. X5: whoever posted a flag had stored what it tells of; that happened
 * before this warp saw the box full, the fence comes after that, and the flag after the fence.
 */
__device__ inline void post_deliver(struct post_office *office, uint64_t stamp)
{
    int lane = threadIdx.x & 31;
    for (;;) {
        bool open = share_read(&office->open) != 0; /* before the boxes: what was posted last is seen */
        __syncwarp();
        bool full = share_read(&office->box[lane].full) != 0;
        unsigned boxes = __ballot_sync(~0u, full);
        if (!boxes && !__any_sync(~0u, open))
            return;
        if (boxes)
            __threadfence_system();
        else
            __nanosleep(100);
        for (unsigned left = boxes; left; left &= left - 1) {
            uint64_t *flag = office->box[__ffs(left) - 1].flag[lane];
            if (flag)
                word_store(flag, stamp);
        }
        __syncwarp();
        if (full)
            share_write(&office->box[lane].full, 0);
    }
}

#endif
