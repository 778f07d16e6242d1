// SPDX-License-Identifier: Apache-2.0
/* Rows of dispatch as they come, each taken by a warp, and expert-major: to all places where its routes want it. */
#ifndef CUDA_DISPATCH_ROWS_CUH
#define CUDA_DISPATCH_ROWS_CUH

#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/dispatch_hear.cuh"

/* A row that has come: lane k holds what is known of route k. */
struct arrived_row {
    size_t row; /* in the arrays of the region */
    int32_t token;
    int32_t slot, index; /* of this lane's route; slot -1: it has none */
};

__device__ inline bool accept_row(const struct cuda_launch &l, const struct turn *turn, const struct receiving *r,
                                  int rank, const struct arrived_row *in)
{
    bool good = in->token >= 0 && in->token < l.shape.tokens && in->slot >= -1 && in->slot < l.shape.slots;
    good = good && in->index >= 0 && in->index < r->rows[rank];
    if (__all_sync(~0u, good))
        return true;
    if ((threadIdx.x & 31) == 0) /* X9 */
        turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_DISPATCH, rank, turn->epoch, (uint32_t)in->token);
    return false;
}

/* Waits for row j of a rank. False: the step is void. */
template <bool FT>
__device__ inline bool await_row(const struct cuda_launch &l, const struct turn *turn, int rank, size_t row)
{
    const uint64_t *flag = NULL;
    if ((threadIdx.x & 31) == 0)
        flag = (const uint64_t *)own_at(l, l.shape.row_flag) + row;
    return wait_flags<FT, false>(l, turn, {flag, turn->stamp, rank, MUSTER_PHASE_DISPATCH});
}

/* Reads what came with it. */
__device__ inline struct arrived_row read_row(const struct cuda_launch &l, size_t row)
{
    const struct exchange_shape &shape = l.shape;
    int lane = threadIdx.x & 31;
    size_t route = row * (size_t)shape.topk + (size_t)lane;
    bool has = lane < shape.topk;
    struct arrived_row in = {row, 0, -1, 0};
    in.token = ((const volatile int32_t *)own_at(l, shape.row_token))[row];
    in.slot = has ? ((const volatile int32_t *)own_at(l, shape.row_slot))[route] : -1;
    in.index = has ? ((const volatile int32_t *)own_at(l, shape.row_index))[route] : 0;
    return in;
}

__device__ __forceinline__ void write_source(int32_t *source, size_t row, int rank, int32_t token)
{
    source[2 * row] = rank;
    source[2 * row + 1] = token;
}

/* One array's row to where each lane wants it (`to`; NULL: nowhere): each piece is loaded once. */
__device__ inline void spread_row(const unsigned char *from, size_t bytes, unsigned char *to)
{
    for (unsigned wanted = __ballot_sync(~0u, to != NULL); wanted; wanted &= wanted - 1) {
        auto place = (unsigned char *)__shfl_sync(~0u, (unsigned long long)to, __ffs(wanted) - 1);
        copy_row(place, from, bytes, threadIdx.x & 31, 32);
    }
}

/* Short rows are not worth the engine's while. */
__device__ __forceinline__ bool worth_bulk(const void *to, size_t bytes)
{
    enum { SHORT_BYTES = 1024 };
    return bytes >= SHORT_BYTES && bulk_can(copy_bits(to) | bytes);
}

/* ------------------------------------------------------------------------------------------- expert-major: row by row */

/* How many arrays of a row go through the stage together: those of the hidden states, as far as they can. */
template <typename Facts>
__device__ __forceinline__ int early_arrays(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                            const struct bulk_stage *stage)
{
    int most = worth_bulk(args.output[0], l.shape.array[0].row_bytes) ? Facts::HIDDEN_ARRAYS : 0, count = 0;
    size_t bytes = 0;
#pragma unroll
    for (int a = 0; a < Facts::HIDDEN_ARRAYS; a++) {
        bytes += l.shape.array[a].row_bytes;
        bool can = args.output[a] && bulk_can(copy_bits(args.output[a]) | l.shape.array[a].row_bytes);
        count += count == a && a < most && can && bytes <= stage->bytes;
    }
    return count;
}

/* Begins to load the first `count` arrays of a row. */
template <typename Facts>
__device__ __forceinline__ void begin_early(const struct cuda_launch &l, int count, size_t row,
                                            struct bulk_stage *stage)
{
    uint32_t at = 0, bytes = 0;
#pragma unroll
    for (int a = 0; a < Facts::HIDDEN_ARRAYS; a++)
        bytes += a < count ? (uint32_t)l.shape.array[a].row_bytes : 0;
    bulk_reuse();
    bulk_expect(stage, bytes);
#pragma unroll
    for (int a = 0; a < Facts::HIDDEN_ARRAYS && a < count; a++) {
        bytes = (uint32_t)l.shape.array[a].row_bytes;
        bulk_load(stage, at, own_at(l, l.shape.array[a].offset) + row * bytes, bytes);
        at += bytes;
    }
}

/* Stores them to row `out` of the outputs, for each lane with a route. */
template <typename Facts>
__device__ __forceinline__ void end_early(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                          int count, bool routed, size_t out, struct bulk_stage *stage)
{
    uint32_t at = 0;
    bulk_wait(stage);
#pragma unroll
    for (int a = 0; a < Facts::HIDDEN_ARRAYS && a < count; a++) {
        auto bytes = (uint32_t)l.shape.array[a].row_bytes;
        bulk_store(stage, at, routed ? args.output[a] + out * bytes : NULL, bytes);
        at += bytes;
    }
}

/*
 * A row's arrays from `first` on to row `out` of the output, for each lane with a route. Returns the stage's phase. Not inlined:
 * of most rows all arrays come early, and others would take registers from those.
 */
static __device__ __noinline__ uint32_t fan_out_arrays(const struct cuda_launch &l,
                                                       const struct dispatch_receive_args &args, int first, size_t row,
                                                       bool routed, size_t out, struct bulk_stage stage)
{
    for (int a = first; a < l.shape.arrays; a++) {
        size_t bytes = l.shape.array[a].row_bytes;
        const unsigned char *from = own_at(l, l.shape.array[a].offset) + row * bytes;
        unsigned char *to = routed ? args.output[a] + out * bytes : NULL;
        if (!args.output[a])
            continue;
        if (worth_bulk(args.output[a], bytes))
            bulk_move(&stage, from, bytes, to);
        else
            spread_row(from, bytes, to);
    }
    return stage.phase;
}

/*
 * A row to a row of the output for each lane with a route; the first `begun` arrays are on their way into the stage. What
 * row the lane's route has, combine must know too.
 */
template <typename Facts>
__device__ __forceinline__ void fan_out_row(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                            const struct receiving *r, int rank, const struct arrived_row *in,
                                            int begun, struct bulk_stage *stage)
{
    int lane = threadIdx.x & 31;
    bool routed = in->slot >= 0;
    int32_t index = routed ? first_row(r, l.shape.ranks, in->slot, rank) + in->index : 0;
    size_t row = routed ? row_at(l.shape, in->slot * l.shape.ranks, index) : 0;
    if (begun > 0)
        end_early<Facts>(l, args, begun, routed, row, stage);
    if (begun < l.shape.arrays)
        stage->phase = fan_out_arrays(l, args, begun, in->row, routed, row, *stage);
    if (routed && args.source)
        write_source(args.source, row, rank, in->token);
    if (routed)
        ((int32_t *)own_at(l, l.shape.row_index))[in->row * (size_t)l.shape.topk + (size_t)lane] = index;
}

/* One row. What lies beside it is read while the row itself is being loaded. False: the step is void. */
template <typename Facts>
__device__ __forceinline__ bool receive_row(const struct cuda_launch &l, const struct turn *turn,
                                            const struct dispatch_receive_args &args, const struct receiving *r,
                                            int rank, int32_t j, struct bulk_stage *stage)
{
    size_t row = row_at(l.shape, rank, j);
    int early = early_arrays<Facts>(l, args, stage);
    if (!await_row<Facts::FT>(l, turn, rank, row))
        return false;
    bulk_see();
    if (early > 0)
        begin_early<Facts>(l, early, row, stage);
    struct arrived_row in = read_row(l, row);
    bool good = accept_row(l, turn, r, rank, &in);
    if (good)
        fan_out_row<Facts>(l, args, r, rank, &in, early, stage);
    else if (early > 0)
        bulk_wait(stage);
    return good;
}

/* Rows 0 of all ranks, rows 1 of all ranks, and so on, handed to all receiving blocks in turn, then to their next warps. */
template <typename Facts>
__device__ inline void receive_rows(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_receive_args &args, const struct receiving *r, int block,
                                    int blocks, struct bulk_stage *stage)
{
    int32_t warps = l.plan.stages, ranks = turn->ranks, all = r->most_rows * ranks; /* at most 2^23 */
    for (int32_t i = (int32_t)threadIdx.x / 32 * blocks + block; i < all; i += blocks * warps) {
        struct quotient at = divide(i, l.by.ranks);
        int32_t rank = at.rest, j = at.whole;
        if (j < r->rows[rank] && !r->tokens[rank] && !receive_row<Facts>(l, turn, args, r, rank, j, stage))
            return;
    }
}

#endif
