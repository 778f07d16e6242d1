// SPDX-License-Identifier: Apache-2.0
/* Expert-major: rows that come in words, a row or a part of it by a block. */
#ifndef CUDA_DISPATCH_TAKE_WORDS_CUH
#define CUDA_DISPATCH_TAKE_WORDS_CUH

#include "kernels/cuda/dispatch_rows.cuh"
#include "kernels/cuda/dispatch_words.cuh"

/* Where a route wants the row of an array; NULL: nowhere. */
__device__ __forceinline__ unsigned char *
words_wanted(const struct cuda_launch &l, const struct dispatch_receive_args &args, int array, bool routed, size_t row)
{
    return routed && args.output[array] ? args.output[array] + row * l.shape.array[array].row_bytes : NULL;
}

/* To a caller's memory, which may be aligned to less. */
static __device__ __noinline__ void words_store_narrow(unsigned char *to, uint64_t value, int32_t bytes)
{
#pragma unroll 1
    for (int32_t i = 0; i < bytes; i++)
        to[i] = (unsigned char)(value >> 8 * i);
}

/* A lane's piece to its place in a row that begins at `row`. */
__device__ __forceinline__ void words_place_piece(unsigned char *row, int32_t n, uint4 piece)
{
    unsigned char *place = row + 16 * (size_t)n;
    if (copy_width(copy_bits(row)) == 16) {
        stream_store(place, piece);
        return;
    }
    words_store_narrow(place, (uint64_t)piece.y << 32 | piece.x, 8);
    words_store_narrow(place + 8, (uint64_t)piece.w << 32 | piece.z, 8);
}

/* By a warp: the pieces at `n` and `next` of each lane, as far as they are before `end`, to wherever lanes want the row. */
__device__ inline void words_spread(unsigned char *to, int32_t n, int32_t next, int32_t end, uint4 piece, uint4 second)
{
    for (unsigned wanted = __ballot_sync(~0u, to != NULL); wanted; wanted &= wanted - 1) {
        auto row = (unsigned char *)__shfl_sync(~0u, (unsigned long long)to, __ffs(wanted) - 1);
        if (n < end)
            words_place_piece(row, n, piece);
        if (next < end)
            words_place_piece(row, next, second);
    }
}

/* By a warp: an array other than the first, a word for each lane, to wherever lanes want it. False: the step is void. */
template <bool FT>
__device__ inline bool words_take_array(const struct cuda_launch &l, const struct turn *turn,
                                        const struct exchange_word *words, int array, int rank, unsigned char *to)
{
    const struct exchange_array &a = l.shape.array[array];
    int32_t count = (int32_t)a.row_bytes / a.word_bytes;
    for (int32_t first = 0; first < count; first += 32) {
        int32_t n = first + ((int32_t)threadIdx.x & 31);
        auto word = [&](int) { return n < count ? words + a.first_word + n : NULL; };
        uint64_t value[1];
        if (!__all_sync(~0u, words_await<FT, 1>(
                                 l, turn, MUSTER_PHASE_DISPATCH, word, [&](int) { return rank; }, value)))
            return false;
        for (unsigned wanted = __ballot_sync(~0u, to != NULL); wanted; wanted &= wanted - 1) {
            auto row = (unsigned char *)__shfl_sync(~0u, (unsigned long long)to, __ffs(wanted) - 1);
            if (n < count)
                words_store_narrow(row + (size_t)n * (size_t)a.word_bytes, value[0], a.word_bytes);
        }
    }
    return true;
}

/* What is known of the row in `in`, to where combine looks for it, and to the caller. Lanes are routes. */
__device__ inline void keep_row(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                const struct arrived_row *in, int rank, float weight, int32_t index, size_t out)
{
    int lane = threadIdx.x & 31;
    size_t route = in->row * (size_t)l.shape.topk + (size_t)lane;
    if (lane == 0)
        ((int32_t *)own_at(l, l.shape.row_token))[in->row] = in->token;
    if (lane < l.shape.topk) {
        ((int32_t *)own_at(l, l.shape.row_slot))[route] = in->slot;
        ((int32_t *)own_at(l, l.shape.row_index))[route] = index;
        ((float *)own_at(l, l.shape.row_weight))[route] = weight;
    }
    if (in->slot >= 0 && args.source)
        write_source(args.source, out, rank, in->token);
}

/* A unit of what blocks share, as a warp sees it: a part of the row of a token of a rank. */
struct words_unit {
    int32_t rank, token;
    int32_t n, step, end; /* pieces: this lane's first, how far it is from it to the next, the end of the part */
    bool beside; /* this warp takes what lies beside the row */
    const struct exchange_word *words;
};

/* By the warps that receive rows; the last one takes what lies beside the first part. */
__device__ __forceinline__ struct words_unit words_unit_at(const struct cuda_launch &l, int32_t unit)
{
    const struct cuda_cut &cut = l.plan.receive_cut;
    struct quotient at = divide(cut_row(cut, unit), l.by.ranks);
    struct cut_share share = cut_share(cut, (int32_t)(l.shape.array[0].row_bytes / 16), unit);
    struct words_unit u = {at.rest, at.whole, share.begin + (int32_t)threadIdx.x, 32 * l.plan.stages, share.end};
    u.beside = cut_part(cut, unit) == 0 && (int32_t)threadIdx.x / 32 == l.plan.stages - 1;
    u.words = words_row(l, own_at(l, l.shape.word_rows), u.rank, u.token);
    return u;
}

/* Whether the warp has something to do in it. */
__device__ __forceinline__ bool words_unit_has(const struct words_unit &u)
{
    return u.beside || u.n - (int32_t)(threadIdx.x & 31) < u.end;
}

/*
 * The words that a lane reads at a time, for words_read(): two pieces, and with the first ones those of its route, which
 * come before.
 */
__device__ __forceinline__ const struct exchange_word *words_unit_word(const struct cuda_launch &l,
                                                                       const struct words_unit &u, bool routes, int i)
{
    int32_t lane = (int32_t)threadIdx.x & 31, n = i < 4 ? u.n : u.n + u.step;
    if (i < 2)
        return routes && lane < l.shape.topk ? u.words + 2 * lane + i : NULL;
    return n < u.end ? u.words + l.shape.array[0].first_word + 2 * n + i % 2 : NULL;
}

/* False: the step is void. */
template <bool FT>
__device__ __forceinline__ bool words_unit_await(const struct cuda_launch &l, const struct turn *turn,
                                                 const struct words_unit &u, bool routes, uint64_t (&value)[6])
{
    auto word = [&](int i) { return words_unit_word(l, u, routes, i); };
    auto peer = [&](int) { return u.rank; };
    return __all_sync(~0u, words_await<FT, 6>(l, turn, MUSTER_PHASE_DISPATCH, word, peer, value));
}

/*
 * The block's first unit, while other warps hear what comes: its row may be there before. Looks for it until it has come or
 * they have heard, and so waits no longer than they. True: `value` is what words_unit_await() would bring.
 */
__device__ __forceinline__ bool words_unit_expect(const struct cuda_launch &l, const struct turn *turn,
                                                  const struct words_unit &u, const uint32_t *heard, uint32_t hearing,
                                                  uint64_t (&value)[6])
{
    auto word = [&](int i) { return words_unit_word(l, u, true, i); };
    if (u.token >= l.shape.word_tokens || !words_unit_has(u))
        return false;
    for (;;) {
        bool last = share_read(heard) == hearing;
        if (__all_sync(~0u, words_read<6>(word, turn->stamp, value) < 0))
            return true;
        if (__any_sync(~0u, last))
            return false;
    }
}

/* What lies beside a row in words, by a warp: the other arrays, and what is known of it. */
template <bool FT>
__device__ inline bool receive_beside(const struct cuda_launch &l, const struct turn *turn,
                                      const struct dispatch_receive_args &args, const struct exchange_word *words,
                                      const struct arrived_row *in, int rank, float weight, int32_t index, size_t out)
{
    keep_row(l, args, in, rank, weight, index, out);
    for (int array = 1; array < l.shape.arrays; array++)
        if (!words_take_array<FT>(l, turn, words, array, rank, words_wanted(l, args, array, in->slot >= 0, out)))
            return false;
    return true;
}

/*
 * A unit of a row that comes. Every warp that has something to do reads the routes, together with its first pieces; `come`:
 * those have been read. False: the step is void.
 */
template <bool FT>
__device__ __forceinline__ bool words_unit_receive(const struct cuda_launch &l, const struct turn *turn,
                                                   const struct dispatch_receive_args &args, const struct receiving *r,
                                                   struct words_unit u, bool come, uint64_t (&value)[6])
{
    if (!words_unit_has(u))
        return true;
    if (!come && !words_unit_await<FT>(l, turn, u, true, value))
        return false;
    bool has = (int32_t)(threadIdx.x & 31) < l.shape.topk;
    int32_t j = __popcll(r->tokens[u.rank] & ((1ull << u.token) - 1));
    struct arrived_row in = {row_at(l.shape, u.rank, j), u.token, has ? (int32_t)(uint32_t)value[0] : -1,
                             has ? (int32_t)(value[0] >> 32) : 0};
    if (!accept_row(l, turn, r, u.rank, &in))
        return false;
    bool routed = in.slot >= 0;
    int32_t index = routed ? first_row(r, l.shape.ranks, in.slot, u.rank) + in.index : 0;
    size_t out = routed ? row_at(l.shape, in.slot * l.shape.ranks, index) : 0;
    float weight = __uint_as_float((uint32_t)value[1]);
    unsigned char *to = words_wanted(l, args, 0, routed, out);
    for (;;) {
        words_spread(to, u.n, u.n + u.step, u.end, words_piece(value[2], value[3]), words_piece(value[4], value[5]));
        u.n += 2 * u.step;
        if (u.n - (int32_t)(threadIdx.x & 31) >= u.end)
            return !u.beside || receive_beside<FT>(l, turn, args, u.words, &in, u.rank, weight, index, out);
        if (!words_unit_await<FT>(l, turn, u, false, value))
            return false;
    }
}

/*
 * Row by row as in receive_rows(), but all warps of a block take a row, or a part of it. `come`: `value` has been read of the
 * first unit. False: the step is void.
 */
template <bool FT>
__device__ __forceinline__ bool receive_in_words(const struct cuda_launch &l, const struct turn *turn,
                                                 const struct dispatch_receive_args &args, const struct receiving *r,
                                                 int block, int blocks, bool come, uint64_t (&value)[6])
{
    int32_t all = r->end_in_words * turn->ranks << l.plan.receive_cut.log2_parts;
    for (int32_t unit = block; unit < all; unit += blocks) {
        struct words_unit u = words_unit_at(l, unit);
        if (!(r->tokens[u.rank] >> u.token & 1))
            continue;
        if (!words_unit_receive<FT>(l, turn, args, r, u, come && unit == block, value))
            return false;
    }
    return true;
}

/* The same where this rank's own rows do not go in words: inlined it would take registers from those who receive the others. */
template <bool FT>
static __device__ __noinline__ bool receive_in_words_too(const struct cuda_launch &l, const struct turn *turn,
                                                         const struct dispatch_receive_args &args,
                                                         const struct receiving *r, int block, int blocks)
{
    uint64_t value[6];
    return receive_in_words<FT>(l, turn, args, r, block, blocks, false, value);
}

#endif
