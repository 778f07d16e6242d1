// SPDX-License-Identifier: Apache-2.0
/*
 * Second half of dispatch: wait until every active rank has told how many rows it sends, then for each row, and lay out
 * what came. Warps take rows in the order in which they are sent (row 0 of every source, row 1 of every source, ...), so they
 * wait for what is due.
 */
#ifndef CUDA_DISPATCH_RECEIVE_CUH
#define CUDA_DISPATCH_RECEIVE_CUH

#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/region.cuh"
#include "kernels/cuda/told.cuh"

/* What a receiving block knows when all have told. In shared memory. */
struct receiving {
    int32_t rows[MUSTER_MAX_RANKS]; /* from each rank */
    int32_t before[MUSTER_MAX_RANKS + 1]; /* flat: from the ranks before each, and from all */
    int32_t most_rows; /* from any of them */
    int32_t *begin; /* [S][R + 1] expert-major: see first_row() */
};

/* --------------------------------------------------------------------------------------------------- what was told */

/* Where the rows of slot s begin that came from `rank`; with rank == ranks, where they all end. */
__device__ __forceinline__ int32_t &first_row(const struct receiving *r, int ranks, int32_t s, int rank)
{
    return r->begin[s * (ranks + 1) + rank];
}

/* Expert-major: two routes' counts, kept where the first rows will be. */
__device__ __forceinline__ void hear_counts(const struct cuda_launch &l, struct receiving *r, int rank, int32_t slot,
                                            uint64_t value)
{
    first_row(r, l.shape.ranks, slot, rank) = (int32_t)(uint32_t)value;
    if (slot + 1 < l.shape.slots)
        first_row(r, l.shape.ranks, slot + 1, rank) = (int32_t)(value >> 32);
}

__device__ inline void hear_word(const struct cuda_launch &l, struct receiving *r, int rank, int word, uint64_t value)
{
    if (word == EXCHANGE_TOLD_ROWS) {
        r->rows[rank] = (int32_t)value;
        atomicMax(&r->most_rows, (int32_t)value);
    } else if (word >= EXCHANGE_TOLD_COUNTS && l.shape.expert_major) {
        hear_counts(l, r, rank, 2 * (word - EXCHANGE_TOLD_COUNTS), value);
    }
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

/*
 * Rows of a slot lie by (source, token), packed: a source's begin where those of the ranks before it end. A thread has a
 * slot. X9: a source cannot have more rows in a slot than it has sent rows.
 */
__device__ inline bool lay_out_slots(const struct cuda_launch &l, const struct turn *turn, struct receiving *r)
{
    bool good = true;
    for (int32_t s = threadIdx.x; s < l.shape.slots; s += blockDim.x) {
        int32_t next = 0;
        for (int rank = 0; rank < turn->ranks; rank++) {
            int32_t count = first_row(r, turn->ranks, s, rank);
            bool possible = count >= 0 && count <= r->rows[rank];
            first_row(r, turn->ranks, s, rank) = next;
            next += possible ? count : 0;
            good = (possible || told_refuse(l, turn, rank, (uint32_t)count)) && good;
        }
        first_row(r, turn->ranks, s, turn->ranks) = next;
    }
    return __syncthreads_and(good);
}

/* All threads of the block. False: the step is void. */
template <bool FT>
__device__ inline bool hear_all(const struct cuda_launch &l, const struct turn *turn, struct receiving *r)
{
    bool good = told_await<FT>(l, turn, [&](int rank, int word, uint64_t value) {
        hear_word(l, r, rank, word, value);
        return true;
    });
    if (!good)
        return false;
    if (l.shape.flat)
        lay_out_sources(turn, r);
    return !l.shape.expert_major || lay_out_slots(l, turn, r);
}

/* ---------------------------------------------------------------------------- what spare warps of the first block write */

__device__ inline void write_ranges(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_receive_args &args, const struct receiving *r, int thread,
                                    int threads)
{
    int ranks = turn->ranks;
    for (int32_t i = thread; i < l.shape.slots * ranks; i += threads) {
        int32_t s = i / ranks, rank = i % ranks;
        int32_t begin = first_row(r, ranks, s, rank), end = first_row(r, ranks, s, rank + 1);
        if (args.ranges)
            args.ranges[i] = (int64_t)begin << 32 | (end - begin);
        if (rank == ranks - 1)
            args.counts[s] = end;
    }
}

template <bool FT>
__device__ inline void write_loads(const struct cuda_launch &l, const struct turn *turn, int32_t *loads, int thread,
                                   int threads)
{
    size_t slots = (size_t)l.shape.ranks * (size_t)l.shape.slots;
    const volatile int32_t *told = (const volatile int32_t *)region_at(turn, turn->rank, l.shape.loads);
    int seen = -1; /* the rank whose line this thread has read last */
    for (size_t i = (size_t)thread; i < slots * (size_t)turn->ranks; i += (size_t)threads) {
        int rank = (int)(i / slots);
        const uint64_t *flag = &line_at(turn, turn->rank, l.shape.dispatch_line, rank)->flag;
        bool has = turn_has(turn, rank);
        if (has && rank != seen && !wait_flag<FT>(l, turn, {flag, turn->stamp, rank, MUSTER_PHASE_DISPATCH}))
            return;
        seen = rank;
        loads[i] = has ? told[i] : 0;
    }
}

/* Rows past the count, for kernels that run over the whole array. */
__device__ inline void pad_slots(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                 const struct receiving *r, int thread, int threads)
{
    for (int rank = 0; rank < l.shape.ranks; rank++) {
        size_t topk = (size_t)l.shape.topk, end = row_at(l.shape, rank + 1, 0) * topk;
        for (size_t i = row_at(l.shape, rank, r->rows[rank]) * topk + thread; i < end; i += threads)
            args.slots[i] = args.invalid_id;
    }
}

/* Flat: behind the last row of all. */
__device__ inline void pad_end(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                               const struct receiving *r, int thread, int threads)
{
    size_t topk = (size_t)l.shape.topk, end = row_at(l.shape, l.shape.ranks, 0) * topk;
    for (size_t i = (size_t)r->before[l.shape.ranks] * topk + thread; i < end; i += threads)
        args.slots[i] = args.invalid_id;
}

__device__ inline void pad_sources(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_receive_args &args, const struct receiving *r, int thread,
                                   int threads)
{
    size_t rows = (size_t)l.shape.ranks * (size_t)l.shape.tokens;
    for (int32_t s = 0; s < l.shape.slots; s++) {
        size_t used = (size_t)first_row(r, turn->ranks, s, turn->ranks);
        for (size_t i = 2 * ((size_t)s * rows + used) + thread; i < 2 * ((size_t)s + 1) * rows; i += threads)
            args.source[i] = args.invalid_id;
    }
}

/* Flat: where each source's rows are. */
__device__ inline void write_sources(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                     const struct receiving *r, int thread, int threads)
{
    for (int rank = thread; rank < l.shape.ranks; rank += threads) {
        l.own.rows_before[rank] = r->before[rank];
        if (args.ranges)
            args.ranges[rank] = (int64_t)r->before[rank] << 32 | r->rows[rank];
    }
    if (args.pad_ids)
        pad_end(l, args, r, thread, threads);
}

template <bool FT>
__device__ inline void write_summary(const struct cuda_launch &l, const struct turn *turn,
                                     const struct dispatch_receive_args &args, const struct receiving *r, int thread,
                                     int threads)
{
    for (int rank = thread; rank < turn->ranks; rank += threads) {
        l.own.rows_from[rank] = r->rows[rank];
        if (!l.shape.expert_major)
            args.counts[rank] = r->rows[rank];
    }
    if (l.shape.expert_major)
        write_ranges(l, turn, args, r, thread, threads);
    if (args.loads)
        write_loads<FT>(l, turn, args.loads, thread, threads);
    if (l.shape.flat)
        write_sources(l, args, r, thread, threads);
    else if (args.pad_ids && !l.shape.expert_major)
        pad_slots(l, args, r, thread, threads);
    if (args.pad_ids && l.shape.expert_major && args.source)
        pad_sources(l, turn, args, r, thread, threads);
}

/* ----------------------------------------------------------------------------------------------------- rows, by a warp */

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
    bool come = true;
    if ((threadIdx.x & 31) == 0) {
        const uint64_t *flag = (const uint64_t *)region_at(turn, turn->rank, l.shape.row_flag) + row;
        come = wait_flag<FT>(l, turn, {flag, turn->stamp, rank, MUSTER_PHASE_DISPATCH});
    }
    come = __shfl_sync(~0u, come, 0);
    __syncwarp(); /* what the flag's reader may see, its whole warp may see */
    return come;
}

/* Reads what came with it. */
__device__ inline struct arrived_row read_row(const struct cuda_launch &l, const struct turn *turn, size_t row)
{
    const struct exchange_shape &shape = l.shape;
    int lane = threadIdx.x & 31;
    size_t route = row * (size_t)shape.topk + (size_t)lane;
    bool has = lane < shape.topk;
    struct arrived_row in = {row, 0, -1, 0};
    in.token = ((const volatile int32_t *)region_at(turn, turn->rank, shape.row_token))[row];
    in.slot = has ? ((const volatile int32_t *)region_at(turn, turn->rank, shape.row_slot))[route] : -1;
    in.index = has ? ((const volatile int32_t *)region_at(turn, turn->rank, shape.row_index))[route] : 0;
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

/* Whether the hidden states go through the stage, in one piece. */
__device__ __forceinline__ bool begins_early(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                             const struct bulk_stage *stage)
{
    size_t bytes = l.shape.array[0].row_bytes;
    return args.output[0] && bytes <= stage->bytes && worth_bulk(args.output[0], bytes);
}

/*
 * A row's arrays to a row of the output for each lane with a route; `begun`: the first is on its way into the stage. What row
 * the lane's route has, combine must know too.
 */
__device__ inline void fan_out_row(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_receive_args &args, const struct receiving *r, int rank,
                                   const struct arrived_row *in, bool begun, struct bulk_stage *stage)
{
    int lane = threadIdx.x & 31;
    bool routed = in->slot >= 0;
    int32_t index = routed ? first_row(r, l.shape.ranks, in->slot, rank) + in->index : 0;
    size_t row = routed ? row_at(l.shape, in->slot * l.shape.ranks, index) : 0;
    for (int a = 0; a < l.shape.arrays; a++) {
        size_t bytes = l.shape.array[a].row_bytes;
        const unsigned char *from = region_at(turn, turn->rank, l.shape.array[a].offset) + in->row * bytes;
        unsigned char *to = routed ? args.output[a] + row * bytes : NULL;
        if (!args.output[a])
            continue;
        if (a == 0 && begun) {
            bulk_wait(stage);
            bulk_store(stage, to, (uint32_t)bytes);
        } else if (worth_bulk(args.output[a], bytes)) {
            bulk_move(stage, from, bytes, to);
        } else {
            spread_row(from, bytes, to);
        }
    }
    if (routed && args.source)
        write_source(args.source, row, rank, in->token);
    if (routed)
        ((int32_t *)region_at(turn, turn->rank, l.shape.row_index))[in->row * (size_t)l.shape.topk + (size_t)lane] =
            index;
}

/* One row. What lies beside it is read while the row itself is being loaded. False: the step is void. */
template <bool FT>
__device__ inline bool receive_row(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_receive_args &args, const struct receiving *r, int rank,
                                   int32_t j, struct bulk_stage *stage)
{
    size_t row = row_at(l.shape, rank, j), bytes = l.shape.array[0].row_bytes;
    bool early = begins_early(l, args, stage);
    if (!await_row<FT>(l, turn, rank, row))
        return false;
    bulk_see();
    if (early) {
        bulk_reuse();
        bulk_load(stage, region_at(turn, turn->rank, l.shape.array[0].offset) + row * bytes, (uint32_t)bytes);
    }
    struct arrived_row in = read_row(l, turn, row);
    bool good = accept_row(l, turn, r, rank, &in);
    if (good)
        fan_out_row(l, turn, args, r, rank, &in, early, stage);
    else if (early)
        bulk_wait(stage);
    return good;
}

/* Rows 0 of all ranks, rows 1 of all ranks, and so on, handed to all receiving blocks in turn, then to their next warps. */
template <bool FT>
__device__ inline void receive_rows(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_receive_args &args, const struct receiving *r, int block,
                                    int blocks, struct bulk_stage *stage)
{
    int32_t warps = l.plan.stages, ranks = turn->ranks, all = r->most_rows * ranks; /* at most 2^23 */
    for (int32_t i = (int32_t)threadIdx.x / 32 * blocks + block; i < all; i += blocks * warps) {
        int32_t rank = i % ranks, j = i / ranks;
        if (j < r->rows[rank] && !receive_row<FT>(l, turn, args, r, rank, j, stage))
            return;
    }
}

/* ------------------------------------------------------------------------ rank-major and flat: runs of a source's rows */

/* Rows that follow one another in the region, and at the same places in the outputs. At most as many as a warp has lanes. */
struct run {
    int32_t rank; /* that they are from */
    int32_t count;
    size_t row; /* the first */
};

/* A lane waits for a row. */
template <bool FT>
__device__ inline bool await_run(const struct cuda_launch &l, const struct turn *turn, const struct run *run)
{
    int lane = threadIdx.x & 31;
    bool come = true;
    if (lane < run->count) {
        const uint64_t *flag = (const uint64_t *)region_at(turn, turn->rank, l.shape.row_flag) + run->row + lane;
        come = wait_flag_calmly<FT>(l, turn, {flag, turn->stamp, run->rank, MUSTER_PHASE_DISPATCH});
    }
    bulk_see(); /* and what each flag's reader may see, its whole warp may see */
    return __all_sync(~0u, come);
}

/* X9: an id must be one before a caller gets it. False: the step is void. */
__device__ inline bool accept_ids(const struct cuda_launch &l, const struct turn *turn, int rank, bool good)
{
    if (__all_sync(~0u, good))
        return true;
    if ((threadIdx.x & 31) == 0)
        told_refuse(l, turn, rank, 0);
    return false;
}

__device__ inline bool take_routes(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_receive_args &args, const struct run *run)
{
    size_t first = run->row * (size_t)l.shape.topk, routes = (size_t)run->count * (size_t)l.shape.topk;
    auto slots = (const volatile int32_t *)region_at(turn, turn->rank, l.shape.row_slot) + first;
    auto weights = (const volatile float *)region_at(turn, turn->rank, l.shape.row_weight) + first;
    bool good = true;
    for (size_t i = threadIdx.x & 31; i < routes; i += 32) {
        int32_t slot = slots[i];
        float weight = weights[i];
        bool possible = slot >= -1 && slot < l.shape.slots;
        args.slots[first + i] = possible ? slot : -1;
        args.weights[first + i] = weight;
        good = good && possible;
    }
    return accept_ids(l, turn, run->rank, good);
}

__device__ inline bool take_sources(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_receive_args &args, const struct run *run)
{
    int lane = threadIdx.x & 31;
    int32_t token = 0;
    if (lane < run->count)
        token = ((const volatile int32_t *)region_at(turn, turn->rank, l.shape.row_token))[run->row + lane];
    if (!accept_ids(l, turn, run->rank, token >= 0 && token < l.shape.tokens))
        return false;
    if (args.source && lane < run->count)
        write_source(args.source, run->row + lane, run->rank, token);
    return true;
}

__device__ inline void take_arrays(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_receive_args &args, const struct run *run,
                                   struct bulk_stage *stage)
{
    int lane = threadIdx.x & 31;
    for (int a = 0; a < l.shape.arrays; a++) {
        size_t at = run->row * l.shape.array[a].row_bytes, bytes = (size_t)run->count * l.shape.array[a].row_bytes;
        const unsigned char *from = region_at(turn, turn->rank, l.shape.array[a].offset) + at;
        if (!args.output[a])
            continue;
        if (worth_bulk(args.output[a] + at, bytes) && bulk_can(copy_bits(from)))
            bulk_move(stage, from, bytes, lane == 0 ? args.output[a] + at : NULL);
        else
            copy_row(args.output[a] + at, from, bytes, lane, 32);
    }
}

/* In the order of receive_rows(); rows of a run are few while there are warps without any. */
template <bool FT>
__device__ inline void receive_runs(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_receive_args &args, const struct receiving *r, int block,
                                    int blocks, struct bulk_stage *stage)
{
    int32_t warps = l.plan.stages, ranks = turn->ranks, share = r->most_rows * ranks / (blocks * warps);
    int32_t size = share < 1 ? 1 : share < 32 ? share : 32, all = (r->most_rows + size - 1) / size * ranks;
    for (int32_t i = (int32_t)threadIdx.x / 32 * blocks + block; i < all; i += blocks * warps) {
        int32_t rank = i % ranks, j = i / ranks * size, left = r->rows[rank] - j;
        struct run run = {rank, left < size ? left : size, 0};
        if (left <= 0)
            continue;
        run.row = (size_t)(l.shape.flat ? r->before[rank] : rank * l.shape.tokens) + (size_t)j;
        if (!await_run<FT>(l, turn, &run) || !take_routes(l, turn, args, &run) || !take_sources(l, turn, args, &run))
            return;
        take_arrays(l, turn, args, &run, stage);
    }
}

/* As many warps receive rows as there are stages; the table of first rows lies before those. */
template <bool FT>
__device__ inline void receive_block(const struct cuda_launch &l, const struct turn *turn,
                                     const struct dispatch_receive_args &args, unsigned char *shared, int block,
                                     int blocks)
{
    __shared__ struct receiving r;
    __shared__ uint64_t barriers[OPERATIONS_MAX_WARPS];
    int warp = threadIdx.x / 32;
    if (threadIdx.x == 0) {
        r.most_rows = 0;
        r.begin = (int32_t *)shared;
    }
    __syncthreads();
    if (!hear_all<FT>(l, turn, &r))
        return;
    if (warp >= l.plan.stages) {
        int rows_threads = 32 * l.plan.stages;
        if (block == 0)
            write_summary<FT>(l, turn, args, &r, (int)threadIdx.x - rows_threads, (int)blockDim.x - rows_threads);
        return;
    }
    struct bulk_stage stage;
    bulk_open(&stage, shared + l.plan.table_bytes + l.plan.batch_bytes + (size_t)warp * l.plan.stage_bytes,
              (uint32_t)l.plan.stage_bytes, &barriers[warp]);
    if (l.shape.expert_major)
        receive_rows<FT>(l, turn, args, &r, block, blocks, &stage);
    else
        receive_runs<FT>(l, turn, args, &r, block, blocks, &stage);
    bulk_close(&stage);
}

#endif
