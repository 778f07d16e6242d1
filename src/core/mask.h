// SPDX-License-Identifier: Apache-2.0
/* Sets of ranks. muster_mask is the public type; these are its operations. */
#ifndef CORE_MASK_H
#define CORE_MASK_H

#include <stdbool.h>

#include "muster/group.h"

static inline bool mask_has(muster_mask m, int rank)
{
    return (m.word[rank >> 6] >> (rank & 63)) & 1;
}

static inline muster_mask mask_with(muster_mask m, int rank)
{
    m.word[rank >> 6] |= UINT64_C(1) << (rank & 63);
    return m;
}

static inline muster_mask mask_without(muster_mask m, int rank)
{
    m.word[rank >> 6] &= ~(UINT64_C(1) << (rank & 63));
    return m;
}

static inline muster_mask mask_and(muster_mask a, muster_mask b)
{
    return (muster_mask){{a.word[0] & b.word[0], a.word[1] & b.word[1]}};
}

static inline muster_mask mask_or(muster_mask a, muster_mask b)
{
    return (muster_mask){{a.word[0] | b.word[0], a.word[1] | b.word[1]}};
}

/* The ranks of a that are not in b. */
static inline muster_mask mask_minus(muster_mask a, muster_mask b)
{
    return (muster_mask){{a.word[0] & ~b.word[0], a.word[1] & ~b.word[1]}};
}

static inline bool mask_empty(muster_mask m)
{
    return (m.word[0] | m.word[1]) == 0;
}

static inline bool mask_equal(muster_mask a, muster_mask b)
{
    return a.word[0] == b.word[0] && a.word[1] == b.word[1];
}

static inline bool mask_subset(muster_mask part, muster_mask whole)
{
    return mask_empty(mask_minus(part, whole));
}

static inline int mask_count(muster_mask m)
{
    return __builtin_popcountll(m.word[0]) + __builtin_popcountll(m.word[1]);
}

/* The lowest rank in the set at or above `from`, or -1: for (r = mask_next(m, 0); r >= 0; r = mask_next(m, r + 1)). */
static inline int mask_next(muster_mask m, int from)
{
    for (int w = from >> 6; w < 2 && from < MUSTER_MAX_RANKS; w++, from = w << 6) {
        uint64_t rest = m.word[w] >> (from & 63);
        if (rest)
            return from + __builtin_ctzll(rest);
    }
    return -1;
}

/* Ranks 0..ranks-1. */
static inline muster_mask mask_first(int ranks)
{
    muster_mask m = {{0, 0}};
    for (int r = 0; r < ranks; r++)
        m = mask_with(m, r);
    return m;
}

/* "0, 2, 5" for messages; as many as fit. */
void mask_text(muster_mask m, char *text, size_t bytes);

#endif
