// SPDX-License-Identifier: Apache-2.0
/*
 * What the ranks tell each other before the rows of a dispatch (see EXCHANGE_TOLD_MASK): words that bring their own stamp,
 * so that a count is known as soon as it has come, and no store waits for another.
 */
#ifndef CUDA_TOLD_CUH
#define CUDA_TOLD_CUH

#include "kernels/cuda/divide.cuh"
#include "kernels/cuda/region.cuh"
#include "kernels/cuda/wait.cuh"

/* What rank `from` tells, in the array of words that begins at `told`. */
__device__ __forceinline__ struct exchange_word *told_words(const struct cuda_launch &l, unsigned char *told, int from)
{
    return (struct exchange_word *)told + from * l.shape.told_words;
}

/* Counts `first` and `first` + 1 of so many. */
__device__ __forceinline__ uint64_t told_pack(const int32_t *count, int32_t first, int32_t counts)
{
    uint64_t high = first + 1 < counts ? (uint64_t)(uint32_t)count[first + 1] << 32 : 0;
    return high | (uint32_t)count[first];
}

/* X9: what a peer claims is no number of rows, or X8: it counts in others. Returns false. */
__device__ inline bool told_refuse(const struct cuda_launch &l, const struct turn *turn, int rank, uint64_t value)
{
    turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_DISPATCH, rank, turn->epoch, (uint32_t)value);
    return false;
}

/*
 * X8, X9: whether a word is of the other half of this dispatch: sent in the same step, for the same ranks, with a possible
 * number of rows. False: the step is void.
 */
__device__ inline bool told_accept(const struct cuda_launch &l, const struct turn *turn, int rank, int word,
                                   uint64_t value)
{
    if (!turn_has(turn, rank))
        return true;
    switch (word) {
    case EXCHANGE_TOLD_MASK:
    case EXCHANGE_TOLD_MASK + 1:
        return value == turn->mask.word[word - EXCHANGE_TOLD_MASK] || told_refuse(l, turn, rank, 0);
    case EXCHANGE_TOLD_STEP:
        if (value == turn->number)
            return true;
        turn_fail(l, MUSTER_REASON_REFUSED, MUSTER_PHASE_DISPATCH, rank, turn->epoch, 0);
        return false;
    case EXCHANGE_TOLD_ROWS: return value <= (uint64_t)l.shape.tokens || told_refuse(l, turn, rank, value);
    case EXCHANGE_TOLD_TOKENS: return value >> l.shape.word_tokens == 0 || told_refuse(l, turn, rank, value);
    }
    return true;
}

/*
 * Calls visit(rank, word, value) for each word of each rank, by so many threads, of which this one is `thread`; a negative
 * one takes no part. A rank that takes no part has told nothing but zeros (X7). False: the step is void, or a visit was not
 * content.
 */
template <bool FT, typename Visit>
__device__ __forceinline__ bool told_await(const struct cuda_launch &l, const struct turn *turn, int thread,
                                           int threads, Visit visit)
{
    int words = l.shape.told_words;
    bool good = true;
    for (int i = thread; thread >= 0 && good && i < turn->ranks * words; i += threads) {
        struct quotient at = divide(i, l.by.told_words);
        int rank = at.whole, word = at.rest;
        struct exchange_word told = {0, turn->stamp};
        if (turn_has(turn, rank))
            told = wait_word<FT>(l, turn, told_words(l, own_at(l, l.shape.told), rank) + word, rank,
                                 MUSTER_PHASE_DISPATCH);
        good =
            told.stamp >= turn->stamp && told_accept(l, turn, rank, word, told.value) && visit(rank, word, told.value);
    }
    return good;
}

#endif
