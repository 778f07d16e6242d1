// SPDX-License-Identifier: Apache-2.0
/*
 * Second half of dispatch: wait until every active rank has told how many rows it sends, then for each row, and lay out
 * what came. Warps take rows in the order in which they are sent (row 0 of every source, row 1 of every source, ...), so they
 * wait for what is due.
 */
#ifndef CUDA_DISPATCH_RECEIVE_CUH
#define CUDA_DISPATCH_RECEIVE_CUH

#include "kernels/cuda/dispatch_facts.cuh"
#include "kernels/cuda/dispatch_take_words.cuh"

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
    const uint64_t *flags = (const uint64_t *)own_at(l, l.shape.row_flag) + run->row;
    bool come =
        wait_flags<FT, true>(l, turn,
                             {lane < run->count ? flags + lane : NULL, turn->stamp, run->rank, MUSTER_PHASE_DISPATCH});
    bulk_see();
    return come;
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
    auto slots = (const volatile int32_t *)own_at(l, l.shape.row_slot) + first;
    auto weights = (const volatile float *)own_at(l, l.shape.row_weight) + first;
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
        token = ((const volatile int32_t *)own_at(l, l.shape.row_token))[run->row + lane];
    if (!accept_ids(l, turn, run->rank, token >= 0 && token < l.shape.tokens))
        return false;
    if (args.source && lane < run->count)
        write_source(args.source, run->row + lane, run->rank, token);
    return true;
}

__device__ inline void take_arrays(const struct cuda_launch &l, const struct dispatch_receive_args &args,
                                   const struct run *run, struct bulk_stage *stage)
{
    int lane = threadIdx.x & 31;
    for (int a = 0; a < l.shape.arrays; a++) {
        size_t at = run->row * l.shape.array[a].row_bytes, bytes = (size_t)run->count * l.shape.array[a].row_bytes;
        const unsigned char *from = own_at(l, l.shape.array[a].offset) + at;
        if (!args.output[a])
            continue;
        if (worth_bulk(args.output[a] + at, bytes) && bulk_can(copy_bits(from)))
            bulk_move(stage, from, bytes, lane == 0 ? args.output[a] + at : NULL);
        else
            copy_row(args.output[a] + at, from, bytes, lane, 32);
    }
}

/*
 * In the order of receive_rows(). Rows of a run are few while there are warps without any; and where rows are still sent
 * meanwhile, since whoever copies a run waits for its last row.
 */
template <bool FT>
__device__ inline void receive_runs(const struct cuda_launch &l, const struct turn *turn,
                                    const struct dispatch_receive_args &args, const struct receiving *r, int block,
                                    int blocks, struct bulk_stage *stage)
{
    int32_t warps = l.plan.stages, ranks = turn->ranks, turns = l.plan.streams && !l.plan.shares ? 4 : 1;
    int32_t share = r->most_rows * ranks / (blocks * warps * turns);
    int32_t size = share < 1 ? 1 : share < 32 ? share : 32, all = (r->most_rows + size - 1) / size * ranks;
    for (int32_t i = (int32_t)threadIdx.x / 32 * blocks + block; i < all; i += blocks * warps) {
        int32_t rank = i % ranks, j = i / ranks * size, left = r->rows[rank] - j;
        struct run run = {rank, left < size ? left : size, 0};
        if (left <= 0)
            continue;
        run.row = (size_t)(l.shape.flat ? r->before[rank] : rank * l.shape.tokens) + (size_t)j;
        if (!await_run<FT>(l, turn, &run) || !take_routes(l, turn, args, &run) || !take_sources(l, turn, args, &run))
            return;
        take_arrays(l, args, &run, stage);
    }
}

/* As many warps receive rows as there are stages; the table of first rows lies before those. */
template <typename Facts>
__device__ inline void receive_block(const struct cuda_launch &l, const struct turn *turn,
                                     const struct dispatch_receive_args &args, unsigned char *shared, int block,
                                     int blocks)
{
    constexpr bool FT = Facts::FT, WORDS = Facts::KIND == DISPATCH_WORDS;
    __shared__ struct receiving r;
    __shared__ uint64_t barriers[OPERATIONS_MAX_WARPS];
    int warp = threadIdx.x / 32, rows_threads = 32 * l.plan.stages;
    int beside = (int)threadIdx.x - rows_threads; /* of the threads that do not receive rows, if not negative */
    bool come = false;
    uint64_t value[6];
    if (threadIdx.x == 0) {
        r.most_rows = 0;
        r.end_in_words = 0;
        r.heard = 0;
        r.begin = (int32_t *)shared;
    }
    __syncthreads();
    if (WORDS && beside < 0)
        come = words_unit_expect(l, turn, words_unit_at(l, block), &r.heard, blockDim.x / 32 - (uint32_t)l.plan.stages,
                                 value);
    if (!hear_all<Facts>(l, turn, &r, WORDS ? beside : (int)threadIdx.x, (int)blockDim.x - (WORDS ? rows_threads : 0)))
        return;
    if (beside >= 0) {
        if (block == 0)
            write_summary<Facts>(l, turn, args, &r, beside, (int)blockDim.x - rows_threads);
        return;
    }
    struct bulk_stage stage;
    bulk_open(&stage, shared + l.plan.table_bytes + l.plan.batch_bytes + (size_t)warp * l.plan.stage_bytes,
              (uint32_t)l.plan.stage_bytes, &barriers[warp]);
    bool good = true;
    if (WORDS)
        good = receive_in_words<FT>(l, turn, args, &r, block, blocks, come, value);
    else if (Facts::EXPERT_MAJOR && r.end_in_words > 0)
        good = receive_in_words_too<FT>(l, turn, args, &r, block, blocks);
    if (good && Facts::EXPERT_MAJOR)
        receive_rows<Facts>(l, turn, args, &r, block, blocks, &stage);
    else if (good)
        receive_runs<FT>(l, turn, args, &r, block, blocks, &stage);
    bulk_close(&stage);
}

#endif
