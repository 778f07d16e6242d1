// SPDX-License-Identifier: Apache-2.0
/*
 * What a rank finds out about its own tokens before their rows are sent: whether every id may stand where it does, and how
 * many rows each rank will get. Then each rank is told. One block does that for few tokens; for many, several count a share
 * each, and the last of them to be done tells.
 */
#ifndef CUDA_DISPATCH_PLAN_CUH
#define CUDA_DISPATCH_PLAN_CUH

#include "kernels/cuda/dispatch_facts.cuh"
#include "kernels/cuda/dispatch_push.cuh"
#include "kernels/cuda/told.cuh"

/* What a planning block finds out about this rank's tokens, or its share of them. In shared memory. */
struct send_plan {
    unsigned long long bad; /* token << 32 | k of the first entry that may not stand there; all ones: there is none */
    int32_t dropped;
    uint32_t tells; /* this block is the one that tells */
    unsigned long long
        tokens[MUSTER_MAX_RANKS]; /* in words: those with a row for each rank, a bit for each; otherwise 0 */
};

/* By all threads of the block that plans, before a barrier. */
__device__ __forceinline__ void plan_clear(struct send_plan *plan)
{
    if (threadIdx.x == 0) {
        plan->bad = ~0ull;
        plan->dropped = 0;
    }
    for (int rank = threadIdx.x; rank < MUSTER_MAX_RANKS; rank += blockDim.x)
        plan->tokens[rank] = 0;
}

/* Whether an entry may stand there: -1, or a slot that exists, is not named twice, and is active or may be dropped. */
__device__ __forceinline__ bool plan_allows(const struct route_input &in, bool masked, const struct route &r)
{
    return r.id == -1 || (r.id >= 0 && r.id < in.slots && !r.again && (masked || r.slot >= 0));
}

/* X7: a route to an inactive rank becomes -1 and is reported, and nobody renormalises what is left. */
__device__ inline void plan_check(const struct route_input &in, bool masked, const struct route &r,
                                  struct send_plan *plan)
{
    if (!plan_allows(in, masked, r))
        atomicMin(&plan->bad, (unsigned long long)r.token << 32 | (unsigned)r.k);
    else if (r.slot < 0 && r.id != -1)
        atomicAdd(&plan->dropped, 1);
}

/* Word `word` of what `rank` is told. */
template <typename Facts>
__device__ inline uint64_t plan_word(const struct cuda_launch &l, const struct turn *turn,
                                     const struct route_counts &counts, const struct send_plan *plan, int rank,
                                     int word)
{
    const struct exchange_shape &shape = l.shape;
    switch (word) {
    case EXCHANGE_TOLD_MASK: return turn->mask.word[0];
    case EXCHANGE_TOLD_MASK + 1: return turn->mask.word[1];
    case EXCHANGE_TOLD_STEP: return turn->number;
    case EXCHANGE_TOLD_ROWS: return (uint32_t)counts.rank[rank];
    case EXCHANGE_TOLD_TOKENS: return plan->tokens[rank];
    }
    int32_t first = 2 * (word - EXCHANGE_TOLD_COUNTS);
    return !Facts::EXPERT_MAJOR && shape.flat ? told_pack(counts.rank, first, shape.ranks)
                                              : told_pack(counts.slot + rank * shape.slots, first, shape.slots);
}

/*
 * By all threads of the block: what each rank must know before it can lay out this rank's rows (X4, X8). Told before the
 * rows have gone: those have flags of their own. To have come here this rank has left the combine of the pair before
 * (kernels of a stream run one after the other), so any of the words also gives the credit to overwrite that combine's
 * results.
 */
template <typename Facts>
__device__ inline void plan_tell(const struct cuda_launch &l, const struct turn *turn,
                                 const struct route_counts &counts, const struct send_plan *plan)
{
    int words = l.shape.told_words;
    for (int i = threadIdx.x; i < turn->ranks * words; i += blockDim.x) {
        struct quotient at = divide(i, l.by.told_words);
        int rank = at.whole, word = at.rest;
        if (turn_has(turn, rank))
            word_publish(told_words(l, region_at(turn, rank, l.shape.told), turn->rank) + word,
                         plan_word<Facts>(l, turn, counts, plan, rank, word), turn->stamp);
    }
}

/* On request every rank hears of all slots. A line's flag comes after what several threads have stored (X5). */
__device__ inline void plan_tell_loads(const struct cuda_launch &l, const struct turn *turn,
                                       const struct route_counts &counts)
{
    int32_t slots = l.shape.slots * l.shape.ranks;
    for (int rank = 0; rank < turn->ranks; rank++) {
        if (!turn_has(turn, rank))
            continue;
        int32_t *loads = (int32_t *)region_at(turn, rank, l.shape.loads) + (size_t)turn->rank * (size_t)slots;
        for (int32_t s = threadIdx.x; s < slots; s += blockDim.x)
            loads[s] = counts.slot[s];
    }
    __syncthreads();
    for (int rank = threadIdx.x; rank < turn->ranks; rank += blockDim.x)
        if (turn_has(turn, rank))
            flag_raise(&line_at(region_at(turn, rank, l.shape.dispatch_line), turn->rank)->flag, turn->stamp);
}

/* X11: nobody is told anything. */
__device__ inline void plan_refuse(const struct cuda_launch &l, const struct turn *turn, const struct send_plan *plan)
{
    if (threadIdx.x == 0)
        turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_DISPATCH, -1, turn->epoch, plan->bad);
}

/* Counts have been made, and all ids may stand where they do. */
template <typename Facts>
__device__ inline void plan_announce(const struct cuda_launch &l, const struct turn *turn,
                                     const struct dispatch_send_args &send, const struct route_counts &counts,
                                     const struct send_plan *plan)
{
    if (threadIdx.x == 0 && send.dropped_routes)
        *send.dropped_routes = plan->dropped;
    plan_tell<Facts>(l, turn, counts, plan);
    if (l.shape.load_stats)
        plan_tell_loads(l, turn, counts);
}

/* Counts and checks tokens from `begin` to before `end`, by a warp for several of them. */
template <enum dispatch_kind KIND>
__device__ inline void plan_each(const struct cuda_launch &l, const struct route_input &in,
                                 const struct route_counts &counts, int32_t begin, int32_t end, struct send_plan *plan)
{
    int32_t warp = (int32_t)threadIdx.x / 32, warps = (int32_t)blockDim.x / 32;
    route_each<true>(in, begin, end, warp, warps, [&](const struct route &r) {
        route_count(in, counts, r);
        plan_check(in, l.shape.masked, r, plan);
        if (KIND == DISPATCH_WORDS && r.first)
            atomicOr(&plan->tokens[r.rank], 1ull << r.token);
    });
}

/* ------------------------------------------------------------------------------------------- few tokens, one block */

/* The counts are 0, and `plan` is clear. */
template <typename Facts>
__device__ inline void plan_alone(const struct cuda_launch &l, const struct turn *turn,
                                  const struct dispatch_send_args &send, const struct route_counts &counts,
                                  struct send_plan *plan)
{
    struct route_input in = send_routes(l, turn, send);
    turn_publish_begun(l, turn);
    plan_each<Facts::KIND>(l, in, counts, 0, send.tokens, plan);
    __syncthreads();
    if (plan->bad != ~0ull)
        plan_refuse(l, turn, plan);
    else
        plan_announce<Facts>(l, turn, send, counts, plan);
}

/* ------------------------------------------------------------------------------------- many tokens, several blocks */

/* Entry i of what a block has counted, and of its row in cuda_arrays.counted. */
__device__ __forceinline__ int32_t &plan_entry(const struct cuda_launch &l, const struct route_counts &counts,
                                               struct send_plan *plan, int32_t i)
{
    if (i == 0)
        return plan->dropped;
    return i <= l.shape.ranks ? counts.rank[i - 1] : counts.slot[i - 1 - l.shape.ranks];
}

__device__ __forceinline__ volatile int32_t *plan_row(const struct cuda_launch &l, int block)
{
    return l.own.counted + (size_t)block * (size_t)(1 + l.shape.ranks + l.shape.ranks * l.shape.slots);
}

/* A block's share. Few tokens take less time by a warp for several of them, many by a thread for each. */
__device__ inline void plan_share(const struct cuda_launch &l, const struct route_input &in,
                                  const struct route_counts &counts, int block, struct send_plan *plan)
{
    enum { FEW = 512 };
    int32_t tokens = in.send->tokens, share = (tokens + l.plan.count_blocks - 1) / l.plan.count_blocks;
    int32_t begin = block * share, end = tokens - begin < share ? tokens : begin + share;
    int32_t warp = (int32_t)threadIdx.x / 32, warps = (int32_t)blockDim.x / 32;
    if (share > FEW)
        route_count_tokens(in, counts, begin, end, warp, warps,
                           [&](const struct route &r) { plan_check(in, l.shape.masked, r, plan); });
    else
        plan_each<DISPATCH_STREAMED>(l, in, counts, begin, end, plan);
}

/* Blocks that have counted are counted below this, those of them that found an id that may not stand where it does above. */
enum { COUNTED_BAD = 1 << 16 };

/*
 * Whether this block is the last to have counted, and none has found such an id. What the others have written is then seen. By
 * all threads; nobody waits for another block.
 */
__device__ inline bool plan_is_last(const struct cuda_launch &l, struct send_plan *plan)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t mine = plan->bad != ~0ull ? 1u + COUNTED_BAD : 1u;
        __threadfence();
        plan->tells = atomicAdd(&l.exchange->counted, mine) + mine == (uint32_t)l.plan.count_blocks;
        __threadfence();
    }
    __syncthreads();
    return plan->tells;
}

/* By the first count_blocks blocks of those that send; their counts are 0, and their plans clear. */
template <typename Facts>
__device__ inline void plan_together(const struct cuda_launch &l, const struct turn *turn,
                                     const struct dispatch_send_args &send, const struct route_counts &counts,
                                     struct send_plan *plan, int block)
{
    struct route_input in = send_routes(l, turn, send);
    int32_t entries = 1 + l.shape.ranks + (in.counts_slots ? in.slots : 0);
    if (block == 0)
        turn_publish_begun(l, turn);
    plan_share(l, in, counts, block, plan);
    __syncthreads();
    if (plan->bad != ~0ull)
        plan_refuse(l, turn, plan);
    for (int32_t i = threadIdx.x; i < entries; i += blockDim.x)
        plan_row(l, block)[i] = plan_entry(l, counts, plan, i);
    if (!plan_is_last(l, plan))
        return;
    for (int32_t i = threadIdx.x; i < entries; i += blockDim.x) {
        int32_t sum = 0;
        for (int b = 0; b < l.plan.count_blocks; b++)
            sum += plan_row(l, b)[i];
        plan_entry(l, counts, plan, i) = sum;
    }
    __syncthreads();
    plan_announce<Facts>(l, turn, send, counts, plan);
}

#endif
