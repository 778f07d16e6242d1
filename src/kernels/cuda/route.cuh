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

/* By all threads of the block. */
__device__ __forceinline__ void route_clear(const struct route_counts &counts, int32_t slots)
{
    for (int i = threadIdx.x; i < slots; i += blockDim.x)
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

/* What the lane makes of an id, and of those in the lanes before it that have routes of the same token. AGAIN: also that. */
template <bool AGAIN>
__device__ __forceinline__ struct route route_look(const struct route_input &in, int32_t token, int32_t k, int64_t id,
                                                   int lanes)
{
    struct route r = {token, k, id, -1, -1, false, false};
    bool exists = id >= 0 && id < in.slots;
    int32_t slot = exists ? (int32_t)id : -1;
    if (exists && turn_has(in.turn, slot / in.slots_per_rank)) {
        r.slot = slot;
        r.rank = slot / in.slots_per_rank;
        r.first = true;
    }
#pragma unroll 1
    for (int before = 1; before < lanes; before++) {
        int32_t rank = __shfl_up_sync(~0u, r.rank, before, lanes);
        r.first = r.first && (before > k || rank != r.rank);
        if (AGAIN) {
            int32_t same = __shfl_up_sync(~0u, slot, before, lanes);
            r.again = r.again || (exists && before <= k && same == slot);
        }
    }
    return r;
}

/*
 * Calls visit(route) for every route of the tokens from `begin` to before `end`, by so many warps, of which this
 * one is `warp`. The ids of several visits are loaded at once.
 */
template <bool AGAIN, typename Visit>
__device__ __forceinline__ void route_each(const struct route_input &in, int32_t begin, int32_t end, int32_t warp,
                                           int32_t warps, Visit visit)
{
    enum { FLIGHT = 4 };
    int lanes = route_lanes(in.topk), lane = threadIdx.x & 31, group = lane / lanes;
    int32_t k = lane % lanes, tokens = 32 / lanes, step = warps * tokens;
    for (int32_t base = begin + warp * tokens; base < end; base += FLIGHT * step) {
        int64_t id[FLIGHT];
#pragma unroll
        for (int n = 0; n < FLIGHT; n++) {
            int32_t token = base + n * step + group;
            id[n] = token < end && k < in.topk ? route_id(in, token, k) : -1;
        }
#pragma unroll 1
        for (int n = 0; n < FLIGHT && base + n * step < end; n++) {
            visit(route_look<AGAIN>(in, base + n * step + group, k, id[0], lanes));
            id[0] = id[1]; /* so that the loop's body is there once */
            id[1] = id[2];
            id[2] = id[3];
        }
    }
}

__device__ __forceinline__ void route_count(const struct route_input &in, const struct route_counts &counts,
                                            const struct route &r)
{
    if (r.slot >= 0 && in.counts_slots)
        atomicAdd(&counts.slot[r.slot], 1);
    if (r.first)
        atomicAdd(&counts.rank[r.rank], 1);
}

/* Whether a token has this id before its k-th place; `seen` has the bits of those that it has. One thread. */
__device__ __forceinline__ bool route_again(const struct route_input &in, int32_t token, int32_t k, int64_t id,
                                            uint64_t seen)
{
    for (int32_t before = 0; seen >> (id & 63) & 1 && before < k; before++)
        if (route_id(in, token, before) == id)
            return true;
    return false;
}

/* One token's routes, by one thread: calls check(route) for each, and returns the ranks that they go to. */
template <typename Check>
__device__ __forceinline__ muster_mask route_token_ranks(const struct route_input &in,
                                                         const struct route_counts &counts, int32_t token, Check check)
{
    muster_mask ranks = {{0, 0}};
    uint64_t seen = 0;
    for (int32_t k = 0; k < in.topk; k++) {
        struct route r = {token, k, route_id(in, token, k), -1, -1, false, false};
        bool exists = r.id >= 0 && r.id < in.slots;
        int32_t rank = exists ? (int32_t)r.id / in.slots_per_rank : 0;
        if (exists && turn_has(in.turn, rank)) {
            r.slot = (int32_t)r.id;
            r.rank = rank;
            ranks.word[rank >> 6] |= UINT64_C(1) << (rank & 63);
        }
        r.again = exists && route_again(in, token, k, r.id, seen);
        seen |= UINT64_C(1) << (r.id & 63);
        if (r.slot >= 0 && in.counts_slots)
            atomicAdd(&counts.slot[r.slot], 1);
        check(r);
    }
    return ranks;
}

/*
 * Counts the tokens from `begin` to before `end`, by so many warps, of which this one is `warp`: a thread for each token,
 * which for many takes far fewer instructions than route_each(), and for few longer. check: see route_token_ranks().
 */
template <typename Check>
__device__ __forceinline__ void route_count_tokens(const struct route_input &in, const struct route_counts &counts,
                                                   int32_t begin, int32_t end, int32_t warp, int32_t warps, Check check)
{
    int32_t lane = (int32_t)threadIdx.x & 31;
    for (int32_t first = begin + 32 * warp; first < end; first += 32 * warps) {
        muster_mask ranks = {{0, 0}};
        if (first + lane < end)
            ranks = route_token_ranks(in, counts, first + lane, check);
        for (int rank = 0; rank < in.turn->ranks; rank++) { /* one lane adds for all */
            unsigned lanes = __ballot_sync(~0u, ranks.word[rank >> 6] >> (rank & 63) & 1);
            if (lanes && lane == 0)
                atomicAdd(&counts.rank[rank], __popc(lanes));
        }
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

/* What can be known of a token without the tokens before it. One warp; a lane is a route. */
__device__ inline void route_read(const struct route_input &in, int32_t token, int64_t id, float weight,
                                  struct route_token *out)
{
    int lane = threadIdx.x & 31;
    struct route r = route_look<false>(in, token, lane, id, route_lanes(in.topk));
    unsigned firsts = __ballot_sync(~0u, r.first);
    if (lane < in.topk) {
        out->slot[lane] = r.slot;
        out->weight[lane] = r.slot < 0 ? 0.0f : weight;
    }
    if (r.first)
        out->rank[__popc(firsts & ((1u << lane) - 1))] = r.rank;
    if (lane == 0)
        out->destinations = __popc(firsts);
    __syncwarp();
}

/* Takes the token's places from the counts over all tokens before it, and counts it. One warp. */
__device__ inline void route_place(const struct route_input &in, const struct route_counts &counts,
                                   struct route_token *out)
{
    int lane = threadIdx.x & 31;
    if (lane < out->destinations)
        out->row[lane] = counts.rank[out->rank[lane]]++;
    if (lane < in.topk)
        out->index[lane] = in.counts_slots && out->slot[lane] >= 0 ? counts.slot[out->slot[lane]]++ : 0;
    __syncwarp(); /* the next token counts on from here */
}

#endif
