// SPDX-License-Identifier: Apache-2.0
/*
 * First half of dispatch: push each token once to every rank that holds one of its experts. One block plans: it checks
 * the ids, and tells every rank how many rows will come. The others send rows: the fewest tokens in words, which takes the
 * least time (dispatch_words.cuh); few with ordinary stores (dispatch_push.cuh); many through shared memory, which takes the
 * fewest blocks (dispatch_stream.cuh).
 */
#ifndef CUDA_DISPATCH_SEND_CUH
#define CUDA_DISPATCH_SEND_CUH

#include "kernels/cuda/dispatch_push.cuh"
#include "kernels/cuda/dispatch_stream.cuh"
#include "kernels/cuda/dispatch_words.cuh"
#include "kernels/cuda/told.cuh"

/* How rows are sent. A kernel for each, so that few tokens do not pay for what many need. */
enum dispatch_kind { DISPATCH_PUSHED, DISPATCH_WORDS, DISPATCH_STREAMED, DISPATCH_KINDS };

/* What the planning block finds out about all of this rank's tokens. */
struct send_plan {
    unsigned long long bad; /* token << 32 | k of the first entry that may not stand there; all ones: there is none */
    int32_t dropped;
    unsigned long long
        tokens[MUSTER_MAX_RANKS]; /* in words: those with a row for each rank, a bit for each; otherwise 0 */
};

/* By all threads of the block that plans, before a barrier. */
__device__ __forceinline__ void plan_clear(struct send_plan *plan)
{
    plan->bad = ~0ull;
    plan->dropped = 0;
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
    return shape.flat ? told_pack(counts.rank, first, shape.ranks)
                      : told_pack(counts.slot + rank * shape.slots, first, shape.slots);
}

/*
 * By all threads of the block: what each rank must know before it can lay out this rank's rows (X4, X8). Told before the
 * rows have gone: those have flags of their own. To have come here this rank has left the combine of the pair before
 * (kernels of a stream run one after the other), so any of the words also gives the credit to overwrite that combine's
 * results.
 */
__device__ inline void plan_tell(const struct cuda_launch &l, const struct turn *turn,
                                 const struct route_counts &counts, const struct send_plan *plan)
{
    int words = l.shape.told_words;
    for (int i = threadIdx.x; i < turn->ranks * words; i += blockDim.x) {
        struct quotient at = divide(i, l.by.told_words);
        int rank = at.whole, word = at.rest;
        if (turn_has(turn, rank))
            word_publish(told_words(l, turn, rank, turn->rank) + word, plan_word(l, turn, counts, plan, rank, word),
                         turn->stamp);
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
            flag_raise(&line_at(turn, rank, l.shape.dispatch_line, turn->rank)->flag, turn->stamp);
}

/* Counts and checks all tokens. */
template <enum dispatch_kind KIND>
__device__ inline void plan_all(const struct cuda_launch &l, const struct route_input &in,
                                const struct route_counts &counts, struct send_plan *plan)
{
    int32_t warp = (int32_t)threadIdx.x / 32, warps = (int32_t)blockDim.x / 32, tokens = in.send->tokens;
    if (KIND == DISPATCH_STREAMED)
        route_count_tokens(in, counts, 0, tokens, warp, warps,
                           [&](const struct route &r) { plan_check(in, l.shape.masked, r, plan); });
    else
        route_each<true>(in, 0, tokens, warp, warps, [&](const struct route &r) {
            route_count(in, counts, r);
            plan_check(in, l.shape.masked, r, plan);
            if (KIND == DISPATCH_WORDS && r.first)
                atomicOr(&plan->tokens[r.rank], 1ull << r.token);
        });
}

/* `plan` is clear. False: an id may not stand where it stands, and nobody has been told anything. */
template <enum dispatch_kind KIND>
__device__ inline bool send_plan(const struct cuda_launch &l, const struct turn *turn,
                                 const struct dispatch_send_args &send, const struct route_counts &counts,
                                 struct send_plan *plan)
{
    struct route_input in = send_routes(l, turn, send);
    turn_publish_begun(l, turn);
    plan_all<KIND>(l, in, counts, plan);
    __syncthreads();
    if (threadIdx.x == 0 && send.dropped_routes)
        *send.dropped_routes = plan->dropped;
    if (plan->bad != ~0ull) {
        if (threadIdx.x == 0)
            turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_DISPATCH, -1, turn->epoch, plan->bad); /* X11 */
        return false;
    }
    plan_tell(l, turn, counts, plan);
    if (l.shape.load_stats)
        plan_tell_loads(l, turn, counts);
    return true;
}

/*
 * The first block plans, and then sends like the others if rows are streamed, since that takes few blocks. The counts are
 * all 0, and the plan is clear.
 */
template <bool FT, enum dispatch_kind KIND>
__device__ inline void send_block(const struct cuda_launch &l, const struct turn *turn,
                                  const struct dispatch_send_args &send, const struct route_counts &counts,
                                  struct send_plan *plan, unsigned char *shared, int block)
{
    int blocks = l.plan.send_blocks;
    if (KIND == DISPATCH_WORDS) {
        if (block == 0)
            send_plan<KIND>(l, turn, words_staged(l, send, words_stage(l, shared)), counts, plan);
        else
            send_words_block(l, turn, send, shared, block - 1, blocks - 1);
        return;
    }
    if (block == 0 && !send_plan<KIND>(l, turn, send, counts, plan))
        return;
    if (KIND == DISPATCH_STREAMED && block == 0) {
        __syncthreads(); /* all have been told */
        route_clear(counts, l.shape.slots * l.shape.ranks);
        __syncthreads();
    }
    if (KIND == DISPATCH_STREAMED)
        send_stream_block<FT>(l, turn, send, counts, shared, block, blocks);
    else if (block > 0)
        send_push_block<FT>(l, turn, send, counts, block - 1, blocks - 1);
}

#endif
