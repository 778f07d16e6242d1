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
        bulk_store(stage, to ? to + begin : NULL, (uint32_t)(end - begin));
    }
}

/* One token, by a warp. */
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
    for (int array = l.shape.quantise ? 2 : 1; array < l.shape.arrays; array++)
        for (int i = 0; i < token->destinations; i++)
            copy_row(destination_row(l, turn, token, i, array),
                     send.input[array].data + (size_t)t * send.input[array].stride, l.shape.array[array].row_bytes,
                     lane, 32);
    if (l.shape.quantise)
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
 * postman. What is handed from warp to warp, in shared memory: the places of a batch of tokens while those of the batch
 * before are still in use. Like post.cuh, without a deadline: no peer is waited for.
 */
struct stream_desk {
    struct post_office office;
    uint32_t placed; /* batches, so far */
    uint32_t taken[OPERATIONS_MAX_WARPS]; /* of those, by each pushing warp: its token's places are used */
};

/* How the block's share of the tokens is cut. */
struct stream_cut {
    int32_t begin, step, size; /* batches of `size` tokens begin here, and then after every `step` */
    int32_t tokens;
};

/* As many tokens at a time as there are stages, or fewer if all blocks then come out even. */
__device__ __forceinline__ struct stream_cut stream_cut(int32_t tokens, int32_t stages, int32_t block, int32_t blocks)
{
    int32_t rounds = (tokens + blocks * stages - 1) / (blocks * stages);
    int32_t size = rounds ? (tokens + blocks * rounds - 1) / (blocks * rounds) : 1;
    return {block * size, blocks * size, size, tokens};
}

__device__ __forceinline__ int32_t stream_count(const struct stream_cut &cut, int32_t first)
{
    return cut.tokens - first < cut.size ? cut.tokens - first : cut.size;
}

/* The places of a batch; two batches take turns. */
__device__ __forceinline__ struct route_token *stream_places(const struct cuda_launch &l, unsigned char *shared,
                                                             uint32_t batch)
{
    return (struct route_token *)shared + (batch & 1) * (uint32_t)l.plan.stages;
}

/* Waits until the pushing warps have used the places of the batch before the last. One warp. */
__device__ inline void stream_await_taken(struct stream_desk *desk, int32_t warps, uint32_t batch)
{
    int32_t lane = (int32_t)threadIdx.x & 31;
    while (lane < warps && share_read(&desk->taken[lane]) + 1 < batch)
        __nanosleep(50);
    __syncwarp();
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
 * their places, which takes one after the other, but not long.
 */
__device__ inline void stream_place(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_send_args &send, const struct route_counts &counts,
                                    unsigned char *shared, struct stream_desk *desk, const struct stream_cut &cut)
{
    struct route_input in = send_routes(l, turn, send);
    int32_t warps = (int32_t)blockDim.x / 32 - 1 - l.plan.stages, warp = (int32_t)threadIdx.x / 32 - l.plan.stages;
    int32_t counted = 0;
    uint32_t batch = 0;
    for (int32_t first = cut.begin; first < cut.tokens; first += cut.step, batch++) {
        struct route_token *token = stream_places(l, shared, batch);
        int32_t count = stream_count(cut, first);
        stream_await_taken(desk, cut.size, batch);
        stream_read(in, first, count, warp, warps, token);
        route_count_tokens(in, counts, counted, first, warp, warps, [](const struct route &) {});
        share_barrier(32 * warps);
        for (int32_t n = 0; warp == 0 && n < count; n++)
            route_place(in, counts, &token[n]);
        if (warp == 0 && (threadIdx.x & 31) == 0)
            share_write(&desk->placed, batch + 1);
        share_barrier(32 * warps); /* the counts go on from there */
        counted = first + count;
    }
}

/*
 * A pushing warp: a token of each batch. Credit as in send_push_block(). A row's flag is posted by the lane that had the
 * engine store it. What other lanes have stored beside the row comes before the flag by the warp's barriers (X5).
 */
__device__ inline void stream_push(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_send_args &send, unsigned char *shared,
                                   struct stream_desk *desk, const struct stream_cut &cut, struct bulk_stage *stage)
{
    int32_t lane = (int32_t)threadIdx.x & 31, warp = (int32_t)threadIdx.x / 32;
    struct post_pending pending = post_nothing();
    uint32_t batch = 0;
    for (int32_t first = cut.begin; first < cut.tokens; first += cut.step, batch++) {
        const struct route_token *token = stream_places(l, shared, batch) + warp;
        if (warp >= stream_count(cut, first))
            continue;
        while (share_read(&desk->placed) <= batch)
            __nanosleep(50);
        __syncwarp();
        uint32_t flag = lane < token->destinations ? post_flag(token->rank[lane], (size_t)token->row[lane]) : ~0u;
        stream_token(l, turn, send, token, first + warp, stage);
        __syncwarp();
        if (lane == 0)
            share_write(&desk->taken[warp], batch + 1);
        post_later(&desk->office, &pending, flag);
    }
    bulk_close(stage);
    post_close(&desk->office, &pending);
}

template <bool FT>
__device__ inline void send_stream_block(const struct cuda_launch &l, const struct turn *turn,
                                         const struct dispatch_send_args &send, const struct route_counts &counts,
                                         unsigned char *shared, int block, int blocks)
{
    __shared__ uint64_t barriers[OPERATIONS_MAX_WARPS];
    __shared__ struct stream_desk desk;
    int32_t warp = (int32_t)threadIdx.x / 32, stage_bytes = l.plan.stage_bytes;
    struct stream_cut cut = stream_cut(send.tokens, l.plan.stages, block, blocks);
    post_open(&desk.office, l.plan.stages);
    if (threadIdx.x < OPERATIONS_MAX_WARPS)
        desk.taken[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        desk.placed = 0;
    if (!place_first<FT>(l, turn, counts))
        return;
    if (warp == (int32_t)blockDim.x / 32 - 1) {
        post_deliver(turn, &desk.office, l.shape.row_flag);
    } else if (warp >= l.plan.stages) {
        stream_place(l, turn, send, counts, shared, &desk, cut);
    } else {
        struct bulk_stage stage;
        bulk_open(&stage, shared + l.plan.batch_bytes + warp * stage_bytes, (uint32_t)stage_bytes, &barriers[warp]);
        stream_push(l, turn, send, shared, &desk, cut, &stage);
    }
}

#endif
