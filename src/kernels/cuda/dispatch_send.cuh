// SPDX-License-Identifier: Apache-2.0
/*
 * First half of dispatch: push each token once to every rank that holds one of its experts. One block plans: it checks
 * the ids, and tells every rank how many rows will come. The others push rows, a contiguous run of tokens each.
 */
#ifndef CUDA_DISPATCH_SEND_CUH
#define CUDA_DISPATCH_SEND_CUH

#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/region.cuh"
#include "kernels/cuda/route.cuh"
#include "kernels/cuda/wait.cuh"

__device__ __forceinline__ struct route_input send_routes(const struct cuda_launch &l, const struct turn *turn,
                                                          const struct dispatch_send_args &send)
{
    return {&send, turn, l.shape.slots, l.shape.slots * l.shape.ranks, l.shape.topk};
}

/* -------------------------------------------------------------------------------------------------- the planning block */

/* What the planning block finds out about all of this rank's tokens. */
struct send_plan {
    struct route_counts counts;
    unsigned long long bad; /* token << 32 | k of the first entry that may not stand there; all ones: there is none */
    int32_t dropped;
};

/* Whether an entry may stand there: -1, or a slot that exists, is not named twice, and is active or may be dropped. */
__device__ __forceinline__ bool plan_allows(const struct route_input &in, bool masked, const struct route &r)
{
    return r.id == -1 || (r.id >= 0 && r.id < in.slots && !r.again && (masked || r.slot >= 0));
}

/* The ranks that a token's routes go to, in each of its lanes. */
__device__ __forceinline__ muster_mask plan_ranks(const struct route &r, int lanes)
{
    muster_mask ranks = {{0, 0}};
    if (r.slot >= 0)
        ranks.word[r.rank >> 6] = UINT64_C(1) << (r.rank & 63);
    for (int other = 1; other < lanes; other *= 2) {
        ranks.word[0] |= __shfl_xor_sync(~0u, ranks.word[0], other);
        ranks.word[1] |= __shfl_xor_sync(~0u, ranks.word[1], other);
    }
    return ranks;
}

/* X7: a route to an inactive rank becomes -1 and is reported, and nobody renormalises what is left. */
__device__ inline void plan_count(const struct cuda_launch &l, const struct route_input &in, const struct route &r,
                                  struct send_plan *plan)
{
    route_count(plan->counts, r);
    if (!plan_allows(in, l.shape.masked, r))
        atomicMin(&plan->bad, (unsigned long long)r.token << 32 | (unsigned)r.k);
    else if (r.slot < 0 && r.id != -1)
        atomicAdd(&plan->dropped, 1);
}

/* What this rank's combine has to know of a route. */
__device__ inline void plan_keep(const struct cuda_launch &l, const struct route_input &in, const struct route &r)
{
    muster_mask ranks = plan_ranks(r, route_lanes(in.topk));
    if (r.k >= in.topk || r.token >= in.send->tokens)
        return;
    size_t route = (size_t)r.token * (size_t)in.topk + (size_t)r.k;
    l.own.token_slots[route] = r.slot;
    l.own.token_weights[route] = r.slot < 0 ? 0.0f : route_weight(in, r.token, r.k);
    if (r.k == 0) {
        l.own.token_ranks[2 * (size_t)r.token] = ranks.word[0];
        l.own.token_ranks[2 * (size_t)r.token + 1] = ranks.word[1];
    }
}

/* By all threads of the block: what each rank must know before it can lay out this rank's rows. */
__device__ inline void plan_tell(const struct cuda_launch &l, const struct turn *turn, const struct send_plan *plan)
{
    const struct exchange_shape &shape = l.shape;
    int32_t slots = shape.slots * shape.ranks;
    for (int32_t s = threadIdx.x; s < slots; s += blockDim.x) {
        int rank = s / shape.slots;
        if (turn_has(turn, rank))
            ((int32_t *)region_at(turn, rank, shape.slot_counts))[(turn->rank - rank) * shape.slots + s] =
                plan->counts.slot[s];
    }
    for (int rank = threadIdx.x; rank < turn->ranks; rank += blockDim.x) {
        if (!turn_has(turn, rank))
            continue;
        struct exchange_line *line = line_at(turn, rank, shape.dispatch_line, turn->rank);
        line->mask[0] = turn->mask.word[0];
        line->mask[1] = turn->mask.word[1];
        line->step = turn->number;
        line->rows = (uint32_t)plan->counts.rank[rank];
    }
}

/* On request: every rank hears of all slots. */
__device__ inline void plan_tell_loads(const struct cuda_launch &l, const struct turn *turn,
                                       const struct send_plan *plan)
{
    int32_t slots = l.shape.slots * l.shape.ranks;
    for (int rank = 0; rank < turn->ranks; rank++) {
        if (!turn_has(turn, rank))
            continue;
        int32_t *loads = (int32_t *)region_at(turn, rank, l.shape.loads) + (size_t)turn->rank * (size_t)slots;
        for (int32_t s = threadIdx.x; s < slots; s += blockDim.x)
            loads[s] = plan->counts.slot[s];
    }
}

/*
 * The lines (X4, X5, X8). Raised before the rows have gone: rows have flags of their own. To have come here this rank
 * has left the combine of the pair before (kernels of a stream run one after the other), so the line also gives the
 * credit to overwrite that combine's results. Counts and line of a rank are stored by several threads; the barrier puts
 * them before the flag of the one that raises it, and the flag's release before whoever reads it.
 */
__device__ inline void plan_tell_all(const struct cuda_launch &l, const struct turn *turn, const struct send_plan *plan)
{
    plan_tell(l, turn, plan);
    if (l.shape.load_stats)
        plan_tell_loads(l, turn, plan);
    __syncthreads();
    for (int rank = threadIdx.x; rank < turn->ranks; rank += blockDim.x)
        if (turn_has(turn, rank))
            flag_raise(&line_at(turn, rank, l.shape.dispatch_line, turn->rank)->flag, turn->stamp);
}

__device__ inline void send_plan_block(const struct cuda_launch &l, const struct turn *turn,
                                       const struct dispatch_send_args &send, const struct route_counts &counts)
{
    __shared__ struct send_plan plan;
    struct route_input in = send_routes(l, turn, send);
    turn_publish_begun(l, turn);
    if (threadIdx.x == 0) {
        plan.counts = counts;
        plan.bad = ~0ull;
        plan.dropped = 0;
    }
    route_clear(in, counts);
    __syncthreads();
    route_each(in, send.tokens, [&](const struct route &r) { plan_count(l, in, r, &plan); });
    __syncthreads();
    if (threadIdx.x == 0 && send.dropped_routes)
        *send.dropped_routes = plan.dropped;
    if (plan.bad != ~0ull) {
        if (threadIdx.x == 0)
            turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_DISPATCH, -1, turn->epoch, plan.bad); /* X11 */
        return;
    }
    plan_tell_all(l, turn, &plan); /* first, since all receivers wait for it */
    route_each(in, send.tokens, [&](const struct route &r) { plan_keep(l, in, r); });
}

/* --------------------------------------------------------------------------------------------------- the pushing blocks */

__device__ __forceinline__ unsigned char *destination_row(const struct cuda_launch &l, const struct turn *turn,
                                                          const struct route_token *token, int i, int array)
{
    const struct exchange_array &a = l.shape.array[array];
    size_t row = row_at(l.shape, turn->rank, token->row[i]);
    return region_at(turn, token->rank[i], a.offset) + row * a.row_bytes;
}

/* Tokens that are pushed together: their loads are under way at the same time, and one fence serves all their flags. */
enum { PUSH_BATCH = 2 };

struct push_batch {
    int32_t first, count; /* tokens */
    struct route_token token[PUSH_BATCH];
};

/* One array's rows to all their destinations: each piece is loaded once. */
__device__ inline void push_wide(const struct cuda_launch &l, const struct turn *turn, const struct push_batch *batch,
                                 const struct row_input &input, int array)
{
    const unsigned char *rows = input.data + (size_t)batch->first * input.stride;
    for (size_t at = (size_t)threadIdx.x * 16; at < l.shape.array[array].row_bytes; at += (size_t)blockDim.x * 16) {
        uint4 piece[PUSH_BATCH];
#pragma unroll
        for (int n = 0; n < PUSH_BATCH; n++)
            if (n < batch->count)
                piece[n] = *(const uint4 *)(rows + (size_t)n * input.stride + at);
#pragma unroll
        for (int n = 0; n < PUSH_BATCH; n++)
            for (int i = 0; n < batch->count && i < batch->token[n].destinations; i++)
                stream_store(destination_row(l, turn, &batch->token[n], i, array) + at, piece[n]);
    }
}

__device__ inline void push_rows(const struct cuda_launch &l, const struct turn *turn, const struct push_batch *batch,
                                 const struct row_input &input, int array)
{
    size_t bytes = l.shape.array[array].row_bytes; /* rows of a region are as aligned as their size is */
    if (copy_width(copy_bits(input.data) | input.stride | bytes) == 16) {
        push_wide(l, turn, batch, input, array);
        return;
    }
    for (int n = 0; n < batch->count; n++)
        for (int i = 0; i < batch->token[n].destinations; i++)
            copy_row(destination_row(l, turn, &batch->token[n], i, array),
                     input.data + (size_t)(batch->first + n) * input.stride, bytes, threadIdx.x, blockDim.x);
}

/* All lanes of a warp go round together: a group's lanes exchange their maximum. */
__device__ inline void push_quantised(const struct cuda_launch &l, const struct turn *turn,
                                      const struct route_token *token, const unsigned char *row)
{
    bool power_of_two = l.shape.quantise == MUSTER_EP_QUANTISE_FP8_POW2;
    int32_t hidden = l.shape.hidden, pieces = (hidden + QUANTISE_PIECE - 1) / QUANTISE_PIECE;
    for (int32_t piece = threadIdx.x; piece < (pieces + 31) / 32 * 32; piece += blockDim.x) {
        float value[QUANTISE_PIECE];
        int32_t at = piece * QUANTISE_PIECE;
        quantise_load(row, l.shape.type, at, hidden, value);
        float scale = quantise_scale(value, power_of_two);
        uint4 codes = quantise_codes(value, scale);
        for (int i = 0; i < token->destinations && at < hidden; i++) {
            quantise_store(destination_row(l, turn, token, i, 0) + at, codes, hidden - at);
            if (piece % QUANTISE_LANES == 0)
                ((float *)destination_row(l, turn, token, i, 1))[piece / QUANTISE_LANES] = scale;
        }
    }
}

/* Which token a row is, and its routes: an entry for each k, those to other ranks being -1. */
__device__ inline void push_routes(const struct cuda_launch &l, const struct turn *turn,
                                   const struct route_token *token, int32_t t)
{
    const struct exchange_shape &shape = l.shape;
    for (int n = threadIdx.x; n < token->destinations * shape.topk; n += blockDim.x) {
        int i = n / shape.topk, k = n % shape.topk, rank = token->rank[i];
        size_t row = row_at(shape, turn->rank, token->row[i]), route = row * (size_t)shape.topk + (size_t)k;
        int32_t slot = token->slot[k] - rank * shape.slots;
        bool here = token->slot[k] >= 0 && slot >= 0 && slot < shape.slots;
        ((int32_t *)region_at(turn, rank, shape.row_slot))[route] = here ? slot : -1;
        ((int32_t *)region_at(turn, rank, shape.row_index))[route] = here ? token->index[k] : 0;
        ((float *)region_at(turn, rank, shape.row_weight))[route] = here ? token->weight[k] : 0.0f;
        if (k == 0)
            ((int32_t *)region_at(turn, rank, shape.row_token))[row] = t;
    }
}

__device__ inline void push_tokens(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_send_args &send, const struct push_batch *batch)
{
    for (int n = 0; n < batch->count; n++) {
        int32_t t = batch->first + n;
        if (l.shape.quantise)
            push_quantised(l, turn, &batch->token[n], send.input[0].data + (size_t)t * send.input[0].stride);
        push_routes(l, turn, &batch->token[n], t);
    }
    for (int array = l.shape.quantise ? 2 : 0; array < l.shape.arrays; array++)
        push_rows(l, turn, batch, send.input[array], array);
}

/* A thread for each destination of each token, as few warps as that takes: each waits for the block's stores once. */
__device__ inline void push_flags(const struct cuda_launch &l, const struct turn *turn, const struct push_batch *batch)
{
    int most = l.shape.topk < turn->ranks ? l.shape.topk : turn->ranks;
    for (int n = threadIdx.x; n < batch->count * most; n += blockDim.x) {
        const struct route_token *token = &batch->token[n / most];
        int i = n % most;
        if (i >= token->destinations)
            continue;
        size_t row = row_at(l.shape, turn->rank, token->row[i]);
        flag_raise((uint64_t *)region_at(turn, token->rank[i], l.shape.row_flag) + row, turn->stamp);
    }
}

/* One warp: the next tokens before `end`. */
__device__ inline void place_batch(const struct route_input &in, const struct route_counts &counts, int32_t first,
                                   int32_t end, struct push_batch *batch)
{
    int32_t count = end - first < PUSH_BATCH ? end - first : PUSH_BATCH, lane = (int32_t)threadIdx.x & 31;
    int64_t id[PUSH_BATCH];
    float weight[PUSH_BATCH];
#pragma unroll
    for (int n = 0; n < PUSH_BATCH; n++) {
        bool there = n < count && lane < in.topk;
        id[n] = there ? route_id(in, first + n, lane) : -1;
        weight[n] = there ? route_weight(in, first + n, lane) : 0.0f;
    }
    batch->first = first;
    batch->count = count;
#pragma unroll
    for (int n = 0; n < PUSH_BATCH; n++)
        if (n < count)
            route_place(in, counts, first + n, id[n], weight[n], &batch->token[n]);
}

/*
 * Credit to store rows here (X4): every active rank has raised its combine line of the pair before, which this rank's
 * combine waited for, and a rank raises that when the kernel that consumed its rows is over. The row's flag comes after
 * the row: all threads have stored their pieces before the barrier, and the flag is a release (X5).
 */
__device__ inline void send_push_block(const struct cuda_launch &l, const struct turn *turn,
                                       const struct dispatch_send_args &send, const struct route_counts &counts,
                                       int block, int blocks)
{
    __shared__ struct push_batch batches[2]; /* one is placed while the flags of the other are raised */
    struct route_input in = send_routes(l, turn, send);
    int32_t run = (send.tokens + blocks - 1) / blocks, begin = block * run, turnabout = 0;
    int32_t end = begin + run < send.tokens ? begin + run : send.tokens;
    if (begin >= end)
        return;
    route_clear(in, counts);
    __syncthreads();
    route_each(in, begin, [&](const struct route &r) { route_count(counts, r); });
    __syncthreads();
    for (int32_t t = begin; t < end; t += PUSH_BATCH) {
        struct push_batch *batch = &batches[turnabout ^= 1];
        if (threadIdx.x / 32 == blockDim.x / 32 - 1) /* not the warp that raises flags */
            place_batch(in, counts, t, end, batch);
        __syncthreads();
        push_tokens(l, turn, send, batch);
        __syncthreads();
        push_flags(l, turn, batch);
    }
}

#endif
