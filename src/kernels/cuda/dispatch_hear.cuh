// SPDX-License-Identifier: Apache-2.0
/*
 * What a receiving block of dispatch knows before any row: what all ranks have told, where that puts their rows, and what the
 * caller and combine get to know of it.
 */
#ifndef CUDA_DISPATCH_HEAR_CUH
#define CUDA_DISPATCH_HEAR_CUH

#include "kernels/cuda/operations.h"
#include "kernels/cuda/region.cuh"
#include "kernels/cuda/told.cuh"

/* What a receiving block knows when all have told. In shared memory. */
struct receiving {
    int32_t rows[MUSTER_MAX_RANKS]; /* from each rank */
    int32_t before[MUSTER_MAX_RANKS + 1]; /* flat: from the ranks before each, and from all */
    int32_t most_rows; /* from any of them */
    int32_t end_in_words; /* of the tokens of any whose rows come in words */
    uint32_t heard; /* warps that have heard all that they waited for, or will not */
    uint64_t tokens[MUSTER_MAX_RANKS]; /* whose rows come in words, a bit for each; 0: they come as rows */
    int32_t *begin; /* [S][R + 1] expert-major: see first_row() */
};

/* --------------------------------------------------------------------------------------------------- what was told */

/* Where the rows of slot s begin that came from `rank`; with rank == ranks, where they all end. */
__device__ __forceinline__ int32_t &first_row(const struct receiving *r, int ranks, int32_t s, int rank)
{
    return r->begin[s * (ranks + 1) + rank];
}

/* Expert-major: two routes' counts, kept where the first rows will be. */
__device__ __forceinline__ void hear_counts(const struct cuda_launch &l, struct receiving *r, int rank, int32_t slot,
                                            uint64_t value)
{
    first_row(r, l.shape.ranks, slot, rank) = (int32_t)(uint32_t)value;
    if (slot + 1 < l.shape.slots)
        first_row(r, l.shape.ranks, slot + 1, rank) = (int32_t)(value >> 32);
}

template <typename Facts>
__device__ inline void hear_word(const struct cuda_launch &l, struct receiving *r, int rank, int word, uint64_t value)
{
    if (word == EXCHANGE_TOLD_ROWS) {
        r->rows[rank] = (int32_t)value;
        atomicMax(&r->most_rows, (int32_t)value);
    } else if (word == EXCHANGE_TOLD_TOKENS) {
        r->tokens[rank] = value;
        atomicMax(&r->end_in_words, 64 - __clzll((long long)value));
    } else if (word >= EXCHANGE_TOLD_COUNTS && Facts::EXPERT_MAJOR) {
        hear_counts(l, r, rank, 2 * (word - EXCHANGE_TOLD_COUNTS), value);
    }
}

/* Flat: a source's rows begin where those of the ranks before it end. A thread for each rank, and one for all. */
__device__ inline void lay_out_sources(const struct turn *turn, struct receiving *r)
{
    for (int rank = threadIdx.x; rank <= turn->ranks; rank += blockDim.x) {
        int32_t before = 0;
#pragma unroll 1
        for (int i = 0; i < rank; i++)
            before += r->rows[i];
        r->before[rank] = before;
    }
    __syncthreads();
}

/* X9: a row for each token in words. */
__device__ inline bool hear_tokens(const struct cuda_launch &l, const struct turn *turn, const struct receiving *r)
{
    bool good = true;
    for (int rank = threadIdx.x; rank < turn->ranks; rank += blockDim.x)
        if (r->tokens[rank] && __popcll(r->tokens[rank]) != r->rows[rank])
            good = told_refuse(l, turn, rank, r->tokens[rank]);
    return good;
}

/*
 * Rows of a slot lie by (source, token), packed: a source's begin where those of the ranks before it end. A thread has a
 * slot. X9: a source cannot have more rows in a slot than it has sent rows.
 */
__device__ inline bool lay_out_slots(const struct cuda_launch &l, const struct turn *turn, struct receiving *r)
{
    bool good = hear_tokens(l, turn, r);
    for (int32_t s = threadIdx.x; s < l.shape.slots; s += blockDim.x) {
        int32_t next = 0;
        for (int rank = 0; rank < turn->ranks; rank++) {
            int32_t count = first_row(r, turn->ranks, s, rank);
            bool possible = count >= 0 && count <= r->rows[rank];
            first_row(r, turn->ranks, s, rank) = next;
            next += possible ? count : 0;
            good = (possible || told_refuse(l, turn, rank, (uint32_t)count)) && good;
        }
        first_row(r, turn->ranks, s, turn->ranks) = next;
    }
    return __syncthreads_and(good);
}

/* All threads of the block, of which so many hear, this one as `thread` if it is not negative. False: the step is void. */
template <typename Facts>
__device__ inline bool hear_all(const struct cuda_launch &l, const struct turn *turn, struct receiving *r, int thread,
                                int threads)
{
    bool good = told_await<Facts::FT>(l, turn, thread, threads, [&](int rank, int word, uint64_t value) {
        hear_word<Facts>(l, r, rank, word, value);
        return true;
    });
    __syncwarp();
    if (thread >= 0 && threadIdx.x % 32 == 0)
        share_add(&r->heard, 1);
    if (!__syncthreads_and(good))
        return false;
    if (Facts::EXPERT_MAJOR)
        return lay_out_slots(l, turn, r);
    if (l.shape.flat)
        lay_out_sources(turn, r);
    return true;
}

/* ---------------------------------------------------------------------------- what spare warps of the first block write */

__device__ inline void write_ranges(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_receive_args &args, const struct receiving *r, int thread,
                                    int threads)
{
    int ranks = turn->ranks;
#pragma unroll 1
    for (int32_t i = thread; i < l.shape.slots * ranks; i += threads) {
        int32_t s = i / ranks, rank = i % ranks;
        int32_t begin = first_row(r, ranks, s, rank), end = first_row(r, ranks, s, rank + 1);
        if (args.ranges)
            args.ranges[i] = (int64_t)begin << 32 | (end - begin);
        if (rank == ranks - 1)
            args.counts[s] = end;
    }
}

template <bool FT>
__device__ inline void write_loads(const struct cuda_launch &l, const struct turn *turn, int32_t *loads, int thread,
                                   int threads)
{
    size_t slots = (size_t)l.shape.ranks * (size_t)l.shape.slots;
    const volatile int32_t *told = (const volatile int32_t *)own_at(l, l.shape.loads);
    int seen = -1; /* the rank whose line this thread has read last */
    for (size_t i = (size_t)thread; i < slots * (size_t)turn->ranks; i += (size_t)threads) {
        int rank = (int)(i / slots);
        const uint64_t *flag = &line_at(own_at(l, l.shape.dispatch_line), rank)->flag;
        bool has = turn_has(turn, rank);
        if (has && rank != seen && !wait_flag<FT>(l, turn, flag, rank, MUSTER_PHASE_DISPATCH))
            return;
        seen = rank;
        loads[i] = has ? told[i] : 0;
    }
}

/* Rows past the count, for kernels that run over the whole array. */
__device__ inline void pad_slots(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                 const struct receiving *r, int thread, int threads)
{
    for (int rank = 0; rank < l.shape.ranks; rank++) {
        size_t topk = (size_t)l.shape.topk, end = row_at(l.shape, rank + 1, 0) * topk;
        for (size_t i = row_at(l.shape, rank, r->rows[rank]) * topk + thread; i < end; i += threads)
            args.slots[i] = args.invalid_id;
    }
}

/* Flat: behind the last row of all. */
__device__ inline void pad_end(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                               const struct receiving *r, int thread, int threads)
{
    size_t topk = (size_t)l.shape.topk, end = row_at(l.shape, l.shape.ranks, 0) * topk;
    for (size_t i = (size_t)r->before[l.shape.ranks] * topk + thread; i < end; i += threads)
        args.slots[i] = args.invalid_id;
}

__device__ inline void pad_sources(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_receive_args &args, const struct receiving *r, int thread,
                                   int threads)
{
    size_t rows = (size_t)l.shape.ranks * (size_t)l.shape.tokens;
    for (int32_t s = 0; s < l.shape.slots; s++) {
        size_t used = (size_t)first_row(r, turn->ranks, s, turn->ranks);
        for (size_t i = 2 * ((size_t)s * rows + used) + thread; i < 2 * ((size_t)s + 1) * rows; i += threads)
            args.source[i] = args.invalid_id;
    }
}

/* Flat: where each source's rows are. */
__device__ inline void write_sources(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                     const struct receiving *r, int thread, int threads)
{
    for (int rank = thread; rank < l.shape.ranks; rank += threads) {
        l.own.rows_before[rank] = r->before[rank];
        if (args.ranges)
            args.ranges[rank] = (int64_t)r->before[rank] << 32 | r->rows[rank];
    }
    if (args.pad_ids)
        pad_end(l, args, r, thread, threads);
}

template <typename Facts>
__device__ inline void write_summary(const struct cuda_launch &l, const struct turn *turn,
                                     const struct dispatch_receive_args &args, const struct receiving *r, int thread,
                                     int threads)
{
    for (int rank = thread; rank < turn->ranks; rank += threads) {
        l.own.rows_from[rank] = r->rows[rank];
        l.own.words_from[rank] = r->tokens[rank] != 0;
        if (!Facts::EXPERT_MAJOR)
            args.counts[rank] = r->rows[rank];
    }
    if (Facts::EXPERT_MAJOR)
        write_ranges(l, turn, args, r, thread, threads);
    if (args.loads)
        write_loads<Facts::FT>(l, turn, args.loads, thread, threads);
    if (!Facts::EXPERT_MAJOR && l.shape.flat)
        write_sources(l, args, r, thread, threads);
    else if (!Facts::EXPERT_MAJOR && args.pad_ids)
        pad_slots(l, args, r, thread, threads);
    else if (args.pad_ids && args.source)
        pad_sources(l, turn, args, r, thread, threads);
}

#endif
