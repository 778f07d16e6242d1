// SPDX-License-Identifier: Apache-2.0
/*
 * Where every route goes. Row j of a rank is the j-th token of this source that routes there, and a route is the i-th
 * of its source in its slot (X6): both are counts over the tokens before, so each block counts for itself and draws
 * nothing from a shared counter.
 */
#ifndef CUDA_ROUTE_CUH
#define CUDA_ROUTE_CUH

#include "kernels/cuda/turn.cuh"

/* This rank's tokens, and what of a route must be known to judge it. */
struct route_input {
    const struct dispatch_send_args *send;
    const struct turn *turn;
    int32_t slots_per_rank, slots, topk; /* slots: of all ranks */
};

/* The counts over some tokens, in shared memory. */
struct route_counts {
    int32_t *slot; /* [slots] routes */
    int32_t *rank; /* [MUSTER_MAX_RANKS] tokens with a route there */
};

__device__ __forceinline__ int64_t route_id(const struct route_input &in, int32_t token, int32_t k)
{
    const unsigned char *row = in.send->topk_slots.data + (size_t)token * in.send->topk_slots.stride;
    return in.send->wide ? ((const int64_t *)row)[k] : (int64_t)((const int32_t *)row)[k];
}

__device__ __forceinline__ float route_weight(const struct route_input &in, int32_t token, int32_t k)
{
    if (!in.send->topk_weights.data)
        return 1.0f;
    return ((const float *)(in.send->topk_weights.data + (size_t)token * in.send->topk_weights.stride))[k];
}

/* The slot that the route is sent to, or -1: none, out of range, or on a rank that takes no part (X7). */
__device__ __forceinline__ int32_t route_slot(const struct route_input &in, int32_t token, int32_t k)
{
    int64_t slot = route_id(in, token, k);
    if (slot < 0 || slot >= in.slots)
        return -1;
    return turn_has(in.turn, (int)slot / in.slots_per_rank) ? (int32_t)slot : -1;
}

__device__ inline void route_clear(const struct route_input &in, const struct route_counts &counts)
{
    for (int i = threadIdx.x; i < in.slots; i += blockDim.x)
        counts.slot[i] = 0;
    for (int i = threadIdx.x; i < MUSTER_MAX_RANKS; i += blockDim.x)
        counts.rank[i] = 0;
}

/* Adds one token's routes to the counts; returns the ranks they go to. One thread. */
__device__ inline muster_mask route_count(const struct route_input &in, const struct route_counts &counts,
                                          int32_t token)
{
    muster_mask seen = {{0, 0}};
    for (int32_t k = 0; k < in.topk; k++) {
        int32_t slot = route_slot(in, token, k);
        if (slot < 0)
            continue;
        int rank = slot / in.slots_per_rank;
        uint64_t bit = UINT64_C(1) << (rank & 63);
        atomicAdd(&counts.slot[slot], 1);
        if (!(seen.word[rank >> 6] & bit))
            atomicAdd(&counts.rank[rank], 1);
        seen.word[rank >> 6] |= bit;
    }
    return seen;
}

/* One token as it is sent: its routes, and the ranks that get a row of it. In shared memory, filled by one warp. */
struct route_token {
    int32_t slot[MUSTER_EP_MAX_TOPK]; /* -1: not sent */
    int32_t index[MUSTER_EP_MAX_TOPK]; /* of the route in its slot */
    float weight[MUSTER_EP_MAX_TOPK];
    int32_t destinations;
    int32_t rank[MUSTER_EP_MAX_TOPK]; /* of each destination */
    int32_t row[MUSTER_EP_MAX_TOPK]; /* which of its rows */
};

/* The lanes before this one. */
__device__ __forceinline__ unsigned route_lanes_before()
{
    return (1u << (threadIdx.x & 31)) - 1;
}

/* Takes the token's places from the counts over all tokens before it, and counts it. One warp; a lane is a route. */
__device__ inline void route_place(const struct route_input &in, const struct route_counts &counts, int32_t token,
                                   struct route_token *out)
{
    int lane = threadIdx.x & 31;
    int32_t slot = lane < in.topk ? route_slot(in, token, lane) : -1;
    int32_t rank = slot < 0 ? -1 - lane : slot / in.slots_per_rank; /* lanes without a route match nobody */
    unsigned same = __match_any_sync(~0u, rank);
    bool first = slot >= 0 && !(same & route_lanes_before());
    unsigned firsts = __ballot_sync(~0u, first);
    int32_t row = first ? counts.rank[rank] : 0;
    if (lane < in.topk) {
        out->slot[lane] = slot;
        out->index[lane] = slot < 0 ? 0 : counts.slot[slot]++;
        out->weight[lane] = slot < 0 ? 0.0f : route_weight(in, token, lane);
    }
    if (first) {
        int i = __popc(firsts & route_lanes_before());
        out->rank[i] = rank;
        out->row[i] = row;
        counts.rank[rank] = row + 1;
    }
    if (lane == 0)
        out->destinations = __popc(firsts);
}

#endif
