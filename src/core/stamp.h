// SPDX-License-Identifier: Apache-2.0
/*
 * Stamps: the 64-bit values of flags, 24 bits of epoch above 40 bits of sequence. Both only grow, so a flag is
 * "reached" when it is >= the stamp waited for, and nothing from an older epoch is ever taken for new (promise 4).
 */
#ifndef CORE_STAMP_H
#define CORE_STAMP_H

#include <stdint.h>

enum { STAMP_SEQUENCE_BITS = 40 };

#define STAMP_MAX_SEQUENCE ((UINT64_C(1) << STAMP_SEQUENCE_BITS) - 1)
/* An epoch ends by itself (a same-mask view follows) when this many sequence numbers are left. */
#define STAMP_SEQUENCE_RESERVE (UINT64_C(1) << 16)
/* The last epoch a group may reach; proposing beyond it is MUSTER_ERR_EXHAUSTED. */
#define STAMP_MAX_EPOCH ((UINT32_C(1) << 24) - 2)

static inline uint64_t stamp_make(uint32_t epoch, uint64_t sequence)
{
    return ((uint64_t)epoch << STAMP_SEQUENCE_BITS) | sequence;
}

static inline uint32_t stamp_epoch(uint64_t stamp)
{
    return (uint32_t)(stamp >> STAMP_SEQUENCE_BITS);
}

static inline uint64_t stamp_sequence(uint64_t stamp)
{
    return stamp & STAMP_MAX_SEQUENCE;
}

#endif
