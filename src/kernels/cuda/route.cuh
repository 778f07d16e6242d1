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
    bool counts_slots; /* expert-major, or somebody has asked for loads */
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

__device__ inline void route_clear(const struct route_input &in, const struct route_counts &counts)
{
    for (int i = threadIdx.x; i < in.slots; i += blockDim.x)
        counts.slot[i] = 0;
    for (int i = threadIdx.x; i < MUSTER_MAX_RANKS; i += blockDim.x)
        counts.rank[i] = 0;
}

/* The slot that a route is sent to; -1: it is not sent. */
__device__ __forceinline__ int32_t route_slot(const struct route_input &in, int64_t id)
{
    if (id < 0 || id >= in.slots)
        return -1;
    return turn_has(in.turn, (int32_t)id / in.slots_per_rank) ? (int32_t)id : -1;
}

/* The lanes before this one. */
__device__ __forceinline__ unsigned route_lanes_before()
{
    return (1u << (threadIdx.x & 31)) - 1;
}

/* Calls visit(token) for the tokens from `begin` on, a thread each, warps in step; the last lanes' may lie past `end`. */
template <typename Visit> __device__ __forceinline__ void route_each(int32_t begin, int32_t end, Visit visit)
{
    int32_t lane = (int32_t)threadIdx.x & 31;
    for (int32_t first = begin + (int32_t)threadIdx.x - lane; first < end; first += (int32_t)blockDim.x)
        visit(first + lane);
}

/* Calls visit(k, id) for the routes of a token, whose ids are loaded several at a time. One thread. */
template <typename Visit>
__device__ __forceinline__ void route_each_of(const struct route_input &in, int32_t token, Visit visit)
{
    enum { FLIGHT = 8 };
    for (int32_t begin = 0; begin < in.topk; begin += FLIGHT) {
        int64_t id[FLIGHT];
#pragma unroll
        for (int32_t i = 0; i < FLIGHT; i++)
            id[i] = begin + i < in.topk ? route_id(in, token, begin + i) : -1;
#pragma unroll
        for (int32_t i = 0; i < FLIGHT; i++)
            if (begin + i < in.topk)
                visit(begin + i, id[i]);
    }
}

/* Counts a token's routes where somebody wants to know; returns the ranks that they go to. One thread. */
__device__ __forceinline__ muster_mask route_count_slots(const struct route_input &in,
                                                         const struct route_counts &counts, int32_t token)
{
    muster_mask ranks = {{0, 0}};
    route_each_of(in, token, [&](int32_t, int64_t id) {
        int32_t slot = route_slot(in, id);
        if (slot < 0)
            return;
        int32_t rank = slot / in.slots_per_rank;
        ranks.word[rank >> 6] |= UINT64_C(1) << (rank & 63);
        if (in.counts_slots)
            atomicAdd(&counts.slot[slot], 1);
    });
    return ranks;
}

/* Counts a token for each lane of a warp. */
__device__ __forceinline__ void route_count(const struct route_input &in, const struct route_counts &counts,
                                            int32_t token, int32_t end)
{
    muster_mask ranks = {{0, 0}};
    if (token < end)
        ranks = route_count_slots(in, counts, token);
    for (int rank = 0; rank < in.turn->ranks; rank++) { /* one lane adds for all */
        unsigned lanes = __ballot_sync(~0u, ranks.word[rank >> 6] >> (rank & 63) & 1);
        if (lanes && (threadIdx.x & 31) == 0)
            atomicAdd(&counts.rank[rank], __popc(lanes));
    }
}

/* One token as it is sent: its routes, and the ranks that get a row of it. In shared memory, filled by one warp. */
struct route_token {
    int32_t slot[MUSTER_EP_MAX_TOPK]; /* -1: not sent */
    int32_t index[MUSTER_EP_MAX_TOPK]; /* of the route in its slot */
    float weight[MUSTER_EP_MAX_TOPK];
    int32_t destinations;
    int32_t rank[MUSTER_EP_MAX_TOPK]; /* of each destination */
    int32_t row[MUSTER_EP_MAX_TOPK]; /* where the row goes, there */
};

/* Takes a token's places from the counts over all tokens before it, and counts it. One warp; a lane is a route. */
__device__ inline void route_place(const struct route_input &in, const struct route_counts &counts, int64_t id,
                                   float weight, struct route_token *out)
{
    int lane = threadIdx.x & 31;
    int32_t slot = route_slot(in, id), rank = slot < 0 ? -1 - lane : slot / in.slots_per_rank;
    bool first = slot >= 0 && !(__match_any_sync(~0u, rank) & route_lanes_before()); /* of the routes to that rank */
    unsigned firsts = __ballot_sync(~0u, first);
    if (lane < in.topk) {
        out->slot[lane] = slot;
        out->index[lane] = slot >= 0 && in.counts_slots ? counts.slot[slot]++ : 0;
        out->weight[lane] = slot < 0 ? 0.0f : weight;
    }
    if (first) {
        int i = __popc(firsts & route_lanes_before());
        out->rank[i] = rank;
        out->row[i] = counts.rank[rank]++;
    }
    if (lane == 0)
        out->destinations = __popc(firsts);
    __syncwarp(); /* the next token counts on from here */
}

#endif
