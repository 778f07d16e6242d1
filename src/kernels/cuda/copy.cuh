// SPDX-License-Identifier: Apache-2.0
/*
 * Copies of rows by groups of threads: each thread takes every so many-th piece, as wide as addresses and size allow.
 * What is read may have been written by a peer after the kernel began, so nothing is read through the read-only path.
 */
#ifndef CUDA_COPY_CUH
#define CUDA_COPY_CUH

#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/memory.cuh"

/* The widest access that an address or a size allows: 16, 8, 4, 2 or 1 bytes. */
__device__ __forceinline__ unsigned copy_width(uintptr_t bits)
{
    return (bits & 15) == 0 ? 16u : (unsigned)(bits & (~bits + 1));
}

__device__ __forceinline__ uintptr_t copy_bits(const void *address)
{
    return (uintptr_t)address;
}

template <typename T>
__device__ __forceinline__ void copy_as(void *to, const void *from, size_t bytes, int thread, int threads)
{
#pragma unroll 1
    for (size_t i = (size_t)thread; i < bytes / sizeof(T); i += (size_t)threads)
        ((T *)to)[i] = ((const volatile T *)from)[i];
}

enum { COPY_PIECE = 16, COPY_PIECES = 4 /* that a thread of copy_wide() has under way */ };

/* Pieces of 16 bytes that a thread has under way: of a row of `bytes` (a multiple of that), from `at` on, every `step` bytes. */
template <int PIECES>
__device__ __forceinline__ void copy_load(const unsigned char *row, size_t bytes, size_t at, size_t step,
                                          uint4 (&piece)[PIECES])
{
#pragma unroll
    for (int n = 0; n < PIECES; n++)
        if (at + n * step < bytes)
            piece[n] = stream_load(row + at + n * step);
}

template <int PIECES>
__device__ __forceinline__ void copy_store(unsigned char *row, size_t bytes, size_t at, size_t step,
                                           const uint4 (&piece)[PIECES])
{
#pragma unroll
    for (int n = 0; n < PIECES; n++)
        if (at + n * step < bytes)
            stream_store(row + at + n * step, piece[n]);
}

__device__ __forceinline__ void copy_wide(void *to, const void *from, size_t bytes, int thread, int threads)
{
    size_t step = (size_t)threads * COPY_PIECE;
#pragma unroll 1
    for (size_t at = (size_t)thread * COPY_PIECE; at < bytes; at += COPY_PIECES * step) {
        uint4 piece[COPY_PIECES];
        copy_load((const unsigned char *)from, bytes, at, step, piece);
        copy_store((unsigned char *)to, bytes, at, step, piece);
    }
}

static __device__ __noinline__ void copy_narrow(void *to, const void *from, size_t bytes, int thread, int threads)
{
    switch (copy_width(copy_bits(to) | copy_bits(from) | bytes)) {
    case 8: copy_as<uint64_t>(to, from, bytes, thread, threads); break;
    case 4: copy_as<uint32_t>(to, from, bytes, thread, threads); break;
    case 2: copy_as<uint16_t>(to, from, bytes, thread, threads); break;
    default: copy_as<uint8_t>(to, from, bytes, thread, threads);
    }
}

/* Copies one row, by all threads of a group. Orders nothing. */
__device__ inline void copy_row(void *to, const void *from, size_t bytes, int thread, int threads)
{
    if (copy_width(copy_bits(to) | copy_bits(from) | bytes) == 16)
        copy_wide(to, from, bytes, thread, threads);
    else
        copy_narrow(to, from, bytes, thread, threads);
}

#endif
