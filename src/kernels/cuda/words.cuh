// SPDX-License-Identifier: Apache-2.0
/*
 * Rows in words. With few tokens it is not bytes that take time but turns: a fence until a row's stores have arrived, its
 * flag behind them, and a load when the flag has been seen. So such rows travel as what is told before them does
 * (told.cuh): up to 8 bytes in one access with their stamp. That takes twice the link's bytes, and neither fence nor flag;
 * who waits for a word has its value at once (X5).
 *
 * Blocks share a row, since one multiprocessor stores some 40 GB/s over a link and no more.
 *
 * Credit to overwrite words is that for rows (X4): theirs of the pair before have been read by then, and whose stamp a
 * word bears tells of which pair it is.
 */
#ifndef CUDA_WORDS_CUH
#define CUDA_WORDS_CUH

#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/cut.cuh"
#include "kernels/cuda/region.cuh"
#include "kernels/cuda/wait.cuh"

enum { WORDS_WARP_PIECES = 32 }; /* 16 bytes, which are two words, for each lane */

/* The words of the row of a token of rank `from`, in the array that begins at `rows`: see exchange_shape.word_rows. */
__device__ __forceinline__ struct exchange_word *words_row(const struct cuda_launch &l, unsigned char *rows, int from,
                                                           int32_t token)
{
    size_t row = (size_t)from * (size_t)l.shape.word_tokens + (size_t)token;
    return (struct exchange_word *)rows + row * (size_t)l.shape.word_row_words;
}

/* Row `row` of the results in words, in a region that begins at `base`. */
__device__ __forceinline__ struct exchange_word *words_result(const struct exchange_shape &shape, unsigned char *base,
                                                              size_t row)
{
    return (struct exchange_word *)(base + shape.word_results) + row * (shape.result_bytes / 8);
}

/*
 * All lanes of a warp: piece `n` of a row, which is to go to word 2 n and the next, where n counts up with the lanes. Those
 * from `end` on are not there. Lanes exchange halves, so that a warp's stores are contiguous.
 */
__device__ __forceinline__ void words_publish(struct exchange_word *row, int32_t n, int32_t end, uint4 piece,
                                              uint64_t stamp)
{
    int32_t lane = (int32_t)threadIdx.x & 31, first = 2 * (n - lane);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int from = 16 * half + lane / 2;
        uint32_t x = __shfl_sync(~0u, piece.x, from), y = __shfl_sync(~0u, piece.y, from);
        uint32_t z = __shfl_sync(~0u, piece.z, from), w = __shfl_sync(~0u, piece.w, from);
        uint64_t value = lane & 1 ? (uint64_t)w << 32 | z : (uint64_t)y << 32 | x;
        int32_t word = first + 32 * half + lane;
        if (word < 2 * end)
            word_publish(row + word, value, stamp);
    }
}

/* Two words that are 16 bytes of a row. */
__device__ __forceinline__ uint4 words_piece(uint64_t low, uint64_t high)
{
    return make_uint4((uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high, (uint32_t)(high >> 32));
}

/* Reads several words, all at a time; word(i) is where the i-th is, NULL if there is none. Returns which has not come, or -1. */
template <int WORDS, typename Word>
__device__ __forceinline__ int words_read(Word word, uint64_t stamp, uint64_t (&value)[WORDS])
{
    const struct exchange_word *at[WORDS]; /* all first: behind a read the compiler reads shared memory again */
    struct exchange_word read[WORDS];
    int late = -1;
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        at[i] = word(i);
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        if (at[i])
            read[i] = word_read(at[i]);
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        if (at[i]) {
            value[i] = read[i].value;
            late = read[i].stamp < stamp ? i : late;
        }
    return late;
}

/* One thread waits for as many; peer(i) is the rank that the i-th comes from. False: the step is void. */
template <bool FT, int WORDS, typename Word, typename Peer>
__device__ __forceinline__ bool words_await(const struct cuda_launch &l, const struct turn *turn, muster_phase phase,
                                            Word word, Peer peer, uint64_t (&value)[WORDS])
{
    int last = -1;
    auto late = [&] { return wait{&word(last)->stamp, turn->stamp, peer(last), phase}; };
    auto reached = [&] {
        last = words_read<WORDS>(word, turn->stamp, value);
        return last < 0;
    };
    return wait_until<FT>(l, turn, reached, late);
}

#endif
