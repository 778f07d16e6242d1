// SPDX-License-Identifier: Apache-2.0
/*
 * Flags that many warps of a block want raised. A release waits for all stores that are under way, other warps' too, and while
 * rows stream there are always some: with a release for each row the warps would spend their time on those. So they post
 * their flags, and one warp, the block's postman, fences for all that it finds and then stores them.
 *
 * Warps of one block wait for each other here, without a deadline: none of them waits for a peer meanwhile.
 */
#ifndef CUDA_POST_CUH
#define CUDA_POST_CUH

#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/region.cuh"

enum { POST_WARPS = 32, POST_BOXES = 2, POST_RANK_SHIFT = 24 };

/* A flag for each lane. In shared memory. */
struct post_box {
    uint32_t flag[32]; /* rank << POST_RANK_SHIFT | index in the array of flags; all ones: none */
    uint32_t full; /* since a warp filled it, until the postman has emptied it */
};

struct post_office {
    struct post_box box[POST_BOXES][POST_WARPS];
    uint32_t open; /* warps that may still post */
};

static_assert(((uint64_t)MUSTER_MAX_RANKS << POST_RANK_SHIFT) <= UINT64_C(1) << 32 &&
                  (uint64_t)MUSTER_MAX_RANKS * 65536 <= UINT64_C(1) << POST_RANK_SHIFT,
              "a rank, and the index of any row, must fit");

__device__ __forceinline__ uint32_t post_flag(int rank, size_t index)
{
    return (uint32_t)rank << POST_RANK_SHIFT | (uint32_t)index;
}

/* Once, by all threads of the block, before a barrier. */
__device__ __forceinline__ void post_open(struct post_office *office, int warps)
{
    for (int i = threadIdx.x; i < POST_BOXES * POST_WARPS; i += blockDim.x)
        office->box[i / POST_WARPS][i % POST_WARPS].full = 0;
    if (threadIdx.x == 0)
        office->open = (uint32_t)warps;
}

/* What the lanes' flags tell of is stored, and known to be stored by this warp, which has filled *posted boxes so far. */
__device__ inline void post_flags(struct post_office *office, uint32_t *posted, uint32_t flag)
{
    if (!__any_sync(~0u, flag != ~0u))
        return;
    struct post_box *box = &office->box[(*posted)++ % POST_BOXES][threadIdx.x / 32];
    while (share_read(&box->full))
        __nanosleep(50);
    __syncwarp();
    box->flag[threadIdx.x & 31] = flag;
    __syncwarp();
    if ((threadIdx.x & 31) == 0)
        share_write(&box->full, 1);
}

/* The warp posts no more. */
__device__ inline void post_close(struct post_office *office)
{
    if ((threadIdx.x & 31) == 0)
        share_add(&office->open, ~0u);
}

/* By all lanes of the postman: raises what is in the boxes. False: there was nothing. */
__device__ inline bool post_empty(const struct turn *turn, struct post_office *office, uint64_t flags)
{
    int lane = threadIdx.x & 31;
    bool full[POST_BOXES], any = false;
    for (int i = 0; i < POST_BOXES; i++)
        any = (full[i] = share_read(&office->box[i][lane].full)) || any;
    if (!__any_sync(~0u, any))
        return false;
    __syncwarp(); /* what the boxes' owners have stored, the whole warp may see */
    __threadfence_system();
    for (int i = 0; i < POST_BOXES; i++)
        for (unsigned left = __ballot_sync(~0u, full[i]); left; left &= left - 1) {
            uint32_t flag = office->box[i][__ffs(left) - 1].flag[lane];
            if (flag != ~0u)
                word_store((uint64_t *)region_at(turn, (int)(flag >> POST_RANK_SHIFT), flags) +
                               (flag & ((1u << POST_RANK_SHIFT) - 1)),
                           turn->stamp);
        }
    __syncwarp();
    for (int i = 0; i < POST_BOXES; i++)
        if (full[i])
            share_write(&office->box[i][lane].full, 0);
    return true;
}

/*
 * The postman's rounds, until all warps have closed; `flags` is where the array of flags lies in every region. X5: whoever
 * posted a flag had stored what it tells of; that happened before this warp saw the box full, the fence comes after that,
 * and the flag after the fence.
 */
__device__ inline void post_deliver(const struct turn *turn, struct post_office *office, uint64_t flags)
{
    for (;;) {
        bool open = share_read(&office->open) != 0; /* before the boxes: what was posted last is seen */
        __syncwarp();
        if (post_empty(turn, office, flags))
            continue;
        if (!__any_sync(~0u, open))
            return;
        __nanosleep(100);
    }
}

#endif
