// SPDX-License-Identifier: Apache-2.0
/* Second half of combine: for each of this rank's own tokens wait for the ranks that owe it something, then add up. */
#ifndef CUDA_COMBINE_RECEIVE_CUH
#define CUDA_COMBINE_RECEIVE_CUH

#include "kernels/cuda/combine_facts.cuh"
#include "kernels/cuda/quantise_return.cuh"
#include "kernels/cuda/region.cuh"
#include "kernels/cuda/sum.cuh"
#include "kernels/cuda/wait.cuh"
#include "kernels/cuda/words.cuh"

/* What is added up for a token. In shared memory, filled by one warp. */
struct owed {
    struct sum_parts parts;
    int32_t from[MUSTER_EP_MAX_TOPK]; /* the rank that each part comes from */
};

enum { ADD_TOKENS = 8 };

/* What a block knows of its next tokens. */
struct adding {
    struct owed token[ADD_TOKENS];
};

/* Where what a rank adds to a token comes home (reduced). Needs no turn. */
__device__ __forceinline__ const unsigned char *home_of_rank(const struct cuda_launch &l, int32_t token, int rank)
{
    const struct exchange_shape &shape = l.shape;
    if (l.plan.words)
        return (const unsigned char *)words_result(shape, l.own.base, (size_t)(rank * shape.word_tokens + token));
    return l.own.base + shape.arrived + row_at(shape, rank, token) * shape.return_bytes;
}

/* Where what route k of a token brings does (exact). */
__device__ __forceinline__ const unsigned char *home_of_route(const struct cuda_launch &l, int32_t token, int k)
{
    const struct exchange_shape &shape = l.shape;
    size_t route = (size_t)token * (size_t)shape.topk + (size_t)k;
    if (l.plan.words)
        return (const unsigned char *)words_result(shape, l.own.base, route);
    return l.own.base + shape.home + route * shape.return_bytes;
}

/* Exact: the routes that were sent, in k order, with their weights. A lane is a route. */
__device__ inline void find_routes(const struct cuda_launch &l, int32_t token, struct owed *owed)
{
    int lane = threadIdx.x & 31;
    size_t route = (size_t)token * (size_t)l.shape.topk + (size_t)lane;
    int32_t slot = lane < l.shape.topk ? l.own.token_slots[route] : -1;
    unsigned all = __ballot_sync(~0u, slot >= 0);
    if (slot >= 0) {
        int part = __popc(all & ((1u << lane) - 1));
        owed->parts.row[part] = home_of_route(l, token, lane);
        owed->parts.weight[part] = l.own.token_weights[route];
        owed->from[part] = slot / l.shape.slots;
    }
    if (lane == 0) {
        owed->parts.count = __popc(all);
        owed->parts.aligned = true;
    }
}

/* The ranks to which dispatch has sent a token. */
__device__ __forceinline__ muster_mask ranks_of(const struct cuda_launch &l, int32_t token)
{
    return {l.own.token_ranks[2 * (size_t)token], l.own.token_ranks[2 * (size_t)token + 1]};
}

/* Reduced: those ranks, in rank order; they have weighted. */
__device__ inline void find_ranks(const struct cuda_launch &l, int32_t token, const muster_mask &ranks,
                                  struct owed *owed)
{
    int32_t count = 0;
#pragma unroll 1
    for (int begin = 0; begin < l.shape.ranks; begin += 32) {
        uint64_t word = begin < 64 ? ranks.word[0] : ranks.word[1];
        unsigned all = (unsigned)(word >> (begin & 63)), lane = threadIdx.x & 31;
        if (all >> lane & 1) {
            int part = count + __popc(all & ((1u << lane) - 1));
            owed->parts.row[part] = home_of_rank(l, token, begin + (int)lane);
            owed->parts.weight[part] = 1.0f;
            owed->from[part] = begin + (int)lane;
        }
        count += __popc(all);
    }
    if ((threadIdx.x & 31) == 0) {
        owed->parts.count = count;
        owed->parts.aligned = true; /* rows at home are multiples of 16 bytes */
    }
}

/* One warp. */
template <typename Facts>
__device__ inline void find_token(const struct cuda_launch &l, int32_t token, struct owed *owed)
{
    if (!Facts::SUMS && l.shape.exact)
        find_routes(l, token, owed);
    else
        find_ranks(l, token, ranks_of(l, token), owed);
}

/* A warp waits for all that is owed to a token, a lane for each part. CALM: see wait_flags(). */
template <bool FT, bool CALM>
__device__ __forceinline__ bool await_owed(const struct cuda_launch &l, const struct turn *turn,
                                           const struct owed *owed, int32_t token)
{
    int lane = (int)threadIdx.x & 31, rank = lane < owed->parts.count ? owed->from[lane] : 0;
    const uint64_t *flags = (const uint64_t *)own_at(l, l.shape.arrived_flag);
    const uint64_t *flag = lane < owed->parts.count ? flags + row_at(l.shape, rank, token) : NULL;
    return wait_flags<FT, CALM>(l, turn, {flag, turn->stamp, rank, MUSTER_PHASE_COMBINE});
}

/* X4: the next dispatch may overwrite what a rank was sent in this one only when that rank has said that it is done. */
template <bool FT> __device__ inline void await_combine_lines(const struct cuda_launch &l, const struct turn *turn)
{
    int rank = (int)threadIdx.x;
    if (rank >= turn->ranks || !turn_has(turn, rank))
        return;
    const uint64_t *flag = &line_at(own_at(l, l.shape.combine_line), rank)->flag;
    wait_flag<FT>(l, turn, flag, rank, MUSTER_PHASE_COMBINE);
}

template <typename Facts>
__device__ __forceinline__ void add_up_token(const struct exchange_shape &shape, const struct sum_parts *parts,
                                             unsigned char *to)
{
    if (Facts::QUANTISED)
        return_add_up<Facts::TYPE>(shape, parts, to);
    else
        sum_row<Facts::TYPE, !Facts::SUMS>(parts, to, shape.result_bytes);
}

/* A thread's pieces of a part of a token that comes home in words. False: the step is void. */
template <typename Facts>
__device__ inline bool add_up_words(const struct cuda_launch &l, const struct turn *turn, const struct owed *owed,
                                    const struct cut_share &share, unsigned char *to)
{
    bool aligned = copy_width(copy_bits(to)) == 16;
    for (int32_t n = share.begin + (int32_t)threadIdx.x; n < share.end; n += (int32_t)blockDim.x) {
        float total[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int begin = 0; begin < owed->parts.count; begin += SUM_FLIGHT) {
            uint64_t value[2 * SUM_FLIGHT];
            auto word = [&](int i) {
                auto row = (const struct exchange_word *)owed->parts.row[begin + i / 2];
                return begin + i / 2 < owed->parts.count ? row + 2 * n + i % 2 : NULL;
            };
            auto peer = [&](int i) { return owed->from[begin + i / 2]; };
            if (!words_await<Facts::FT, 2 * SUM_FLIGHT>(l, turn, MUSTER_PHASE_COMBINE, word, peer, value))
                return false;
#pragma unroll
            for (int i = 0; i < SUM_FLIGHT; i++)
                if (begin + i < owed->parts.count)
                    sum_add<Facts::TYPE, !Facts::SUMS>(total, words_piece(value[2 * i], value[2 * i + 1]),
                                                       owed->parts.weight[begin + i]);
        }
        if (aligned)
            sum_store<true>(to + (size_t)n * SUM_PIECE, sum_round<Facts::TYPE>(total));
        else
            sum_store<false>(to + (size_t)n * SUM_PIECE, sum_round<Facts::TYPE>(total));
    }
    return true;
}

/* As in combine_send.cuh, each warp finds out about another of the block's next tokens, of which so many units are one. */
template <typename Facts>
__device__ inline void find_tokens(const struct cuda_launch &l, int32_t tokens, int32_t first, int32_t warp,
                                   struct adding *a)
{
    int32_t token = cut_row(l.plan.receive_cut, first + warp * l.plan.receive_blocks);
    if (warp < ADD_TOKENS && token < tokens)
        find_token<Facts>(l, token, &a->token[warp]);
}

/* The first ones while the turn is entered: see turn_enter(). */
template <typename Facts>
__device__ inline void adding_prepare(const struct cuda_launch &l, int32_t tokens, int block, int thread,
                                      struct adding *a)
{
    find_tokens<Facts>(l, tokens, block, thread / 32, a);
}

template <typename Facts>
__device__ inline bool add_up_unit(const struct cuda_launch &l, const struct turn *turn, const struct owed *owed,
                                   int32_t unit, unsigned char *out)
{
    int32_t token = cut_row(l.plan.receive_cut, unit);
    unsigned char *to = out + (size_t)token * l.shape.result_bytes;
    if (Facts::KIND == COMBINE_WORDS) {
        struct cut_share share = cut_share(l.plan.receive_cut, (int32_t)(l.shape.result_bytes / SUM_PIECE), unit);
        return __syncthreads_and(add_up_words<Facts>(l, turn, owed, share, to));
    }
    bool come = true;
    if (threadIdx.x < 32)
        come = await_owed<Facts::FT, false>(l, turn, owed, token);
    if (!__syncthreads_and(come))
        return false;
    add_up_token<Facts>(l.shape, &owed->parts, to);
    return true;
}

template <typename Facts>
__device__ inline void add_up_tokens(const struct cuda_launch &l, const struct turn *turn,
                                     const struct combine_receive_args &args, int32_t tokens, int block, int blocks,
                                     struct adding *a)
{
    int32_t warps = (int32_t)blockDim.x / 32 - 1, ahead = warps < ADD_TOKENS ? warps : ADD_TOKENS;
    int32_t units = tokens << l.plan.receive_cut.log2_parts;
    for (int32_t first = block; first < units; first += ahead * blocks) {
        if (first != block) {
            __syncthreads(); /* the tokens before are added up */
            find_tokens<Facts>(l, tokens, first, (int32_t)threadIdx.x / 32, a);
            __syncthreads();
        }
        for (int32_t n = 0; n < ahead && first + n * blocks < units; n++)
            if (!add_up_unit<Facts>(l, turn, &a->token[n], first + n * blocks, args.out))
                return;
    }
}

#endif
