// SPDX-License-Identifier: Apache-2.0
/*
 * Sums and products of sizes that come from callers. What does not fit into 64 bits becomes UINT64_MAX, and stays it, so
 * one comparison with a limit at the end is enough.
 */
#ifndef CORE_SIZE_H
#define CORE_SIZE_H

#include <stdint.h>

/* No memory is larger: 2^60 bytes. A few of this size can be added up and still be told apart. */
#define SIZE_MOST_BYTES (UINT64_C(1) << 60)

static inline uint64_t size_add(uint64_t a, uint64_t b)
{
    uint64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

static inline uint64_t size_times(uint64_t a, uint64_t b)
{
    uint64_t product;
    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

/* To the next multiple of `unit`, a power of two. */
static inline uint64_t size_round_up(uint64_t bytes, uint64_t unit)
{
    uint64_t above = size_add(bytes, unit - 1);
    return above == UINT64_MAX ? above : above & ~(unit - 1);
}

#endif
