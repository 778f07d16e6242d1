// SPDX-License-Identifier: Apache-2.0
/*
 * Second half of dispatch: wait for every active rank's line, then for each row, and lay out what came. Warps take rows
 * in the order in which they are sent (row 0 of every source, row 1 of every source, ...), so they wait for what is due.
 */
#ifndef CUDA_DISPATCH_RECEIVE_CUH
#define CUDA_DISPATCH_RECEIVE_CUH

#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/dispatch_send.cuh"
#include "kernels/cuda/operations.h"

enum { RECEIVE_MAX_WARPS = OPERATIONS_MAX_THREADS / 32 };

/* What a receiving block knows when the lines have come. In shared memory. */
struct receiving {
    int32_t rows[MUSTER_MAX_RANKS]; /* from each rank */
    int32_t before[MUSTER_MAX_RANKS + 1]; /* flat: from the ranks before each, and from all */
    int32_t most_rows; /* from any of them */
    int32_t *begin; /* [S][R + 1] expert-major: see first_row() */
};

/* ---------------------------------------------------------------------------------------------------------- the lines */

/*
 * X8, X9: whether a peer's dispatch is the other half of this one: sent in the same step, for the same ranks, with a
 * possible number of rows. One thread. On failure the step is void.
 */
__device__ inline bool accept_line(const struct cuda_launch &l, const struct turn *turn, int rank, int32_t *rows)
{
    const volatile struct exchange_line *line = line_at(turn, turn->rank, l.shape.dispatch_line, rank);
    uint32_t count = line->rows;
    bool same_mask = line->mask[0] == turn->mask.word[0] && line->mask[1] == turn->mask.word[1];
    *rows = (int32_t)count;
    if (line->step != turn->number) {
        turn_fail(l, MUSTER_REASON_REFUSED, MUSTER_PHASE_DISPATCH, rank, turn->epoch, 0);
        return false;
    }
    if (same_mask && count <= (uint32_t)l.shape.tokens)
        return true;
    turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_DISPATCH, rank, turn->epoch, count);
    return false;
}

/* A thread for each rank. A rank outside the mask reads as zero rows (X7). */
template <bool FT>
__device__ inline bool await_lines(const struct cuda_launch &l, const struct turn *turn, struct receiving *r)
{
    bool good = true;
    for (int rank = threadIdx.x; rank < turn->ranks; rank += blockDim.x) {
        int32_t rows = 0;
        if (turn_has(turn, rank)) {
            const uint64_t *flag = &line_at(turn, turn->rank, l.shape.dispatch_line, rank)->flag;
            good = wait_flag<FT>(l, turn, {flag, turn->stamp, rank, MUSTER_PHASE_DISPATCH}) &&
                   accept_line(l, turn, rank, &rows) && good;
        }
        r->rows[rank] = rows;
        atomicMax(&r->most_rows, rows);
    }
    return __syncthreads_and(good);
}

/* Flat: a source's rows begin where those of the ranks before it end. A thread for each rank, and one for all. */
__device__ inline void lay_out_sources(const struct turn *turn, struct receiving *r)
{
    for (int rank = threadIdx.x; rank <= turn->ranks; rank += blockDim.x) {
        int32_t before = 0;
        for (int i = 0; i < rank; i++)
            before += r->rows[i];
        r->before[rank] = before;
    }
    __syncthreads();
}

__device__ __forceinline__ const int32_t *slot_counts(const struct cuda_launch &l, const struct turn *turn, int rank)
{
    return (const int32_t *)region_at(turn, turn->rank, l.shape.slot_counts) + rank * l.shape.slots;
}

/* Where the rows of slot s begin that came from `rank`; with rank == ranks, where they all end. */
__device__ __forceinline__ int32_t &first_row(const struct receiving *r, int ranks, int32_t s, int rank)
{
    return r->begin[s * (ranks + 1) + rank];
}

/* X9: a source cannot have more rows in a slot than it has sent rows. */
__device__ inline bool accept_count(const struct cuda_launch &l, const struct turn *turn, const struct receiving *r,
                                    int rank, int32_t count)
{
    if (count >= 0 && count <= r->rows[rank])
        return true;
    turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_DISPATCH, rank, turn->epoch, (uint32_t)count);
    return false;
}

/*
 * Rows of a slot lie by (source, token), packed: a source's begin where those of the ranks before it end. A thread has a
 * slot, and loads what several ranks say of it at once.
 */
__device__ inline bool lay_out_slots(const struct cuda_launch &l, const struct turn *turn, struct receiving *r)
{
    enum { FLIGHT = 8 };
    bool good = true;
    for (int32_t s = threadIdx.x; s < l.shape.slots; s += blockDim.x) {
        int32_t next = 0;
        for (int base = 0; base < turn->ranks; base += FLIGHT) {
            int32_t count[FLIGHT];
#pragma unroll
            for (int i = 0; i < FLIGHT; i++)
                count[i] = base + i < turn->ranks && r->rows[base + i]
                               ? ((const volatile int32_t *)slot_counts(l, turn, base + i))[s]
                               : 0;
#pragma unroll
            for (int i = 0; i < FLIGHT; i++) {
                if (base + i >= turn->ranks)
                    break;
                first_row(r, turn->ranks, s, base + i) = next;
                bool possible = accept_count(l, turn, r, base + i, count[i]);
                good = good && possible;
                next += possible ? count[i] : 0;
            }
        }
        first_row(r, turn->ranks, s, turn->ranks) = next;
    }
    return __syncthreads_and(good);
}

/* --------------------------------------------------------------------------------- what the first block alone writes */

__device__ inline void write_ranges(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_receive_args &args, const struct receiving *r)
{
    int ranks = turn->ranks;
    for (int32_t i = threadIdx.x; i < l.shape.slots * ranks; i += blockDim.x) {
        int32_t s = i / ranks, rank = i % ranks;
        int32_t begin = first_row(r, ranks, s, rank), end = first_row(r, ranks, s, rank + 1);
        l.own.slot_begin[i] = begin;
        if (args.ranges)
            args.ranges[i] = (int64_t)begin << 32 | (end - begin);
        if (rank == ranks - 1)
            args.counts[s] = end;
    }
}

__device__ inline void write_loads(const struct cuda_launch &l, const struct turn *turn, int32_t *loads)
{
    size_t slots = (size_t)l.shape.ranks * (size_t)l.shape.slots;
    const volatile int32_t *told = (const volatile int32_t *)region_at(turn, turn->rank, l.shape.loads);
    for (size_t i = threadIdx.x; i < slots * (size_t)turn->ranks; i += blockDim.x)
        loads[i] = turn_has(turn, (int)(i / slots)) ? told[i] : 0;
}

/* Rows past the count, for kernels that run over the whole array. */
__device__ inline void pad_slots(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                 const struct receiving *r)
{
    for (int rank = 0; rank < l.shape.ranks; rank++) {
        size_t topk = (size_t)l.shape.topk, end = row_at(l.shape, rank + 1, 0) * topk;
        for (size_t i = row_at(l.shape, rank, r->rows[rank]) * topk + threadIdx.x; i < end; i += blockDim.x)
            args.slots[i] = args.invalid_id;
    }
}

/* Flat: behind the last row of all. */
__device__ inline void pad_end(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                               const struct receiving *r)
{
    size_t topk = (size_t)l.shape.topk, end = row_at(l.shape, l.shape.ranks, 0) * topk;
    for (size_t i = (size_t)r->before[l.shape.ranks] * topk + threadIdx.x; i < end; i += blockDim.x)
        args.slots[i] = args.invalid_id;
}

__device__ inline void pad_sources(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_receive_args &args, const struct receiving *r)
{
    size_t rows = (size_t)l.shape.ranks * (size_t)l.shape.tokens;
    for (int32_t s = 0; s < l.shape.slots; s++) {
        size_t used = (size_t)first_row(r, turn->ranks, s, turn->ranks);
        for (size_t i = 2 * ((size_t)s * rows + used) + threadIdx.x; i < 2 * ((size_t)s + 1) * rows; i += blockDim.x)
            args.source[i] = args.invalid_id;
    }
}

/* Flat: where each source's rows are. */
__device__ inline void write_sources(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                     const struct receiving *r)
{
    for (int rank = threadIdx.x; rank < l.shape.ranks; rank += blockDim.x) {
        l.own.rows_before[rank] = r->before[rank];
        if (args.ranges)
            args.ranges[rank] = (int64_t)r->before[rank] << 32 | r->rows[rank];
    }
    if (args.pad_ids)
        pad_end(l, args, r);
}

__device__ inline void write_summary(const struct cuda_launch &l, const struct turn *turn,
                                     const struct dispatch_receive_args &args, const struct receiving *r)
{
    for (int rank = threadIdx.x; rank < turn->ranks; rank += blockDim.x) {
        l.own.rows_from[rank] = r->rows[rank];
        if (!l.shape.expert_major)
            args.counts[rank] = r->rows[rank];
    }
    if (l.shape.expert_major)
        write_ranges(l, turn, args, r);
    if (args.loads)
        write_loads(l, turn, args.loads);
    if (l.shape.flat)
        write_sources(l, args, r);
    else if (args.pad_ids && !l.shape.expert_major)
        pad_slots(l, args, r);
    if (args.pad_ids && l.shape.expert_major && args.source)
        pad_sources(l, turn, args, r);
}

/* ----------------------------------------------------------------------------------------------------- rows, by a warp */

/* A row that has come: lane k holds what is known of route k. */
struct arrived_row {
    size_t row; /* in the arrays of the region */
    int32_t token;
    int32_t slot, index; /* of this lane's route; slot -1: it has none */
    float weight;
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

/* Waits for row j of a rank and reads what came with it. False: the step is void. */
template <bool FT>
__device__ inline bool await_row(const struct cuda_launch &l, const struct turn *turn, const struct receiving *r,
                                 int rank, int32_t j, struct arrived_row *in)
{
    const struct exchange_shape &shape = l.shape;
    int lane = threadIdx.x & 31;
    in->row = row_at(shape, rank, j);
    bool come = true;
    if (lane == 0) {
        const uint64_t *flag = (const uint64_t *)region_at(turn, turn->rank, shape.row_flag) + in->row;
        come = wait_flag<FT>(l, turn, {flag, turn->stamp, rank, MUSTER_PHASE_DISPATCH});
    }
    if (!__shfl_sync(~0u, come, 0))
        return false;
    __syncwarp(); /* what the flag's reader may see, its whole warp may see */
    size_t route = in->row * (size_t)shape.topk + (size_t)lane;
    bool has = lane < shape.topk;
    in->token = ((const volatile int32_t *)region_at(turn, turn->rank, shape.row_token))[in->row];
    in->slot = has ? ((const volatile int32_t *)region_at(turn, turn->rank, shape.row_slot))[route] : -1;
    in->index = has ? ((const volatile int32_t *)region_at(turn, turn->rank, shape.row_index))[route] : 0;
    in->weight = has ? ((const volatile float *)region_at(turn, turn->rank, shape.row_weight))[route] : 0.0f;
    return accept_row(l, turn, r, rank, in);
}

__device__ __forceinline__ void write_source(int32_t *source, size_t row, int rank, int32_t token)
{
    source[2 * row] = rank;
    source[2 * row + 1] = token;
}

/* Expert-major: the output row of this lane's route. */
__device__ __forceinline__ size_t slot_row(const struct cuda_launch &l, const struct receiving *r, int rank,
                                           const struct arrived_row *in)
{
    size_t rows = (size_t)l.shape.ranks * (size_t)l.shape.tokens;
    return (size_t)in->slot * rows + (size_t)(first_row(r, l.shape.ranks, in->slot, rank) + in->index);
}

/* One array's row to where each lane wants it (`to`; NULL: nowhere): each piece is loaded once. */
__device__ inline void spread_row(const unsigned char *from, size_t bytes, unsigned char *to)
{
    for (unsigned wanted = __ballot_sync(~0u, to != NULL); wanted; wanted &= wanted - 1) {
        auto place = (unsigned char *)__shfl_sync(~0u, (unsigned long long)to, __ffs(wanted) - 1);
        copy_row(place, from, bytes, threadIdx.x & 31, 32);
    }
}

/* The same through the warp's stage, a stageful at a time. */
__device__ inline void spread_bulk(struct bulk_stage *stage, const unsigned char *from, size_t bytes, unsigned char *to)
{
    for (size_t at = 0; at < bytes; at += stage->bytes) {
        uint32_t part = bytes - at < stage->bytes ? (uint32_t)(bytes - at) : stage->bytes;
        bulk_reuse();
        bulk_load(stage, from + at, part);
        bulk_wait(stage);
        bulk_store(stage, to ? to + at : NULL, part);
    }
}

/* A row's arrays to output row `row` of each lane with `wanted`. Short rows are not worth the engine's while. */
__device__ inline void spread_arrays(const struct cuda_launch &l, const struct turn *turn,
                                     const struct dispatch_receive_args &args, const struct arrived_row *in,
                                     bool wanted, size_t row, struct bulk_stage *stage)
{
    enum { SHORT_BYTES = 1024 };
    for (int a = 0; a < l.shape.arrays; a++) {
        size_t bytes = l.shape.array[a].row_bytes;
        const unsigned char *from = region_at(turn, turn->rank, l.shape.array[a].offset) + in->row * bytes;
        if (!args.output[a])
            continue;
        unsigned char *to = wanted ? args.output[a] + row * bytes : NULL;
        if (bytes >= SHORT_BYTES && bulk_can(copy_bits(args.output[a]) | bytes))
            spread_bulk(stage, from, bytes, to);
        else
            spread_row(from, bytes, to);
    }
}

/* Expert-major: to a row for each route; lanes are routes. */
__device__ inline void fan_out_row(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_receive_args &args, const struct receiving *r, int rank,
                                   const struct arrived_row *in, struct bulk_stage *stage)
{
    bool routed = in->slot >= 0;
    size_t row = routed ? slot_row(l, r, rank, in) : 0;
    spread_arrays(l, turn, args, in, routed, row, stage);
    if (routed && args.source)
        write_source(args.source, row, rank, in->token);
}

/* Rank-major and flat: to the one row `row` of the output. */
__device__ inline void take_row(const struct cuda_launch &l, const struct turn *turn,
                                const struct dispatch_receive_args &args, int rank, size_t row,
                                const struct arrived_row *in, struct bulk_stage *stage)
{
    int lane = threadIdx.x & 31;
    spread_arrays(l, turn, args, in, lane == 0, row, stage);
    if (lane < l.shape.topk) {
        args.slots[row * (size_t)l.shape.topk + (size_t)lane] = in->slot;
        args.weights[row * (size_t)l.shape.topk + (size_t)lane] = in->weight;
    }
    if (lane == 0 && args.source)
        write_source(args.source, row, rank, in->token);
}

/* Rows 0 of all ranks, rows 1 of all ranks, and so on, handed to all receiving blocks in turn, then to their next warps. */
template <bool FT>
__device__ inline void receive_rows(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_receive_args &args, const struct receiving *r, int block,
                                    int blocks, struct bulk_stage *stage)
{
    int32_t warps = l.plan.receive_warps, ranks = turn->ranks, all = r->most_rows * ranks; /* at most 2^23 */
    for (int32_t i = (int32_t)threadIdx.x / 32 * blocks + block; i < all; i += blocks * warps) {
        int32_t rank = i % ranks, j = i / ranks;
        struct arrived_row in;
        if (j >= r->rows[rank])
            continue;
        if (!await_row<FT>(l, turn, r, rank, j, &in))
            return;
        if (l.shape.expert_major)
            fan_out_row(l, turn, args, r, rank, &in, stage);
        else
            take_row(l, turn, args, rank, l.shape.flat ? (size_t)(r->before[rank] + j) : in.row, &in, stage);
    }
}

/* As many warps as there are stages; the table of first rows lies before those. */
template <bool FT>
__device__ inline void receive_block(const struct cuda_launch &l, const struct turn *turn,
                                     const struct dispatch_receive_args &args, unsigned char *shared, int block,
                                     int blocks)
{
    __shared__ struct receiving r;
    __shared__ uint64_t barriers[RECEIVE_MAX_WARPS];
    int warp = threadIdx.x / 32;
    if (threadIdx.x == 0) {
        r.most_rows = 0;
        r.begin = (int32_t *)shared;
    }
    __syncthreads();
    if (!await_lines<FT>(l, turn, &r))
        return;
    if (l.shape.expert_major && !lay_out_slots(l, turn, &r))
        return;
    if (l.shape.flat)
        lay_out_sources(turn, &r);
    if (block == 0)
        write_summary(l, turn, args, &r);
    if (warp >= l.plan.receive_warps)
        return;
    struct bulk_stage stage;
    bulk_open(&stage, shared + l.plan.table_bytes + (size_t)warp * l.plan.stage_bytes, (uint32_t)l.plan.stage_bytes,
              &barriers[warp]);
    receive_rows<FT>(l, turn, args, &r, block, blocks, &stage);
    bulk_close(&stage);
}

#endif
