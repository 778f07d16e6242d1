// SPDX-License-Identifier: Apache-2.0
/* What CUDA C has and C++ has not, for kernels that the engine runs. Included before everything else. */
#ifndef SIMT_DEVICE_H
#define SIMT_DEVICE_H

#include <cuda_runtime.h>

#include <cmath>

#include "simt/engine.h"

#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
#define __shared__ thread_local /* a block is a thread */
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (simt_thread_index())
#define blockIdx (simt_block_index())
#define blockDim (simt_block_size())
#define gridDim (simt_grid_size())

inline void __syncthreads()
{
    simt_barrier(0, 0);
}

inline int __syncthreads_and(int yes)
{
    return simt_barrier_count(!yes) == 0;
}

inline int __syncthreads_or(int yes)
{
    return simt_barrier_count(yes) != 0;
}

inline int __syncthreads_count(int yes)
{
    return (int)simt_barrier_count(yes);
}

inline void __syncwarp(unsigned = ~0u)
{
    simt_exchange(SIMT_SYNC, 0);
}

template <typename T> T __shfl_sync(unsigned, T value, int from, int width = 32)
{
    unsigned lane = threadIdx.x & 31, first = lane & ~(unsigned)(width - 1);
    return simt_value<T>(simt_exchange(SIMT_SHUFFLE, simt_bits(value))[first + ((unsigned)from & (width - 1))]);
}

template <typename T> T __shfl_up_sync(unsigned, T value, unsigned before, int width = 32)
{
    unsigned lane = threadIdx.x & 31, first = lane & ~(unsigned)(width - 1);
    const uint64_t *all = simt_exchange(SIMT_SHUFFLE, simt_bits(value));
    return simt_value<T>(all[lane < first + before ? lane : lane - before]);
}

template <typename T> T __shfl_xor_sync(unsigned, T value, int other, int = 32)
{
    return simt_value<T>(simt_exchange(SIMT_SHUFFLE, simt_bits(value))[(threadIdx.x & 31) ^ (unsigned)other]);
}

inline unsigned __ballot_sync(unsigned, int yes)
{
    const uint64_t *all = simt_exchange(SIMT_BALLOT, yes != 0);
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < simt_lanes(); lane++)
        ballot |= (unsigned)all[lane] << lane;
    return ballot;
}

inline int __any_sync(unsigned mask, int yes)
{
    return __ballot_sync(mask, yes) != 0;
}

inline int __all_sync(unsigned mask, int yes)
{
    return __ballot_sync(mask, !yes) == 0;
}

inline unsigned __match_any_sync(unsigned, int value)
{
    const uint64_t *all = simt_exchange(SIMT_SHUFFLE, simt_bits(value));
    unsigned same = 0;
    for (unsigned lane = 0; lane < simt_lanes(); lane++)
        same |= (unsigned)(simt_value<int>(all[lane]) == value) << lane;
    return same;
}

inline int __reduce_max_sync(unsigned, int value)
{
    const uint64_t *all = simt_exchange(SIMT_SHUFFLE, simt_bits(value));
    for (unsigned lane = 0; lane < simt_lanes(); lane++)
        value = simt_value<int>(all[lane]) > value ? simt_value<int>(all[lane]) : value;
    return value;
}

template <typename T> T simt_atomic_add(T *at, T value)
{
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}

inline int atomicAdd(int *at, int value)
{
    return simt_atomic_add(at, value);
}

inline unsigned atomicAdd(unsigned *at, unsigned value)
{
    return simt_atomic_add(at, value);
}

inline unsigned long long atomicAdd(unsigned long long *at, unsigned long long value)
{
    return simt_atomic_add(at, value);
}

inline unsigned long long atomicCAS(unsigned long long *at, unsigned long long seen, unsigned long long value)
{
    __atomic_compare_exchange_n(at, &seen, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return seen;
}

inline unsigned long long atomicOr(unsigned long long *at, unsigned long long bits)
{
    return __atomic_fetch_or(at, bits, __ATOMIC_SEQ_CST);
}

template <typename T, typename Better> T simt_atomic_choose(T *at, T value, Better better)
{
    T seen = __atomic_load_n(at, __ATOMIC_SEQ_CST);
    while (better(value, seen) &&
           !__atomic_compare_exchange_n(at, &seen, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        continue;
    return seen;
}

inline int atomicMax(int *at, int value)
{
    return simt_atomic_choose(at, value, [](int a, int b) { return a > b; });
}

inline unsigned long long atomicMin(unsigned long long *at, unsigned long long value)
{
    return simt_atomic_choose(at, value, [](unsigned long long a, unsigned long long b) { return a < b; });
}

inline void __threadfence()
{
    simt_fence();
}

inline void __threadfence_system()
{
    simt_fence();
}

inline void __nanosleep(unsigned)
{
    simt_look();
}

inline int __popc(unsigned bits)
{
    return __builtin_popcount(bits);
}

inline int __popcll(unsigned long long bits)
{
    return __builtin_popcountll(bits);
}

inline int __clzll(long long bits)
{
    return bits ? __builtin_clzll((unsigned long long)bits) : 64;
}

inline int __ffs(int bits)
{
    return __builtin_ffs(bits);
}

inline int __clz(int bits)
{
    return bits ? __builtin_clz((unsigned)bits) : 32;
}

inline float __fadd_rn(float a, float b)
{
    return a + b;
}

inline float __fmul_rn(float a, float b)
{
    return a * b;
}

inline float __fdiv_rn(float a, float b)
{
    return a / b;
}

inline float __frcp_rn(float a)
{
    return 1.0f / a;
}

inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}

/* Only the bulk engine would ask. */
inline size_t __cvta_generic_to_shared(const void *)
{
    return 0;
}

inline float __uint_as_float(unsigned bits)
{
    return simt_value<float>(bits);
}

inline unsigned __float_as_uint(float value)
{
    return (unsigned)simt_bits(value);
}

#endif
