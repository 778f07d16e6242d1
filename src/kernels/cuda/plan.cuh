// SPDX-License-Identifier: Apache-2.0
/* What the plans of dispatch and combine have in common. On the host. */
#ifndef CUDA_PLAN_CUH
#define CUDA_PLAN_CUH

#include "kernels/cuda/exchange.h"

enum {
    PLAN_WORD_TOKENS = 8, /* up to so many go faster in words */
    PLAN_FEW_TOKENS = 512, /* up to so many go faster when all blocks store them */
    PLAN_STAGE_BYTES = 16384 /* longer rows go through in parts */
};

static inline int32_t plan_least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline int32_t plan_round_up(size_t bytes, size_t unit)
{
    return (int32_t)((bytes + unit - 1) / unit * unit);
}

/* Of a stage for rows of so many bytes. */
static inline int32_t plan_stage_bytes(size_t row_bytes)
{
    return row_bytes < PLAN_STAGE_BYTES ? plan_round_up(row_bytes, 16) : PLAN_STAGE_BYTES;
}

/* By this rank's tokens: what goes over the link is the same either way, so ranks may choose differently. */
static inline bool plan_is_for_many(int32_t tokens, const struct cuda_limits *limits)
{
    return limits->plan == CUDA_PLAN_AUTO ? tokens > PLAN_FEW_TOKENS : limits->plan == CUDA_PLAN_MANY;
}

/* By this rank's tokens as well; those who get its rows are told. Dispatch and combine of a pair must agree. */
static inline bool plan_is_in_words(const struct exchange_shape *shape, int32_t tokens,
                                    const struct cuda_limits *limits)
{
    bool chosen = limits->plan == CUDA_PLAN_WORDS || (limits->plan == CUDA_PLAN_AUTO && tokens <= PLAN_WORD_TOKENS);
    return chosen && tokens <= shape->word_tokens && shape->word_tokens > 0;
}

#endif
