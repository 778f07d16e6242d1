// SPDX-License-Identifier: Apache-2.0
/*
 * First half of combine: bring home what this rank's experts made of each row. Reduced: weighted and added up here, one
 * row per token. Exact: every expert's row. Rank-major: the caller has added up already. Blocks take rows in the order
 * in which they came: row 0 of every source, row 1 of every source, and so on.
 */
#ifndef CUDA_COMBINE_SEND_CUH
#define CUDA_COMBINE_SEND_CUH

#include "kernels/cuda/region.cuh"
#include "kernels/cuda/sum.cuh"

/* One row that was received, and where its experts' results lie. In shared memory, filled by one warp. */
struct returned_row {
    int32_t token; /* of its home rank */
    uint32_t good; /* what came with it can be used */
    struct sum_parts parts; /* the results, in k order */
    int32_t k[MUSTER_EP_MAX_TOPK]; /* of each part */
};

/* Expert-major: the caller's row for route (slot, index) of a source. */
__device__ __forceinline__ const unsigned char *
expert_row(const struct cuda_launch &l, const struct combine_send_args &send, int rank, int32_t slot, int32_t index)
{
    size_t row = (size_t)(l.own.slot_begin[slot * l.shape.ranks + rank] + index);
    return send.results.data + (size_t)slot * send.block_stride + row * send.results.stride;
}

/* Rank-major: the caller's row j for a source; in place if no tensor was given. */
__device__ __forceinline__ const unsigned char *rank_row(const struct cuda_launch &l, const struct turn *turn,
                                                         const struct combine_send_args &send, int rank, int32_t j)
{
    if (send.results.data)
        return send.results.data + (size_t)rank * send.block_stride + (size_t)j * send.results.stride;
    return region_at(turn, turn->rank, l.shape.results) + row_at(l.shape, rank, j) * l.shape.result_bytes;
}

/* The routes of a row as its source stored them; a lane is a route. They are checked before they are used (X9). */
__device__ inline void take_routes(const struct cuda_launch &l, const struct turn *turn,
                                   const struct combine_send_args &send, int rank, size_t row, struct returned_row *out)
{
    const struct exchange_shape &shape = l.shape;
    int lane = threadIdx.x & 31;
    size_t route = row * (size_t)shape.topk + (size_t)lane;
    bool has = lane < shape.topk;
    int32_t slot = has ? ((const volatile int32_t *)region_at(turn, turn->rank, shape.row_slot))[route] : -1;
    int32_t index = has ? ((const volatile int32_t *)region_at(turn, turn->rank, shape.row_index))[route] : 0;
    bool good = slot >= -1 && slot < shape.slots && index >= 0 && index < l.own.rows_from[rank];
    bool sent = good && slot >= 0;
    const unsigned char *from = sent ? expert_row(l, send, rank, slot, index) : NULL;
    unsigned routes = __ballot_sync(~0u, sent);
    bool aligned = __all_sync(~0u, copy_width(copy_bits(from)) == 16), all_good = __all_sync(~0u, good);
    if (sent) {
        int part = __popc(routes & ((1u << lane) - 1));
        out->parts.row[part] = from;
        out->parts.weight[part] = ((const volatile float *)region_at(turn, turn->rank, shape.row_weight))[route];
        out->k[part] = lane;
    }
    if (lane == 0) {
        out->parts.count = __popc(routes);
        out->parts.aligned = aligned;
        out->good = all_good;
    }
}

/* One warp finds out about row j of a rank. */
__device__ inline void find_row(const struct cuda_launch &l, const struct turn *turn,
                                const struct combine_send_args &send, int rank, int32_t j, struct returned_row *out)
{
    size_t row = row_at(l.shape, rank, j);
    if (l.shape.expert_major)
        take_routes(l, turn, send, rank, row, out);
    __syncwarp();
    if ((threadIdx.x & 31) != 0)
        return;
    out->token = ((const volatile int32_t *)region_at(turn, turn->rank, l.shape.row_token))[row];
    if (!l.shape.expert_major)
        out->good = true;
    if (out->good && out->token >= 0 && out->token < l.shape.tokens)
        return;
    out->good = false;
    turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_COMBINE, rank, turn->epoch, (uint32_t)out->token);
}

__device__ inline void return_row(const struct cuda_launch &l, const struct turn *turn,
                                  const struct combine_send_args &send, int rank, int32_t j,
                                  const struct returned_row *row)
{
    const struct exchange_shape &shape = l.shape;
    size_t bytes = shape.result_bytes;
    unsigned char *sum = region_at(turn, rank, shape.arrived) + row_at(shape, turn->rank, row->token) * bytes;
    unsigned char *home = region_at(turn, rank, shape.home) + (size_t)row->token * (size_t)shape.topk * bytes;
    if (!shape.expert_major)
        copy_row(sum, rank_row(l, turn, send, rank, j), bytes, threadIdx.x, blockDim.x);
    else if (!shape.exact)
        sum_row(&row->parts, shape.type, sum, bytes);
    else
        for (int i = 0; i < row->parts.count; i++)
            copy_row(home + (size_t)row->k[i] * bytes, row->parts.row[i], bytes, threadIdx.x, blockDim.x);
}

/*
 * Combine's lines (X4): this rank has consumed the dispatch. That is so when its combine begins: the kernel that laid
 * out the rows is over, and a caller that used rows in place has launched this one after. What the rows' sources stored
 * beside them is still read here, but a source that sent rows waits for their results before it sends the next.
 */
__device__ inline void raise_combine_lines(const struct cuda_launch &l, const struct turn *turn)
{
    for (int rank = threadIdx.x; rank < turn->ranks; rank += blockDim.x)
        if (turn_has(turn, rank))
            flag_raise(&line_at(turn, rank, l.shape.combine_line, turn->rank)->flag, turn->stamp);
}

/*
 * Credit to store at home (X4): every active rank's dispatch line of this pair has been read, and a rank raises it when
 * the combine of the pair before, which read what lay there, is over. The flag comes after the row: all threads have
 * stored before the barrier, and it is a release (X5).
 */
__device__ inline void send_rows_home(const struct cuda_launch &l, const struct turn *turn,
                                      const struct combine_send_args &send, int block, int blocks)
{
    __shared__ struct returned_row rows[2]; /* one is returned while the flag of the other is raised */
    const int32_t *count = l.own.rows_from;
    int ranks = turn->ranks, turnabout = 0;
    for (int64_t i = block; i < (int64_t)l.shape.tokens * ranks; i += blocks) {
        int rank = (int)(i % ranks);
        int32_t j = (int32_t)(i / ranks);
        if (j >= count[rank])
            continue;
        struct returned_row *row = &rows[turnabout ^= 1];
        if (threadIdx.x < 32)
            find_row(l, turn, send, rank, j, row);
        __syncthreads();
        if (!row->good)
            return;
        return_row(l, turn, send, rank, j, row);
        __syncthreads();
        uint64_t *flag = (uint64_t *)region_at(turn, rank, l.shape.arrived_flag);
        if (threadIdx.x == 0)
            flag_raise(flag + row_at(l.shape, turn->rank, row->token), turn->stamp);
    }
}

#endif
