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

/* Tokens that a block takes at a time, a warp each: as many as it has stages, or fewer if all then come out even. */
__device__ __forceinline__ int32_t stream_batch(int32_t tokens, int32_t blocks, int32_t stages)
{
    int32_t rounds = (tokens + blocks * stages - 1) / (blocks * stages);
    return rounds ? (tokens + blocks * rounds - 1) / (blocks * rounds) : 1;
}

/* A barrier for all warps but the postman. */
__device__ __forceinline__ void stream_barrier()
{
    asm volatile("bar.sync 1, %0;" ::"r"(blockDim.x - 32) : "memory");
}

/*
 * Credit as in send_push_block(). A row's flag is posted by the lane that had the engine store it, when the warp has its
 * next row under way: by then the store is over, or nearly so. What other lanes have stored beside the row comes before
 * the flag by the warp's barriers (X5).
 */
__device__ inline void stream_tokens(const struct cuda_launch &l, const struct turn *turn,
                                     const struct dispatch_send_args &send, const struct route_counts &counts,
                                     struct route_token *token, struct bulk_stage *stage, struct post_office *office,
                                     int block, int blocks)
{
    struct route_input in = send_routes(l, turn, send);
    int32_t lane = (int32_t)threadIdx.x & 31, warp = (int32_t)threadIdx.x / 32, counted = 0;
    int32_t threads = (int32_t)blockDim.x - 32, size = stream_batch(send.tokens, blocks, l.plan.stages);
    uint64_t *flag = NULL; /* of the row that this lane has had stored before */
    for (int32_t first = block * size; first < send.tokens; first += blocks * size) {
        int32_t left = send.tokens - first, count = left < size ? left : size;
        route_each(in, counted, first, threads, [&](const struct route &r) { route_count(in, counts, r); });
        stream_barrier();
        if (warp == threads / 32 - 1)
            place_tokens(in, counts, first, count, token);
        stream_barrier();
        counted = first + count;
        if (warp >= count)
            continue;
        stream_token(l, turn, send, &token[warp], first + warp, stage);
        bulk_settle();
        post_flags(office, flag);
        flag = lane < token[warp].destinations ? destination_flag(l, turn, &token[warp], lane) : NULL;
    }
    if (warp >= l.plan.stages)
        return;
    bulk_close(stage);
    post_flags(office, flag);
    post_close(office);
}

/* As many warps push as there are stages; the last of the block is the postman, and the one before it places. */
template <bool FT>
__device__ inline void send_stream_block(const struct cuda_launch &l, const struct turn *turn,
                                         const struct dispatch_send_args &send, const struct route_counts &counts,
                                         unsigned char *shared, int block, int blocks)
{
    __shared__ uint64_t barriers[OPERATIONS_MAX_THREADS / 32];
    __shared__ struct post_office office;
    int32_t warp = (int32_t)threadIdx.x / 32, stage_bytes = l.plan.stage_bytes;
    struct bulk_stage stage;
    post_open(&office, l.plan.stages);
    if (!place_first<FT>(l, turn, send_routes(l, turn, send), counts))
        return;
    if (warp == (int32_t)blockDim.x / 32 - 1) {
        post_deliver(&office, turn->stamp);
        return;
    }
    if (warp < l.plan.stages)
        bulk_open(&stage, shared + l.plan.batch_bytes + warp * stage_bytes, (uint32_t)stage_bytes, &barriers[warp]);
    stream_tokens(l, turn, send, counts, (struct route_token *)shared, &stage, &office, block, blocks);
}

#endif
