// SPDX-License-Identifier: Apache-2.0
/*
 * Loads and stores by what they promise. Ranks see each other's memory at system scope; blocks of one rank at device
 * scope. Names are those of kernels/cpu/memory.h.
 */
#ifndef CUDA_MEMORY_CUH
#define CUDA_MEMORY_CUH

#include <stdint.h>

#include "kernels/exchange.h"

/* Release: whoever reads this stamp also sees what this thread has stored, or knew to be stored, before. */
__device__ __forceinline__ void flag_raise(uint64_t *flag, uint64_t stamp)
{
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(flag), "l"(stamp) : "memory");
}

/* Acquire: the other half. */
__device__ __forceinline__ uint64_t flag_read(const uint64_t *flag)
{
    uint64_t stamp;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(stamp) : "l"(flag) : "memory");
    return stamp;
}

/* A look at a word that changes; orders nothing. */
__device__ __forceinline__ uint64_t word_look(const uint64_t *word)
{
    uint64_t value;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

/* The same of a count. */
__device__ __forceinline__ uint32_t count_look(const uint32_t *count)
{
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(count) : "memory");
    return value;
}

__device__ __forceinline__ void word_store(uint64_t *word, uint64_t value)
{
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

/* Value and stamp at once: whoever reads this stamp reads this value. Orders nothing else. */
__device__ __forceinline__ void word_publish(struct exchange_word *word, uint64_t value, uint64_t stamp)
{
    asm volatile("{ .reg .b128 both; mov.b128 both, {%1, %2}; st.relaxed.sys.global.b128 [%0], both; }" ::"l"(word),
                 "l"(value), "l"(stamp)
                 : "memory");
}

__device__ __forceinline__ struct exchange_word word_read(const struct exchange_word *word)
{
    struct exchange_word read;
    asm volatile("{ .reg .b128 both; ld.relaxed.sys.global.b128 both, [%2]; mov.b128 {%0, %1}, both; }"
                 : "=l"(read.value), "=l"(read.stamp)
                 : "l"(word)
                 : "memory");
    return read;
}

/* Adds, and returns what was there. Acquire, on this device: what is read afterwards is no older than the word. */
__device__ __forceinline__ uint64_t word_add_acquire(uint64_t *word, uint64_t value)
{
    uint64_t before;
    asm volatile("atom.add.acquire.gpu.global.u64 %0, [%1], %2;" : "=l"(before) : "l"(word), "l"(value) : "memory");
    return before;
}

/* The same for a count. */
__device__ __forceinline__ uint32_t count_add_acquire(uint32_t *count, uint32_t value)
{
    uint32_t before;
    asm volatile("atom.add.acquire.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(count), "r"(value) : "memory");
    return before;
}

/* Adds on this device, and waits for nothing. */
__device__ __forceinline__ void word_add(uint64_t *word, uint64_t value)
{
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

/* 16 bytes that a peer will read, or that this rank will not read soon: they need no place in the first-level cache. */
__device__ __forceinline__ void stream_store(void *to, uint4 value)
{
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
}

/* A word of shared memory that the warps of a block hand to each other: an acquire, two releases. */
__device__ __forceinline__ uint32_t share_read(const uint32_t *word)
{
    uint32_t value;
    asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];"
                 : "=r"(value)
                 : "r"((uint32_t)__cvta_generic_to_shared(word))
                 : "memory");
    return value;
}

__device__ __forceinline__ void share_write(uint32_t *word, uint32_t value)
{
    asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"((uint32_t)__cvta_generic_to_shared(word)), "r"(value)
                 : "memory");
}

__device__ __forceinline__ void share_add(uint32_t *word, uint32_t value)
{
    asm volatile("red.release.cta.shared::cta.add.u32 [%0], %1;" ::"r"((uint32_t)__cvta_generic_to_shared(word)),
                 "r"(value)
                 : "memory");
}

/* Asks for the line of a place that will be read soon, and that nobody writes. */
__device__ __forceinline__ void expect_line(const void *place)
{
    asm volatile("prefetch.global.L1 [%0];" ::"l"(place));
}

/* A barrier for so many threads of the block, whole warps, while the others do something else. */
__device__ __forceinline__ void share_barrier(int32_t threads)
{
    __syncwarp(); /* it takes a warp as a whole */
    asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

/*
 * 16 bytes that will not be read again. If a peer has stored them, a flag must have been read first; so never through the
 * read-only path, which may hold what was there before.
 */
__device__ __forceinline__ uint4 stream_load(const void *from)
{
    uint4 value;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}

/* Nanoseconds; all multiprocessors of a device count alike, in steps of up to a microsecond. */
__device__ __forceinline__ uint64_t clock_ns()
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

#endif
