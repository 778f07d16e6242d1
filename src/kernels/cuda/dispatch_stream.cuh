// SPDX-License-Identifier: Apache-2.0
/*
 * Many tokens: a warp takes a token, loads its row into its stage of shared memory once, and lets the bulk copy engine
 * store it to all destinations. Rows of all warps are under way at once, so few blocks fill the link.
 */
#ifndef CUDA_DISPATCH_STREAM_CUH
#define CUDA_DISPATCH_STREAM_CUH

#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/dispatch_push.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/post.cuh"

/* A row that is made into codes on the way. Scales are few, and go by ordinary stores. The stage holds a part of the row. */
__device__ inline void stream_quantised(const struct cuda_launch &l, const struct turn *turn,
                                        const struct route_token *token, const unsigned char *row,
                                        struct bulk_stage *stage, unsigned char *to)
{
    bool power_of_two = l.shape.quantise == MUSTER_EP_QUANTISE_FP8_POW2;
    int32_t hidden = l.shape.hidden, part = hidden < (int32_t)stage->bytes ? hidden : (int32_t)stage->bytes;
    for (int32_t begin = 0; begin < hidden; begin += part) {
        int32_t end = hidden - begin < part ? hidden : begin + part;
        bulk_reuse();
        for (int32_t first = begin; first < end; first += 32 * QUANTISE_PIECE) { /* all lanes go round together */
            int32_t at = first + ((int32_t)threadIdx.x & 31) * QUANTISE_PIECE;
            float value[QUANTISE_PIECE];
            quantise_load(row, l.shape.type, at, end, value);
            float scale = quantise_scale(value, power_of_two);
            if (at < end)
                *(uint4 *)(stage->memory + (at - begin)) = quantise_codes(value, scale);
            for (int i = 0; i < token->destinations && at < end && at % MUSTER_EP_FP8_GROUP == 0; i++)
                ((float *)destination_row(l, turn, token, i, 1))[at / MUSTER_EP_FP8_GROUP] = scale;
        }
        bulk_filled();
        bulk_store(stage, 0, to ? to + begin : NULL, (uint32_t)(end - begin));
    }
}

/* One token, by a warp. */
template <typename Facts>
__device__ inline void stream_token(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_send_args &send, const struct route_token *token, int32_t t,
                                    struct bulk_stage *stage)
{
    int lane = (int)threadIdx.x & 31;
    const struct row_input &hidden = send.input[0];
    const unsigned char *row = hidden.data + (size_t)t * hidden.stride;
    size_t bytes = l.shape.array[0].row_bytes;
    unsigned char *to = lane < token->destinations ? destination_row(l, turn, token, lane, 0) : NULL;
    push_routes(l, turn, token, t, lane, 32);
    push_keep(l, token, t, lane, 32);
    for (int array = Facts::QUANTISED ? 2 : 1; array < l.shape.arrays; array++)
        for (int i = 0; i < token->destinations; i++)
            copy_row(destination_row(l, turn, token, i, array),
                     send.input[array].data + (size_t)t * send.input[array].stride, l.shape.array[array].row_bytes,
                     lane, 32);
    if (Facts::QUANTISED)
        stream_quantised(l, turn, token, row, stage, to);
    else if (bulk_can(copy_bits(hidden.data) | hidden.stride))
        bulk_move(stage, row, bytes, to);
    else
        for (int i = 0; i < token->destinations; i++)
            copy_row(destination_row(l, turn, token, i, 0), row, bytes, lane, 32);
}

/* ------------------------------------------------------------------------------------------ the warps of a block */

/*
 * Pushing warps, one for each stage, come first; the others but the last work out where the next tokens go; the last is the
 * postman. Tokens are dealt out to all blocks in batches, as they come, since some multiprocessors are much faster than
 * others. A block's batches go to two teams of pushing warps in turn (one, if there is one stage only), so that one team's rows
 * are under way while the other takes its next.
 *
 * What is handed from warp to warp, in shared memory, is a batch's places. Like post.cuh, without a deadline: no peer is waited
 * for.
 */
enum { STREAM_TEAMS = 2, STREAM_AHEAD = 2 };

struct stream_desk {
    struct post_office office;
    int32_t
        first[STREAM_TEAMS * STREAM_AHEAD]; /* token of each batch; from the number of tokens on: there are no more */
    uint32_t placed; /* batches, so far */
    uint32_t taken[OPERATIONS_MAX_WARPS]; /* by pushing warp: behind the newest batch whose places it has used */
};

__device__ __forceinline__ int32_t stream_teams(const struct cuda_launch &l)
{
    return l.plan.stages < STREAM_TEAMS ? 1 : STREAM_TEAMS;
}

/* As many batches have places at a time: for each team the one that it pushes, and the next. */
__device__ __forceinline__ int32_t stream_slots(const struct cuda_launch &l)
{
    return stream_teams(l) * STREAM_AHEAD;
}

/* Tokens of a batch: a warp of a team has one, and all blocks have as many batches if they are equally fast. */
__device__ __forceinline__ int32_t stream_size(const struct cuda_launch &l, int32_t tokens)
{
    int32_t warps = l.plan.stages / stream_teams(l), teams = l.plan.send_blocks * stream_teams(l);
    int32_t rounds = (tokens + teams * warps - 1) / (teams * warps);
    return rounds ? (tokens + teams * rounds - 1) / (teams * rounds) : 1;
}

__device__ __forceinline__ int32_t stream_count(int32_t tokens, int32_t first, int32_t size)
{
    int32_t left = tokens - first;
    return left < 0 ? 0 : left < size ? left : size;
}

__device__ __forceinline__ struct route_token *stream_places(const struct cuda_launch &l, unsigned char *shared,
                                                             int32_t slot)
{
    return (struct route_token *)shared + slot * (l.plan.stages / stream_teams(l));
}

/*
 * Waits until a batch's team, of so many warps, has used the places of the one that had its slot before. That was whole: after
 * one that is not, a team gets one more at most, in its other slot. One warp.
 */
__device__ inline void stream_await_taken(const struct cuda_launch &l, struct stream_desk *desk, int32_t size,
                                          uint32_t batch)
{
    int32_t lane = (int32_t)threadIdx.x & 31, first = (int32_t)batch % stream_teams(l) * size;
    while (lane < size && share_read(&desk->taken[first + lane]) + (uint32_t)stream_slots(l) <= batch)
        __nanosleep(50);
    __syncwarp();
}

/* Takes a batch, and returns its first token. All placing warps, of which this is `warp`. */
__device__ inline int32_t stream_deal(const struct cuda_launch &l, struct stream_desk *desk, int32_t size,
                                      uint32_t batch, int32_t warp, int32_t warps)
{
    int32_t *first = &desk->first[(int32_t)batch % stream_slots(l)];
    if (warp == 0) {
        stream_await_taken(l, desk, size, batch);
        if ((threadIdx.x & 31) == 0)
            *first = (int32_t)atomicAdd(&l.exchange->dealt, 1u) * size;
    }
    share_barrier(32 * warps);
    return *first;
}

/* What can be known of the tokens of a batch by themselves, a warp for each. */
__device__ inline void stream_read(const struct route_input &in, int32_t first, int32_t count, int32_t warp,
                                   int32_t warps, struct route_token *token)
{
    int32_t lane = (int32_t)threadIdx.x & 31;
    for (int32_t n = warp; n < count; n += warps) {
        bool there = lane < in.topk;
        route_read(in, first + n, there ? route_id(in, first + n, lane) : -1,
                   there ? route_weight(in, first + n, lane) : 0.0f, &token[n]);
    }
}

/*
 * The placing warps: all of them count the tokens of other blocks and read the block's own; then one of them gives those
 * their places, which takes one after the other, but not long. Each team is told when there are no more.
 */
__device__ inline void stream_place(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_send_args &send, const struct route_counts &counts,
                                    unsigned char *shared, struct stream_desk *desk)
{
    struct route_input in = send_routes(l, turn, send);
    int32_t warps = (int32_t)blockDim.x / 32 - 1 - l.plan.stages, warp = (int32_t)threadIdx.x / 32 - l.plan.stages;
    int32_t tokens = send.tokens, size = stream_size(l, tokens), counted = 0, ended = 0;
    for (uint32_t batch = 0; ended < stream_teams(l); batch++) {
        int32_t first = stream_deal(l, desk, size, batch, warp, warps), count = stream_count(tokens, first, size);
        struct route_token *token = stream_places(l, shared, (int32_t)batch % stream_slots(l));
        if (count > 0) {
            stream_read(in, first, count, warp, warps, token);
            route_count_tokens(in, counts, counted, first, warp, warps, [](const struct route &) {});
        }
        share_barrier(32 * warps);
        for (int32_t n = 0; warp == 0 && n < count; n++)
            route_place(in, counts, &token[n]);
        if (warp == 0 && (threadIdx.x & 31) == 0)
            share_write(&desk->placed, batch + 1);
        share_barrier(32 * warps); /* the counts go on from there */
        counted = first + count;
        ended += count == 0;
    }
}

/* One token of a batch. A row's flag is posted by the lane that had the engine store it. */
__device__ inline uint32_t stream_row_flag(const struct route_token *token)
{
    int32_t lane = (int32_t)threadIdx.x & 31;
    return lane < token->destinations ? post_flag(token->rank[lane], (size_t)token->row[lane]) : ~0u;
}

/*
 * A pushing warp: a token of each of its team's batches. Credit as in send_push_block(). What other lanes have stored beside
 * the row comes before its flag by the warp's barriers (X5).
 */
template <typename Facts>
__device__ inline void stream_push(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_send_args &send, unsigned char *shared,
                                   struct stream_desk *desk, struct bulk_stage *stage)
{
    int32_t warp = (int32_t)threadIdx.x / 32, size = stream_size(l, send.tokens);
    int32_t team = warp / size, mine = warp % size;
    uint32_t posted = 0;
    for (uint32_t batch = (uint32_t)team; team < stream_teams(l); batch += (uint32_t)stream_teams(l)) {
        while (share_read(&desk->placed) <= batch)
            __nanosleep(50);
        __syncwarp();
        int32_t slot = (int32_t)batch % stream_slots(l), first = desk->first[slot];
        const struct route_token *token = stream_places(l, shared, slot) + mine;
        if (mine >= stream_count(send.tokens, first, size))
            break; /* a batch that is not whole is the last */
        uint32_t flag = stream_row_flag(token);
        stream_token<Facts>(l, turn, send, token, first + mine, stage);
        __syncwarp();
        if ((threadIdx.x & 31) == 0)
            share_write(&desk->taken[warp], batch + 1);
        bulk_stored();
        post_flags(&desk->office, &posted, flag);
    }
    bulk_close(stage);
    post_close(&desk->office);
}

template <typename Facts>
__device__ inline void send_stream_block(const struct cuda_launch &l, const struct turn *turn,
                                         const struct dispatch_send_args &send, const struct route_counts &counts,
                                         unsigned char *shared)
{
    __shared__ uint64_t barriers[OPERATIONS_MAX_WARPS];
    __shared__ struct stream_desk desk;
    int32_t warp = (int32_t)threadIdx.x / 32, stage_bytes = l.plan.stage_bytes;
    post_open(&desk.office, l.plan.stages);
    if (threadIdx.x < OPERATIONS_MAX_WARPS)
        desk.taken[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        desk.placed = 0;
    if (!place_first<Facts>(l, turn, counts))
        return;
    if (warp == (int32_t)blockDim.x / 32 - 1) {
        post_deliver(turn, &desk.office, l.shape.row_flag);
    } else if (warp >= l.plan.stages) {
        stream_place(l, turn, send, counts, shared, &desk);
    } else {
        struct bulk_stage stage;
        bulk_open(&stage, shared + l.plan.batch_bytes + warp * stage_bytes, (uint32_t)stage_bytes, &barriers[warp]);
        stream_push<Facts>(l, turn, send, shared, &desk, &stage);
    }
}

#endif
