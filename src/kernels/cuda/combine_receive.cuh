// SPDX-License-Identifier: Apache-2.0
/* Second half of combine: for each of this rank's own tokens wait for the ranks that owe it something, then add up. */
#ifndef CUDA_COMBINE_RECEIVE_CUH
#define CUDA_COMBINE_RECEIVE_CUH

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
               ((size_t)token * (size_t)shape.topk + (size_t)n) * shape.result_bytes;
    return region_at(turn, turn->rank, shape.arrived) + row_at(shape, n, token) * shape.result_bytes;
}

/* Exact: the routes that were sent, in k order, with their weights. One thread. */
__device__ inline void find_routes(const struct cuda_launch &l, const struct turn *turn, int32_t token,
                                   struct sum_parts *parts)
{
    int32_t count = 0;
    for (int k = 0; k < l.shape.topk; k++) {
        size_t route = (size_t)token * (size_t)l.shape.topk + (size_t)k;
        if (l.own.token_slots[route] < 0)
            continue;
        parts->row[count] = home_row(l, turn, token, k);
        parts->weight[count++] = l.own.token_weights[route];
    }
    parts->count = count;
}

/* Reduced: the ranks that own routes, in rank order; they have weighted. One thread. */
__device__ inline void find_ranks(const struct cuda_launch &l, const struct turn *turn, int32_t token,
                                  struct sum_parts *parts)
{
    int32_t count = 0;
    for (int w = 0; w < 2; w++)
        for (uint64_t rest = l.own.token_ranks[2 * (size_t)token + w]; rest; rest &= rest - 1) {
            parts->row[count] = home_row(l, turn, token, 64 * w + __ffsll((long long)rest) - 1);
            parts->weight[count++] = 1.0f;
        }
    parts->count = count;
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

template <bool FT>
__device__ inline void add_up_tokens(const struct cuda_launch &l, const struct turn *turn,
                                     const struct combine_receive_args &args, int32_t tokens, int block, int blocks)
{
    __shared__ struct sum_parts parts[2]; /* one is added up while the next is found */
    for (int32_t token = block, turnabout = 0; token < tokens; token += blocks) {
        struct sum_parts *part = &parts[turnabout ^= 1];
        if (threadIdx.x == blockDim.x - 1) { /* of a warp that has nobody to wait for */
            part->aligned = true; /* rows at home are multiples of 16 bytes */
            if (l.shape.exact)
                find_routes(l, turn, token, part);
            else
                find_ranks(l, turn, token, part);
        }
        if (!await_ranks<FT>(l, turn, token))
            return;
        sum_row(part, l.shape.type, args.out + (size_t)token * l.shape.result_bytes, l.shape.result_bytes);
    }
}

#endif
