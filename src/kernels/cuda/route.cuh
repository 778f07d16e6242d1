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

__device__ inline void route_clear(const struct route_input &in, const struct route_counts &counts)
{
    for (int i = threadIdx.x; i < in.slots; i += blockDim.x)
        counts.slot[i] = 0;
    for (int i = threadIdx.x; i < MUSTER_MAX_RANKS; i += blockDim.x)
        counts.rank[i] = 0;
}

/* One route, as the lane sees it that has it. Lanes of a token are neighbours. */
struct route {
    int32_t token, k;
    int64_t id; /* as the caller gave it; -1: none */
    int32_t slot; /* that it is sent to; -1: it is not sent */
    int32_t rank; /* of the slot */
    bool first; /* of the token's routes to that rank, in k order */
    bool again; /* the id stands there twice */
};

/* A power of two: so many lanes have the routes of one token. */
__device__ __forceinline__ int route_lanes(int32_t topk)
{
    return topk <= 1 ? 1 : 1 << (32 - __clz(topk - 1));
}

/* The lanes before this one. */
__device__ __forceinline__ unsigned route_lanes_before()
{
    return (1u << (threadIdx.x & 31)) - 1;
}

/* What the lane makes of an id; all lanes of a warp together. `group` tells the tokens of a warp apart. */
__device__ __forceinline__ struct route route_look(const struct route_input &in, int32_t token, int32_t k, int64_t id,
                                                   int group)
{
    struct route r = {token, k, id, -1, 0, false, false};
    if (id >= 0 && id < in.slots) {
        r.rank = (int32_t)id / in.slots_per_rank;
        r.slot = turn_has(in.turn, r.rank) ? (int32_t)id : -1;
    }
    int lane = threadIdx.x & 31;
    unsigned same_rank = __match_any_sync(~0u, r.slot < 0 ? -1 - lane : group << 8 | r.rank);
    unsigned same_id = __match_any_sync(~0u, id < 0 || id >= in.slots ? -1 - lane : group << 16 | (int32_t)id);
    r.first = r.slot >= 0 && !(same_rank & route_lanes_before());
    r.again = same_id & route_lanes_before();
    return r;
}

/*
 * Calls visit(route) for every route of the tokens before `end`, by all threads of a block, warps in step. The ids of
 * several visits are loaded at once.
 */
template <typename Visit>
__device__ __forceinline__ void route_each(const struct route_input &in, int32_t end, Visit visit)
{
    enum { FLIGHT = 4 };
    int lanes = route_lanes(in.topk), lane = threadIdx.x & 31, group = lane / lanes;
    int32_t k = lane % lanes, tokens = 32 / lanes, step = (int32_t)(blockDim.x / 32) * tokens;
    for (int32_t base = (int32_t)(threadIdx.x / 32) * tokens; base < end; base += FLIGHT * step) {
        int64_t id[FLIGHT];
#pragma unroll
        for (int n = 0; n < FLIGHT; n++) {
            int32_t token = base + n * step + group;
            id[n] = token < end && k < in.topk ? route_id(in, token, k) : -1;
        }
#pragma unroll 1
        for (int n = 0; n < FLIGHT && base + n * step < end; n++) {
            visit(route_look(in, base + n * step + group, k, id[0], group));
            id[0] = id[1]; /* so that the loop's body is there once */
            id[1] = id[2];
            id[2] = id[3];
        }
    }
}

__device__ __forceinline__ void route_count(const struct route_counts &counts, const struct route &r)
{
    if (r.slot >= 0)
        atomicAdd(&counts.slot[r.slot], 1);
    unsigned same = __match_any_sync(~0u, r.first ? r.rank : -1 - (int)(threadIdx.x & 31));
    if (r.first && !(same & route_lanes_before())) /* ranks are few: one lane adds for all that go to the same */
        atomicAdd(&counts.rank[r.rank], __popc(same));
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

/* Takes a token's places from the counts over all tokens before it, and counts it. One warp; a lane is a route. */
__device__ inline void route_place(const struct route_input &in, const struct route_counts &counts, int32_t token,
                                   int64_t id, float weight, struct route_token *out)
{
    int lane = threadIdx.x & 31;
    struct route r = route_look(in, token, lane, id, 0);
    unsigned firsts = __ballot_sync(~0u, r.first);
    if (lane < in.topk) {
        out->slot[lane] = r.slot;
        out->index[lane] = r.slot < 0 ? 0 : counts.slot[r.slot]++;
        out->weight[lane] = r.slot < 0 ? 0.0f : weight;
    }
    if (r.first) {
        int i = __popc(firsts & route_lanes_before());
        out->rank[i] = r.rank;
        out->row[i] = counts.rank[r.rank]++;
    }
    if (lane == 0)
        out->destinations = __popc(firsts);
    __syncwarp(); /* the next token counts on from here */
}

#endif
