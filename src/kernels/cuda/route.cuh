// SPDX-License-Identifier: Apache-2.0
/*
 * Where every route goes. Row j of a rank is the j-th token of this source that routes there, and a route is the i-th
 * of its source in its slot (X6): both are counts over the tokens before, so each block counts for itself and draws
 * nothing from a shared counter.
 */
#ifndef CUDA_ROUTE_CUH
#define CUDA_ROUTE_CUH

#include "kernels/cuda/divide.cuh"
#include "kernels/cuda/turn.cuh"

/* This rank's tokens, and what of a route must be known to judge it. */
struct route_input {
    const struct dispatch_send_args *send;
    const struct turn *turn;
    struct cuda_divisor slots_per_rank;
    int32_t slots, topk; /* slots: of all ranks */
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

/* As a power of two: so many lanes have the routes of one token. */
__device__ __forceinline__ int route_log2_lanes(int32_t topk)
{
    return topk <= 1 ? 0 : 32 - __clz(topk - 1);
}

/* Whether none of the lanes before has the same key; those whose keys do not matter have any of their own. */
__device__ __forceinline__ bool route_is_first(int32_t key)
{
    unsigned same = __match_any_sync(~0u, key), before = (1u << (threadIdx.x & 31)) - 1;
    return (same & before) == 0;
}

/*
 * What the lane makes of an id, and of those in the lanes before it that have routes of the same token: `group` counts the
 * tokens of a warp. AGAIN: also that.
 */
template <bool AGAIN>
__device__ __forceinline__ struct route route_look(const struct route_input &in, int32_t token, int32_t k, int64_t id,
                                                   int group)
{
    struct route r = {token, k, id, -1, -1, false, false};
    bool exists = id >= 0 && id < in.slots;
    int32_t slot = exists ? (int32_t)id : 0, rank = divide_whole(slot, in.slots_per_rank);
    int32_t none = -1 - (int32_t)(threadIdx.x & 31); /* a key that no other lane has */
    if (exists && turn_has(in.turn, rank)) {
        r.slot = slot;
        r.rank = rank;
    }
    r.first = route_is_first(r.slot >= 0 ? group << 16 | rank : none) && r.slot >= 0;
    if (AGAIN)
        r.again = !route_is_first(exists ? group << 16 | slot : none);
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
    int log2 = route_log2_lanes(in.topk), lane = threadIdx.x & 31, group = lane >> log2;
    int32_t k = lane & ((1 << log2) - 1), tokens = 32 >> log2, step = warps * tokens;
    for (int32_t base = begin + warp * tokens; base < end; base += FLIGHT * step) {
        int64_t id[FLIGHT];
#pragma unroll
        for (int n = 0; n < FLIGHT; n++) {
            int32_t token = base + n * step + group;
            id[n] = token < end && k < in.topk ? route_id(in, token, k) : -1;
        }
#pragma unroll 1
        for (int n = 0; n < FLIGHT && base + n * step < end; n++) {
            visit(route_look<AGAIN>(in, base + n * step + group, k, id[0], group));
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

/* Ids of a token that one thread has at hand. */
enum { ROUTE_IDS = 8 };

/* Of a token from its k-th place on, all loaded at once; what is no slot, and does not say that there is none, is -2. */
__device__ __forceinline__ void route_load_ids(const struct route_input &in, int32_t token, int32_t k,
                                               int32_t id[ROUTE_IDS])
{
    int64_t wide[ROUTE_IDS];
#pragma unroll
    for (int i = 0; i < ROUTE_IDS; i++)
        wide[i] = k + i < in.topk ? route_id(in, token, k + i) : -1;
#pragma unroll
    for (int i = 0; i < ROUTE_IDS; i++)
        id[i] = wide[i] >= -1 && wide[i] < in.slots ? (int32_t)wide[i] : -2;
}

/* Whether a token has this id before its k-th place. Slow, and only for tokens with many routes. */
static __device__ __noinline__ bool route_again(const struct route_input &in, int32_t token, int32_t k, int64_t id)
{
    for (int32_t before = 0; before < k; before++)
        if (route_id(in, token, before) == id)
            return true;
    return false;
}

/* Words of a mask in registers have no address: an index would put them into memory. */
__device__ __forceinline__ muster_mask route_with_rank(muster_mask ranks, int32_t rank)
{
    uint64_t bit = UINT64_C(1) << (rank & 63);
    return {{ranks.word[0] | (rank < 64 ? bit : 0), ranks.word[1] | (rank < 64 ? 0 : bit)}};
}

/* One token's routes, by one thread: calls check(route) for each, and returns the ranks that they go to. */
template <typename Check>
__device__ __forceinline__ muster_mask route_token_ranks(const struct route_input &in,
                                                         const struct route_counts &counts, int32_t token, Check check)
{
    muster_mask ranks = {{0, 0}};
    for (int32_t begin = 0; begin < in.topk; begin += ROUTE_IDS) {
        int32_t ids[ROUTE_IDS];
        route_load_ids(in, token, begin, ids);
#pragma unroll 1
        for (int i = 0; i < ROUTE_IDS && begin + i < in.topk; i++) {
            int32_t id = ids[0], rank = id >= 0 ? divide_whole(id, in.slots_per_rank) : 0;
            struct route r = {token, begin + i, id, -1, -1, false, false};
#pragma unroll
            for (int n = 1; n < ROUTE_IDS; n++) { /* those before this one come last */
                r.again = r.again || (n >= ROUTE_IDS - i && ids[n] == id && id >= 0);
                ids[n - 1] = ids[n];
            }
            ids[ROUTE_IDS - 1] = id;
            if (begin > 0 && id >= 0)
                r.again = r.again || route_again(in, token, begin, id);
            if (id >= 0 && turn_has(in.turn, rank)) {
                r.slot = id;
                r.rank = rank;
                ranks = route_with_rank(ranks, rank);
                if (in.counts_slots)
                    atomicAdd(&counts.slot[id], 1);
            }
            check(r);
        }
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
            uint64_t word = rank < 64 ? ranks.word[0] : ranks.word[1];
            unsigned lanes = __ballot_sync(~0u, word >> (rank & 63) & 1);
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
    struct route r = route_look<false>(in, token, lane, id, 0);
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
