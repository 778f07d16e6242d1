// SPDX-License-Identifier: Apache-2.0
/* Second half of combine: for each of this rank's own tokens wait for the ranks that owe it something, then add up. */
#ifndef CUDA_COMBINE_RECEIVE_CUH
#define CUDA_COMBINE_RECEIVE_CUH

#include "kernels/cuda/quantise_return.cuh"
#include "kernels/cuda/region.cuh"
#include "kernels/cuda/sum.cuh"
#include "kernels/cuda/wait.cuh"

/* Row of a part at home: what rank n adds to the token (reduced), or what route n brought (exact). */
__device__ __forceinline__ const unsigned char *home_row(const struct cuda_launch &l, const struct turn *turn,
                                                         int32_t token, int n)
{
    const struct exchange_shape &shape = l.shape;
    if (shape.exact)
        return region_at(turn, turn->rank, shape.home) +
               ((size_t)token * (size_t)shape.topk + (size_t)n) * shape.return_bytes;
    return region_at(turn, turn->rank, shape.arrived) + row_at(shape, n, token) * shape.return_bytes;
}

/* Exact: the routes that were sent, in k order, with their weights. A lane is a route. */
__device__ inline void find_routes(const struct cuda_launch &l, const struct turn *turn, int32_t token,
                                   struct sum_parts *parts)
{
    int lane = threadIdx.x & 31;
    size_t route = (size_t)token * (size_t)l.shape.topk + (size_t)lane;
    bool sent = lane < l.shape.topk && l.own.token_slots[route] >= 0;
    unsigned all = __ballot_sync(~0u, sent);
    if (sent) {
        int part = __popc(all & ((1u << lane) - 1));
        parts->row[part] = home_row(l, turn, token, lane);
        parts->weight[part] = l.own.token_weights[route];
    }
    if (lane == 0)
        parts->count = __popc(all);
}

/* Reduced: the ranks that own routes, in rank order; they have weighted. */
__device__ inline void find_ranks(const struct cuda_launch &l, const struct turn *turn, int32_t token,
                                  struct sum_parts *parts)
{
    int32_t count = 0;
    for (int begin = 0; begin < turn->ranks; begin += 32) {
        uint64_t word = l.own.token_ranks[2 * (size_t)token + (size_t)(begin >> 6)];
        unsigned all = (unsigned)(word >> (begin & 63)), lane = threadIdx.x & 31;
        if (all >> lane & 1) {
            int part = count + __popc(all & ((1u << lane) - 1));
            parts->row[part] = home_row(l, turn, token, begin + (int)lane);
            parts->weight[part] = 1.0f;
        }
        count += __popc(all);
    }
    if ((threadIdx.x & 31) == 0)
        parts->count = count;
}

/* What is added up for a token. One warp. */
__device__ inline void find_token(const struct cuda_launch &l, const struct turn *turn, int32_t token,
                                  struct sum_parts *parts)
{
    parts->aligned = true; /* rows at home are multiples of 16 bytes */
    if (l.shape.exact)
        find_routes(l, turn, token, parts);
    else
        find_ranks(l, turn, token, parts);
}

/* A thread waits for each rank that owes something to the token. */
template <bool FT>
__device__ inline bool await_ranks(const struct cuda_launch &l, const struct turn *turn, int32_t token)
{
    bool come = true;
    int rank = (int)threadIdx.x;
    if (rank < turn->ranks && l.own.token_ranks[2 * (size_t)token + (rank >> 6)] >> (rank & 63) & 1) {
        const uint64_t *flag = (const uint64_t *)region_at(turn, turn->rank, l.shape.arrived_flag);
        come = wait_flag<FT>(l, turn, {flag + row_at(l.shape, rank, token), turn->stamp, rank, MUSTER_PHASE_COMBINE});
    }
    return __syncthreads_and(come);
}

/* X4: the next dispatch may overwrite what a rank was sent in this one only when that rank has said that it is done. */
template <bool FT> __device__ inline void await_combine_lines(const struct cuda_launch &l, const struct turn *turn)
{
    int rank = (int)threadIdx.x;
    if (rank >= turn->ranks || !turn_has(turn, rank))
        return;
    const uint64_t *flag = &line_at(turn, turn->rank, l.shape.combine_line, rank)->flag;
    wait_flag<FT>(l, turn, {flag, turn->stamp, rank, MUSTER_PHASE_COMBINE});
}

template <bool QUANTISED>
__device__ __forceinline__ void add_up_token(const struct exchange_shape &shape, const struct sum_parts *parts,
                                             unsigned char *to)
{
    if (QUANTISED)
        return_add_up(shape, parts, to);
    else
        sum_row(parts, shape.type, to, shape.result_bytes);
}

enum { ADD_TOKENS = 8 };

/* As in combine_send.cuh, each warp finds out about another of the block's next tokens. */
template <bool FT, bool QUANTISED>
__device__ inline void add_up_tokens(const struct cuda_launch &l, const struct turn *turn,
                                     const struct combine_receive_args &args, int32_t tokens, int block, int blocks)
{
    __shared__ struct sum_parts parts[ADD_TOKENS];
    int32_t warps = (int32_t)blockDim.x / 32, ahead = warps < ADD_TOKENS ? warps : ADD_TOKENS;
    for (int32_t first = block; first < tokens; first += ahead * blocks) {
        int32_t mine = first + (int32_t)threadIdx.x / 32 * blocks;
        __syncthreads(); /* the tokens before are added up */
        if (threadIdx.x / 32 < ahead && mine < tokens)
            find_token(l, turn, mine, &parts[threadIdx.x / 32]);
        __syncthreads();
        for (int32_t n = 0; n < ahead && first + n * blocks < tokens; n++) {
            int32_t token = first + n * blocks;
            if (!await_ranks<FT>(l, turn, token))
                return;
            add_up_token<QUANTISED>(l.shape, &parts[n], args.out + (size_t)token * l.shape.result_bytes);
        }
    }
}

#endif
