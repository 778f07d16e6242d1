// SPDX-License-Identifier: Apache-2.0
/* kernels/cuda/memory.cuh for kernels that the engine runs: the same promises, kept by the host. */
#ifndef CUDA_MEMORY_CUH
#define CUDA_MEMORY_CUH

#include <time.h>

#include "kernels/exchange.h"

inline void flag_raise(uint64_t *flag, uint64_t stamp)
{
    __atomic_store_n(flag, stamp, __ATOMIC_RELEASE);
}

inline uint64_t flag_read(const uint64_t *flag)
{
    simt_look();
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

inline uint64_t word_look(const uint64_t *word)
{
    simt_look();
    simt_looked(word);
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

inline uint32_t count_look(const uint32_t *count)
{
    simt_look();
    simt_looked(count);
    return __atomic_load_n(count, __ATOMIC_RELAXED);
}

inline void word_store(uint64_t *word, uint64_t value)
{
    if (simt_fenced())
        __atomic_store_n(word, value, __ATOMIC_RELEASE);
    else
        __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* Not at once; but a word is overwritten only when everybody has read it, so the stamp may say that the value is there. */
inline void word_publish(struct exchange_word *word, uint64_t value, uint64_t stamp)
{
    __atomic_store_n(&word->value, value, __ATOMIC_RELAXED);
    __atomic_store_n(&word->stamp, stamp, __ATOMIC_RELEASE);
}

inline struct exchange_word word_read(const struct exchange_word *word)
{
    simt_look();
    uint64_t stamp = __atomic_load_n(&word->stamp, __ATOMIC_ACQUIRE);
    return {__atomic_load_n(&word->value, __ATOMIC_RELAXED), stamp};
}

inline uint64_t word_add_acquire(uint64_t *word, uint64_t value)
{
    return __atomic_fetch_add(word, value, __ATOMIC_ACQUIRE);
}

inline uint32_t count_add_acquire(uint32_t *count, uint32_t value)
{
    if (simt_fenced())
        return __atomic_fetch_add(count, value, __ATOMIC_ACQ_REL);
    return __atomic_fetch_add(count, value, __ATOMIC_ACQUIRE);
}

/* Behind a fence of its own thread, though the warp may have met since; which the engine cannot tell from none. */
inline void word_add(uint64_t *word, uint64_t value)
{
    __atomic_fetch_add(word, value, __ATOMIC_RELEASE);
}

inline void stream_store(void *to, uint4 value)
{
    *(uint4 *)to = value;
}

inline uint4 stream_load(const void *from)
{
    return *(const uint4 *)from;
}

inline uint32_t share_read(const uint32_t *word)
{
    simt_look();
    uint32_t value = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    simt_joined();
    return value;
}

inline void share_write(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

inline void share_add(uint32_t *word, uint32_t value)
{
    __atomic_fetch_add(word, value, __ATOMIC_RELEASE);
}

inline void expect_line(const void *)
{
}

inline void share_barrier(int32_t threads)
{
    simt_barrier(1, (unsigned)threads);
}

inline uint64_t clock_ns()
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

#endif
