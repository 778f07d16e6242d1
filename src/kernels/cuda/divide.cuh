// SPDX-License-Identifier: Apache-2.0
/*
 * Quotients by numbers that are fixed when an exchange is made (see cuda_divisors). A division proper is some thirty
 * instructions, each waiting for the one before: where few tokens are on their way, that can be felt.
 */
#ifndef CUDA_DIVIDE_CUH
#define CUDA_DIVIDE_CUH

#include "kernels/cuda/exchange.h"

struct quotient {
    int32_t whole, rest;
};

/* n >= 0, and n times the divisor at most 2^30: exact then, since the reciprocal is rounded up by less than 1. */
__device__ __forceinline__ int32_t divide_whole(int32_t n, const struct cuda_divisor &by)
{
    return (int32_t)((uint64_t)(uint32_t)n * by.reciprocal >> CUDA_DIVISOR_SHIFT);
}

__device__ __forceinline__ struct quotient divide(int32_t n, const struct cuda_divisor &by)
{
    int32_t whole = divide_whole(n, by);
    return {whole, n - whole * by.divisor};
}

#endif
