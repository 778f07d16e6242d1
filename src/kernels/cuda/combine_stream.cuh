// SPDX-License-Identifier: Apache-2.0
/*
 * Combine of many tokens in the layouts whose rows the caller has added up already: rows go home through shared memory, a
 * warp for each, and at home a warp adds up a token. So few blocks fill the link, and nothing waits for a whole block.
 */
#ifndef CUDA_COMBINE_STREAM_CUH
#define CUDA_COMBINE_STREAM_CUH

#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/combine_receive.cuh"
#include "kernels/cuda/combine_send.cuh"
#include "kernels/cuda/cut.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/post.cuh"

/* One of the next rows of a warp, as a lane has found out: where it lies, where it goes, and the flag there. */
struct home_bound {
    const unsigned char *from; /* NULL: there is none */
    unsigned char *to;
    uint32_t flag; /* as it is posted */
    bool good; /* X9: what came with it can be used */
};

/* Row i of all: row 0 of every source, row 1 of every source, and so on. A lane for itself. */
__device__ inline struct home_bound find_home(const struct cuda_launch &l, const struct turn *turn,
                                              const struct combine_send_args &send, int32_t i, int32_t all)
{
    struct home_bound row = {NULL, NULL, ~0u, true};
    int32_t rank = i % turn->ranks, j = i / turn->ranks;
    if (i >= all || j >= l.own.rows_from[rank])
        return row;
    int32_t token = ((const volatile int32_t *)own_at(l, l.shape.row_token))[received_row(l, rank, j)];
    row.good = token >= 0 && token < l.shape.tokens;
    if (!row.good) {
        turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_COMBINE, rank, turn->epoch, (uint32_t)token);
        return row;
    }
    size_t place = row_at(l.shape, turn->rank, token);
    row.from = rank_row(l, send, rank, j);
    row.to = region_at(turn, rank, l.shape.arrived) + place * l.shape.return_bytes;
    row.flag = post_flag(rank, place);
    return row;
}

/* What lane `of` has found out. */
__device__ __forceinline__ struct home_bound home_of(const struct home_bound &row, int of)
{
    return {(const unsigned char *)__shfl_sync(~0u, (unsigned long long)row.from, of),
            (unsigned char *)__shfl_sync(~0u, (unsigned long long)row.to, of), __shfl_sync(~0u, row.flag, of), true};
}

/* One row on its way, by a warp; orders nothing. */
__device__ inline void stream_home(struct bulk_stage *stage, const struct home_bound &row, size_t bytes)
{
    int lane = threadIdx.x & 31;
    if (bulk_can(copy_bits(row.from)))
        bulk_move(stage, row.from, bytes, lane == 0 ? row.to : NULL);
    else
        copy_row(row.to, row.from, bytes, lane, 32);
}

/*
 * Each lane finds out about another of the warp's next rows, since that takes several loads, one after the other. A row's
 * flag is posted before the next row (X5): what one lane had the engine store, all know to be stored after the warp's barrier.
 * Credit as in send_rows_home().
 */
__device__ inline void stream_rows_home(const struct cuda_launch &l, const struct turn *turn,
                                        const struct combine_send_args &send, struct bulk_stage *stage,
                                        struct post_office *office, int32_t warp, int32_t warps)
{
    int32_t lane = (int32_t)threadIdx.x & 31, all = l.shape.tokens * turn->ranks; /* at most 2^23 */
    uint32_t posted = 0;
    for (int32_t first = warp; first < all; first += 32 * warps) {
        struct home_bound mine = find_home(l, turn, send, first + lane * warps, all);
        if (!__all_sync(~0u, mine.good))
            break;
        for (unsigned left = __ballot_sync(~0u, mine.from != NULL); left; left &= left - 1) {
            struct home_bound row = home_of(mine, __ffs(left) - 1);
            stream_home(stage, row, l.shape.return_bytes);
            bulk_stored();
            post_flags(office, &posted, lane == 0 ? row.flag : ~0u);
        }
    }
    bulk_close(stage);
    post_close(office);
}

/* As many warps send as there are stages; the last of the block is the postman. */
__device__ inline void stream_send_block(const struct cuda_launch &l, const struct turn *turn,
                                         const struct combine_send_args &send, unsigned char *shared, int block,
                                         int blocks)
{
    __shared__ uint64_t barriers[OPERATIONS_MAX_WARPS];
    __shared__ struct post_office office;
    int32_t warp = (int32_t)threadIdx.x / 32, stage_bytes = l.plan.stage_bytes;
    struct bulk_stage stage;
    post_open(&office, l.plan.stages);
    __syncthreads();
    if (warp == (int32_t)blockDim.x / 32 - 1)
        post_deliver(turn, &office, l.shape.arrived_flag);
    if (warp >= l.plan.stages)
        return;
    bulk_open(&stage, shared + warp * stage_bytes, (uint32_t)stage_bytes, &barriers[warp]);
    stream_rows_home(l, turn, send, &stage, &office, warp * blocks + block, l.plan.stages * blocks);
}

/*
 * A warp's unit of work is a token, but for the last ones, which several warps share: else the last token to come would take
 * as long as one warp needs for all of it.
 */
__device__ __forceinline__ int32_t stream_unit_token(const struct cuda_plan &plan, int32_t unit)
{
    if (unit < plan.receive_alone)
        return unit;
    return plan.receive_alone + cut_row(plan.receive_cut, unit - plan.receive_alone);
}

/* Of the token's pieces. */
__device__ __forceinline__ struct cut_share stream_unit_share(const struct cuda_launch &l, int32_t unit)
{
    int32_t pieces = (int32_t)(l.shape.result_bytes / SUM_PIECE);
    if (unit < l.plan.receive_alone)
        return {0, pieces};
    return cut_share(l.plan.receive_cut, pieces, unit - l.plan.receive_alone);
}

/* By a warp: waits for a token that these ranks owe something, and adds up its share of it. False: the step is void. */
template <typename Facts>
__device__ inline bool stream_share_home(const struct cuda_launch &l, const struct turn *turn,
                                         const struct combine_receive_args &args, int32_t unit,
                                         const muster_mask &ranks, struct owed *owed)
{
    int32_t token = stream_unit_token(l.plan, unit);
    struct cut_share share = stream_unit_share(l, unit);
    find_ranks(l, token, ranks, owed);
    __syncwarp(); /* each lane may see all of it */
    if (!await_owed<Facts::FT, true>(l, turn, owed, token))
        return false;
    sum_row_by_warp<Facts::TYPE>(&owed->parts, args.out + (size_t)token * l.shape.result_bytes,
                                 (size_t)share.begin * SUM_PIECE, (size_t)share.end * SUM_PIECE);
    __syncwarp();
    return true;
}

/* What a warp knows of its next units, which are tokens or parts of them, and of the one at hand. In shared memory. */
struct awaited {
    muster_mask ranks[32];
    struct owed owed;
};

/* Each lane reads for another of the warp's next units what is owed to its token, as in stream_rows_home(). */
__device__ __forceinline__ void look_ahead(const struct cuda_launch &l, int32_t first, int32_t step, int32_t units,
                                           muster_mask *ranks)
{
    int32_t lane = (int32_t)threadIdx.x & 31, unit = first + lane * step;
    if (unit < units)
        ranks[lane] = ranks_of(l, stream_unit_token(l.plan, unit));
    __syncwarp();
}

template <typename Facts>
__device__ inline void stream_receive_block(const struct cuda_launch &l, const struct turn *turn,
                                            const struct combine_receive_args &args, int32_t tokens,
                                            unsigned char *shared, int block, int blocks)
{
    int32_t warp = (int32_t)threadIdx.x / 32, step = (int32_t)blockDim.x / 32 * blocks;
    int32_t alone = l.plan.receive_alone, units = alone + ((tokens - alone) << l.plan.receive_cut.log2_parts);
    struct awaited *next = (struct awaited *)shared + warp;
    for (int32_t n = 0, unit = warp * blocks + block; unit < units; n++, unit += step) {
        if (n % 32 == 0)
            look_ahead(l, unit, step, units, next->ranks);
        if (!stream_share_home<Facts>(l, turn, args, unit, next->ranks[n % 32], &next->owed))
            return;
    }
}

#endif
