// SPDX-License-Identifier: Apache-2.0
/*
 * Rows through shared memory by the bulk copy engine (sm_90 and newer): one thread asks for a whole row, and the engine
 * moves it while the thread does something else. On older devices a warp copies instead; the calls are the same.
 *
 * A stage is a piece of shared memory that one warp uses for one row after the other.
 */
#ifndef CUDA_BULK_CUH
#define CUDA_BULK_CUH

#include "kernels/cuda/copy.cuh"

struct bulk_stage {
    unsigned char *memory; /* 16-byte aligned */
    uint32_t bytes; /* a multiple of 16 */
    uint64_t *barrier; /* in shared memory; counts the bytes that have come */
    uint32_t phase; /* of the barrier's next completion */
};

__device__ __forceinline__ uint32_t bulk_shared(const void *address)
{
    return (uint32_t)__cvta_generic_to_shared(address);
}

/* The whole warp, once per kernel. */
__device__ __forceinline__ void bulk_open(struct bulk_stage *stage, unsigned char *memory, uint32_t bytes,
                                          uint64_t *barrier)
{
    *stage = {memory, bytes, barrier, 0};
#if __CUDA_ARCH__ >= 900
    if ((threadIdx.x & 31) == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bulk_shared(barrier)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
#endif
    __syncwarp();
}

/* Whether the engine can move it: it takes multiples of 16 bytes, from and to multiples of 16. */
__device__ __forceinline__ bool bulk_can(uintptr_t bits)
{
    return (bits & 15) == 0;
}

/*
 * The engine is a reader of its own: what this thread sees, because it has read a flag, the engine sees after this. Costs as
 * much as the thread has stores under way; not needed for what was stored before the kernel began. The whole warp.
 */
__device__ __forceinline__ void bulk_see()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async;" ::: "memory");
#endif
    __syncwarp();
}

/*
 * So many bytes will be loaded, at most the stage's, in one part or several. What was stored from the stage before has left
 * it (bulk_reuse()).
 */
__device__ __forceinline__ void bulk_expect(struct bulk_stage *stage, uint32_t bytes)
{
#if __CUDA_ARCH__ >= 900
    if ((threadIdx.x & 31) == 0)
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bulk_shared(stage->barrier)),
                     "r"(bytes)
                     : "memory");
#endif
}

/* Begins to load a part of what is expected, to `at` in the stage. */
__device__ __forceinline__ void bulk_load(struct bulk_stage *stage, uint32_t at, const unsigned char *from,
                                          uint32_t bytes)
{
#if __CUDA_ARCH__ >= 900
    if ((threadIdx.x & 31) == 0)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                         bulk_shared(stage->memory) + at),
                     "l"(from), "r"(bytes), "r"(bulk_shared(stage->barrier))
                     : "memory");
#else
    for (uint32_t i = (threadIdx.x & 31) * 16; i < bytes; i += 32 * 16)
        *(uint4 *)(stage->memory + at + i) = stream_load(from + i);
#endif
}

/* Waits for what bulk_load() has begun; the whole warp. It comes: nothing but this device's memory is waited for. */
__device__ __forceinline__ void bulk_wait(struct bulk_stage *stage)
{
#if __CUDA_ARCH__ >= 900
    uint32_t barrier = bulk_shared(stage->barrier), come = 0;
    while (!come)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(come)
                     : "r"(barrier), "r"(stage->phase)
                     : "memory");
    stage->phase ^= 1;
#endif
    __syncwarp();
}

/* Begins to store what is at `at` in the stage; each lane that has a place for it. All lanes of the warp call. */
__device__ __forceinline__ void bulk_store(const struct bulk_stage *stage, uint32_t at, unsigned char *to,
                                           uint32_t bytes)
{
#if __CUDA_ARCH__ >= 900
    if (to)
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
                     "r"(bulk_shared(stage->memory) + at), "r"(bytes)
                     : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
    for (int lane = 0; lane < 32; lane++) {
        unsigned char *place = (unsigned char *)__shfl_sync(~0u, (unsigned long long)to, lane);
        for (uint32_t i = (threadIdx.x & 31) * 16; place && i < bytes; i += 32 * 16)
            stream_store(place + i, *(const uint4 *)(stage->memory + at + i));
    }
#endif
}

/* Waits until the stage may be written again. The whole warp. */
__device__ __forceinline__ void bulk_reuse()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
    __syncwarp();
}

/* A row of any length through the stage, to where each lane wants it (`to`; NULL: nowhere). The whole warp. */
__device__ inline void bulk_move(struct bulk_stage *stage, const unsigned char *from, size_t bytes, unsigned char *to)
{
    for (size_t at = 0; at < bytes; at += stage->bytes) {
        uint32_t part = bytes - at < stage->bytes ? (uint32_t)(bytes - at) : stage->bytes;
        bulk_reuse();
        bulk_expect(stage, part);
        bulk_load(stage, 0, from + at, part);
        bulk_wait(stage);
        bulk_store(stage, 0, to ? to + at : NULL, part);
    }
}

/*
 * Waits until all that was stored from the stage is stored, and known to be by the lanes that had places. The engine says so
 * long before a row has come to a peer: for whoever reads it there a fence at system scope has to follow (post.cuh). The whole
 * warp.
 */
__device__ __forceinline__ void bulk_stored()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
    __syncwarp();
}

/* What the lanes have written into the stage may be stored from it. The whole warp. */
__device__ __forceinline__ void bulk_filled()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncwarp();
}

/* The warp is done with the stage: waits as bulk_stored() does. The whole warp. */
__device__ __forceinline__ void bulk_close(const struct bulk_stage *stage)
{
    bulk_stored();
#if __CUDA_ARCH__ >= 900
    if ((threadIdx.x & 31) == 0)
        asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(bulk_shared(stage->barrier)) : "memory");
#endif
}

#endif
