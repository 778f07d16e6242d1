// SPDX-License-Identifier: Apache-2.0
/*
 * Rows of dispatch on their way to other ranks: where they go, what lies beside them, and, for few tokens, how: a block
 * takes a few tokens at a time, and all of its threads store them with ordinary stores.
 */
#ifndef CUDA_DISPATCH_PUSH_CUH
#define CUDA_DISPATCH_PUSH_CUH

#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/region.cuh"
#include "kernels/cuda/route.cuh"
#include "kernels/cuda/told.cuh"

__device__ __forceinline__ struct route_input send_routes(const struct cuda_launch &l, const struct turn *turn,
                                                          const struct dispatch_send_args &send)
{
    const struct exchange_shape &shape = l.shape;
    return {&send, turn, l.by.slots, shape.slots * shape.ranks, shape.topk, shape.expert_major || shape.load_stats};
}

/* ------------------------------------------------------------------------------------------------- where tokens go */

/*
 * Flat: rows of this rank come behind those of the ranks before it, so those must have told how many they are (X9: before
 * that is used for an address). All active ranks must have told the same mask: to a rank that does not know that it was
 * left out the others tell nothing, so it stores no row where one of theirs belongs. Adds to `row`, by rank.
 */
template <bool FT>
__device__ inline bool place_behind(const struct cuda_launch &l, const struct turn *turn, int32_t *row)
{
    bool good = told_await<FT>(l, turn, threadIdx.x, blockDim.x, [&](int rank, int word, uint64_t value) {
        for (int i = 0; i < 2 && word >= EXCHANGE_TOLD_COUNTS && rank < turn->rank; i++) {
            int to = 2 * (word - EXCHANGE_TOLD_COUNTS) + i;
            uint32_t rows = (uint32_t)(value >> 32 * i);
            if (rows > (uint32_t)l.shape.tokens)
                return told_refuse(l, turn, rank, rows);
            if (to < turn->ranks)
                atomicAdd(&row[to], (int32_t)rows);
        }
        return true;
    });
    return __syncthreads_and(good);
}

/* Before the first token: where this rank's first row goes at each rank. The counts are all 0. */
template <typename Facts>
__device__ inline bool place_first(const struct cuda_launch &l, const struct turn *turn,
                                   const struct route_counts &counts)
{
    if (!Facts::EXPERT_MAJOR && l.shape.flat)
        return place_behind<Facts::FT>(l, turn, counts.rank);
    for (int rank = threadIdx.x; rank < turn->ranks; rank += blockDim.x)
        counts.rank[rank] = (int32_t)row_at(l.shape, turn->rank, 0);
    __syncthreads();
    return true;
}

/* What can be known of `count` tokens from `first` before those before them are counted. One warp. */
__device__ inline void read_tokens(const struct route_input &in, int32_t first, int32_t count,
                                   struct route_token *token)
{
    enum { FLIGHT = 2 };
    int32_t lane = (int32_t)threadIdx.x & 31;
    for (int32_t begin = 0; begin < count; begin += FLIGHT) {
        int64_t id[FLIGHT];
        float weight[FLIGHT];
#pragma unroll
        for (int n = 0; n < FLIGHT; n++) {
            bool there = begin + n < count && lane < in.topk;
            id[n] = there ? route_id(in, first + begin + n, lane) : -1;
            weight[n] = there ? route_weight(in, first + begin + n, lane) : 0.0f;
        }
#pragma unroll
        for (int n = 0; n < FLIGHT; n++)
            if (begin + n < count)
                route_read(in, first + begin + n, id[n], weight[n], &token[begin + n]);
    }
}

/* --------------------------------------------------------------------------------------------- what is stored there */

__device__ __forceinline__ unsigned char *destination_row(const struct cuda_launch &l, const struct turn *turn,
                                                          const struct route_token *token, int i, int array)
{
    const struct exchange_array &a = l.shape.array[array];
    return region_at(turn, token->rank[i], a.offset) + (size_t)token->row[i] * a.row_bytes;
}

/* What this rank's combine has to know of a token. By some threads. */
__device__ inline void push_keep(const struct cuda_launch &l, const struct route_token *token, int32_t t, int thread,
                                 int threads)
{
#pragma unroll 1
    for (int k = thread; k < l.shape.topk; k += threads) {
        size_t route = (size_t)t * (size_t)l.shape.topk + (size_t)k;
        l.own.token_slots[route] = token->slot[k];
        l.own.token_weights[route] = token->weight[k];
    }
    for (int word = thread; word < 2; word += threads) {
        uint64_t ranks = 0;
#pragma unroll 1
        for (int i = 0; i < token->destinations; i++)
            if (token->rank[i] >> 6 == word)
                ranks |= UINT64_C(1) << (token->rank[i] & 63);
        l.own.token_ranks[2 * (size_t)t + (size_t)word] = ranks;
    }
}

/* Which token a row is, and its routes: an entry for each k, those to other ranks being -1. By some threads. */
__device__ inline void push_routes(const struct cuda_launch &l, const struct turn *turn,
                                   const struct route_token *token, int32_t t, int thread, int threads)
{
    const struct exchange_shape &shape = l.shape;
    for (int n = thread; n < token->destinations * shape.topk; n += threads) {
        int i = n / shape.topk, k = n % shape.topk, rank = token->rank[i];
        size_t row = (size_t)token->row[i], route = row * (size_t)shape.topk + (size_t)k;
        int32_t slot = token->slot[k] - rank * shape.slots;
        bool here = token->slot[k] >= 0 && slot >= 0 && slot < shape.slots;
        ((int32_t *)region_at(turn, rank, shape.row_slot))[route] = here ? slot : -1;
        ((int32_t *)region_at(turn, rank, shape.row_index))[route] = here ? token->index[k] : 0;
        ((float *)region_at(turn, rank, shape.row_weight))[route] = here ? token->weight[k] : 0.0f;
        if (k == 0)
            ((int32_t *)region_at(turn, rank, shape.row_token))[row] = t;
    }
}

__device__ __forceinline__ uint64_t *destination_flag(const struct cuda_launch &l, const struct turn *turn,
                                                      const struct route_token *token, int i)
{
    return (uint64_t *)region_at(turn, token->rank[i], l.shape.row_flag) + token->row[i];
}

/* ------------------------------------------------------------------------------------------------------- few tokens */

/* Tokens that are pushed together: their loads are under way at the same time, and one fence serves all their flags. */
enum { PUSH_BATCH = 2 };

struct push_batch {
    int32_t first, count; /* tokens */
    struct route_token token[PUSH_BATCH];
};

/* One array's rows to all their destinations: each piece is loaded once. */
__device__ inline void push_wide(const struct cuda_launch &l, const struct turn *turn, const struct push_batch *batch,
                                 const struct row_input &input, int array)
{
    enum { PIECES = 2 }; /* of each row, that a thread has under way */
    const unsigned char *rows = input.data + (size_t)batch->first * input.stride;
    size_t bytes = l.shape.array[array].row_bytes, step = (size_t)blockDim.x * COPY_PIECE;
    for (size_t at = (size_t)threadIdx.x * COPY_PIECE; at < bytes; at += PIECES * step) {
        uint4 piece[PUSH_BATCH][PIECES];
#pragma unroll
        for (int n = 0; n < PUSH_BATCH; n++)
            if (n < batch->count)
                copy_load(rows + (size_t)n * input.stride, bytes, at, step, piece[n]);
#pragma unroll
        for (int n = 0; n < PUSH_BATCH; n++)
            for (int i = 0; n < batch->count && i < batch->token[n].destinations; i++)
                copy_store(destination_row(l, turn, &batch->token[n], i, array), bytes, at, step, piece[n]);
    }
}

__device__ inline void push_rows(const struct cuda_launch &l, const struct turn *turn, const struct push_batch *batch,
                                 const struct row_input &input, int array)
{
    size_t bytes = l.shape.array[array].row_bytes; /* rows of a region are as aligned as their size is */
    if (copy_width(copy_bits(input.data) | input.stride | bytes) == 16) {
        push_wide(l, turn, batch, input, array);
        return;
    }
    for (int n = 0; n < batch->count; n++)
        for (int i = 0; i < batch->token[n].destinations; i++)
            copy_row(destination_row(l, turn, &batch->token[n], i, array),
                     input.data + (size_t)(batch->first + n) * input.stride, bytes, threadIdx.x, blockDim.x);
}

/* Sixteen values from `at`, as codes to all destinations. All lanes of a warp: a group's exchange their maximum. */
__device__ __forceinline__ void push_codes(const struct cuda_launch &l, const struct turn *turn,
                                           const struct route_token *token, const struct quantise_piece &piece,
                                           int32_t at)
{
    int32_t hidden = l.shape.hidden;
    float value[QUANTISE_PIECE];
    quantise_values(piece, l.shape.type, value);
    float scale = quantise_scale(value, l.shape.quantise == MUSTER_EP_QUANTISE_FP8_POW2);
    uint4 codes = quantise_codes(value, scale);
    for (int i = 0; i < token->destinations && at < hidden; i++) {
        quantise_store(destination_row(l, turn, token, i, 0) + at, codes, hidden - at);
        if (at % MUSTER_EP_FP8_GROUP == 0)
            ((float *)destination_row(l, turn, token, i, 1))[at / MUSTER_EP_FP8_GROUP] = scale;
    }
}

/* The hidden states of a batch. All of it is loaded first: a load waits behind the block's stores to peers. */
__device__ inline void push_quantised(const struct cuda_launch &l, const struct turn *turn,
                                      const struct push_batch *batch, const struct row_input &input)
{
    const unsigned char *rows = input.data + (size_t)batch->first * input.stride;
    int32_t hidden = l.shape.hidden, whole = (hidden + 32 * QUANTISE_PIECE - 1) / (32 * QUANTISE_PIECE);
    for (int32_t at = threadIdx.x * QUANTISE_PIECE; at < whole * 32 * QUANTISE_PIECE;
         at += (int32_t)blockDim.x * QUANTISE_PIECE) {
        struct quantise_piece piece[PUSH_BATCH];
#pragma unroll
        for (int n = 0; n < PUSH_BATCH; n++)
            if (n < batch->count)
                piece[n] = quantise_read(rows + (size_t)n * input.stride, l.shape.type, at, hidden);
#pragma unroll
        for (int n = 0; n < PUSH_BATCH; n++)
            if (n < batch->count)
                push_codes(l, turn, &batch->token[n], piece[n], at);
    }
}

template <typename Facts>
__device__ inline void push_tokens(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_send_args &send, const struct push_batch *batch)
{
    if (Facts::QUANTISED)
        push_quantised(l, turn, batch, send.input[0]);
    for (int n = 0; n < batch->count; n++)
        push_routes(l, turn, &batch->token[n], batch->first + n, threadIdx.x, blockDim.x);
    for (int array = Facts::QUANTISED ? 2 : 0; array < l.shape.arrays; array++)
        push_rows(l, turn, batch, send.input[array], array);
}

/* A thread for each destination of each token, as few warps as that takes: each waits for the block's stores once. */
__device__ inline void push_flags(const struct cuda_launch &l, const struct turn *turn, const struct push_batch *batch)
{
    int most = l.shape.topk < turn->ranks ? l.shape.topk : turn->ranks;
    for (int n = threadIdx.x; n < batch->count * most; n += blockDim.x) {
        const struct route_token *token = &batch->token[n / most];
        int i = n % most;
        if (i < token->destinations)
            flag_raise(destination_flag(l, turn, token, i), turn->stamp);
    }
}

/* Tokens that a block takes at a time, at most: it counts those of the other blocks only so often. */
enum { PUSH_TURN = 8 };

/* How many that are. */
__device__ __forceinline__ int32_t push_size(int32_t tokens, int32_t blocks)
{
    int32_t share = (tokens + blocks - 1) / blocks;
    return share < PUSH_TURN ? share : PUSH_TURN;
}

/* The batch that begins at `first`, of the turn that ends before `end`, as far as it can be known early. One warp. */
__device__ __forceinline__ void push_read(const struct route_input &in, int32_t first, int32_t end,
                                          struct push_batch *batch)
{
    int32_t count = end - first < PUSH_BATCH ? end - first : PUSH_BATCH;
    if ((threadIdx.x & 31) == 0) {
        batch->first = first;
        batch->count = count;
    }
    read_tokens(in, first, count, batch->token);
    __syncwarp();
}

/* By the warp of a block that does not raise flags. */
__device__ __forceinline__ bool push_places()
{
    return threadIdx.x / 32 == blockDim.x / 32 - 1;
}

/*
 * Some tokens, a batch after the other; those before have been counted, and the first batch is read. Batches take turns in
 * two places: one is placed while the flags of the other are raised.
 */
template <typename Facts>
__device__ inline void push_turn(const struct cuda_launch &l, const struct turn *turn,
                                 const struct dispatch_send_args &send, const struct route_counts &counts,
                                 int32_t begin, int32_t end, struct push_batch *batches)
{
    struct route_input in = send_routes(l, turn, send);
    for (int32_t first = begin; first < end; first += PUSH_BATCH) {
        struct push_batch *batch = &batches[(first - begin) / PUSH_BATCH & 1];
        if (push_places() && first > begin)
            push_read(in, first, end, batch);
        for (int32_t n = 0; push_places() && n < batch->count; n++)
            route_place(in, counts, &batch->token[n]);
        __syncthreads();
        push_tokens<Facts>(l, turn, send, batch);
        __syncthreads();
        push_flags(l, turn, batch);
        for (int32_t n = 0; n < batch->count; n++)
            push_keep(l, &batch->token[n], first + n, threadIdx.x, blockDim.x);
    }
}

/*
 * While the turn is entered (see turn_enter()), what is read first comes nearer: ids of the tokens that are counted, and the
 * first rows. A thread asks for 128 bytes.
 */
__device__ inline void push_prepare(const struct cuda_launch &l, const struct dispatch_send_args &send, int block,
                                    int blocks, int thread, int threads)
{
    enum { LINE = 128 };
    int32_t size = push_size(send.tokens, blocks), first = block * size, left = send.tokens - first;
    for (int32_t t = thread; left > 0 && t < first + (left < size ? left : size); t += threads)
        expect_line(send.topk_slots.data + (size_t)t * send.topk_slots.stride);
    int32_t lines = (int32_t)((l.shape.result_bytes + LINE - 1) / LINE), row = thread / lines;
    if (row < PUSH_BATCH && row < left)
        expect_line(send.input[0].data + (size_t)(first + row) * send.input[0].stride + thread % lines * LINE);
}

/*
 * Credit to store rows here (X4): every active rank has raised its combine line of the pair before, which this rank's
 * combine waited for, and a rank raises that when the kernel that consumed its rows is over. The row's flag comes after
 * the row: all threads have stored their pieces before the barrier, and the flag is a release (X5).
 *
 * Blocks take their turns in the order of tokens, so that rows go out as receivers wait for them; each counts the tokens of
 * all others as it comes by.
 */
template <typename Facts>
__device__ inline void send_push_block(const struct cuda_launch &l, const struct turn *turn,
                                       const struct dispatch_send_args &send, const struct route_counts &counts,
                                       int block, int blocks)
{
    __shared__ struct push_batch batches[2];
    struct route_input in = send_routes(l, turn, send);
    int32_t size = push_size(send.tokens, blocks), counted = 0;
    int32_t warp = (int32_t)threadIdx.x / 32, warps = (int32_t)blockDim.x / 32;
    if (!place_first<Facts>(l, turn, counts))
        return;
    for (int32_t first = block * size; first < send.tokens; first += blocks * size) {
        int32_t end = send.tokens - first < size ? send.tokens : first + size;
        __syncthreads(); /* the last turn's tokens are counted */
        if (push_places())
            push_read(in, first, end, &batches[0]);
        else
            route_each<false>(in, counted, first, warp, warps - 1,
                              [&](const struct route &r) { route_count(in, counts, r); });
        __syncthreads();
        push_turn<Facts>(l, turn, send, counts, first, end, batches);
        counted = end;
    }
}

#endif
