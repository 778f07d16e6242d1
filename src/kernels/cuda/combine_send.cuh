// SPDX-License-Identifier: Apache-2.0
/*
 * First half of combine: bring home what this rank's experts made of each row. Reduced: weighted and added up here, one
 * row per token. Exact: every expert's row. Rank-major and flat: the caller has added up already. Blocks take rows in the
 * order in which they came: row 0 of every source, row 1 of every source, and so on.
 */
#ifndef CUDA_COMBINE_SEND_CUH
#define CUDA_COMBINE_SEND_CUH

#include "kernels/cuda/quantise_return.cuh"
#include "kernels/cuda/region.cuh"
#include "kernels/cuda/sum.cuh"

/* One row that was received, and where its experts' results lie. In shared memory, filled by one warp. */
enum { RETURN_BATCH = 3, RETURN_ROWS = 2 * RETURN_BATCH };

struct returned_row {
    uint32_t there; /* it is a row that came */
    int32_t token; /* of its home rank */
    uint32_t good; /* what came with it can be used */
    struct sum_parts parts; /* the results, in k order */
    int32_t k[MUSTER_EP_MAX_TOPK]; /* of each part */
};

/* Row j of a source, where dispatch put it. */
__device__ __forceinline__ size_t received_row(const struct cuda_launch &l, int rank, int32_t j)
{
    return l.shape.flat ? (size_t)(l.own.rows_before[rank] + j) : row_at(l.shape, rank, j);
}

/* Rank-major and flat: the caller's row j for a source; in place if no tensor was given. */
__device__ __forceinline__ const unsigned char *rank_row(const struct cuda_launch &l, const struct turn *turn,
                                                         const struct combine_send_args &send, int rank, int32_t j)
{
    if (!send.results.data)
        return region_at(turn, turn->rank, l.shape.results) + received_row(l, rank, j) * l.shape.result_bytes;
    if (l.shape.flat)
        return send.results.data + received_row(l, rank, j) * send.results.stride;
    return send.results.data + (size_t)rank * send.block_stride + (size_t)j * send.results.stride;
}

/* What lies beside a row, as it is: a lane is a route. The index is dispatch's: of the output's row in the slot. */
struct stored_row {
    int32_t token, slot, index;
    float weight;
};

/* All loads are under way before the first is used. */
__device__ inline struct stored_row load_row(const struct cuda_launch &l, const struct turn *turn, size_t row)
{
    const struct exchange_shape &shape = l.shape;
    int lane = threadIdx.x & 31;
    size_t route = row * (size_t)shape.topk + (size_t)lane;
    struct stored_row in = {0, -1, 0, 0.0f};
    in.token = ((const volatile int32_t *)region_at(turn, turn->rank, shape.row_token))[row];
    if (!shape.expert_major || lane >= shape.topk)
        return in;
    in.slot = ((const volatile int32_t *)region_at(turn, turn->rank, shape.row_slot))[route];
    in.index = ((const volatile int32_t *)region_at(turn, turn->rank, shape.row_index))[route];
    in.weight = ((const volatile float *)region_at(turn, turn->rank, shape.row_weight))[route];
    return in;
}

/* Where the caller's rows for it are: one for each route, in k order. */
__device__ inline void find_parts(const struct combine_send_args &send, const struct stored_row &in,
                                  struct returned_row *out)
{
    int lane = threadIdx.x & 31;
    bool sent = in.slot >= 0;
    const unsigned char *from = NULL;
    if (sent)
        from = send.results.data + (size_t)in.slot * send.block_stride + (size_t)in.index * send.results.stride;
    unsigned routes = __ballot_sync(~0u, sent);
    bool aligned = __all_sync(~0u, copy_width(copy_bits(from)) == 16);
    if (sent) {
        int part = __popc(routes & ((1u << lane) - 1));
        out->parts.row[part] = from;
        out->parts.weight[part] = in.weight;
        out->k[part] = lane;
    }
    if (lane == 0) {
        out->parts.count = __popc(routes);
        out->parts.aligned = aligned;
    }
}

/*
 * One warp finds out about row j of a rank, if it is there, which is known as late as what lies beside it. That is checked
 * before it is used (X9).
 */
__device__ inline void find_row(const struct cuda_launch &l, const struct turn *turn,
                                const struct combine_send_args &send, int rank, int32_t j, struct returned_row *out)
{
    struct stored_row in = load_row(l, turn, received_row(l, rank, j));
    bool there = j < l.own.rows_from[rank];
    if ((threadIdx.x & 31) == 0)
        out->there = there;
    if (!there)
        return;
    bool good = in.token >= 0 && in.token < l.shape.tokens && in.slot >= -1 && in.slot < l.shape.slots;
    good = __all_sync(~0u, good && in.index >= 0 && in.index < l.shape.ranks * l.shape.tokens);
    if (good && l.shape.expert_major)
        find_parts(send, in, out);
    if ((threadIdx.x & 31) != 0)
        return;
    out->token = in.token;
    out->good = good;
    if (!good)
        turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_COMBINE, rank, turn->epoch, (uint32_t)in.token);
}

/* QUANTISED: rows go home in codes (quantise_return). A row of the caller's as it is, or in codes. */
template <bool QUANTISED>
__device__ __forceinline__ void return_one(const struct exchange_shape &shape, const unsigned char *from,
                                           unsigned char *to)
{
    if (QUANTISED)
        return_copy(shape, from, to);
    else
        copy_row(to, from, shape.result_bytes, threadIdx.x, blockDim.x);
}

/* A sum of rows, rounded to their type or to codes. */
template <bool QUANTISED>
__device__ __forceinline__ void return_parts(const struct exchange_shape &shape, const struct sum_parts *parts,
                                             unsigned char *to)
{
    if (QUANTISED)
        return_sum(shape, parts, to);
    else
        sum_row(parts, shape.type, to, shape.result_bytes);
}

template <bool QUANTISED>
__device__ inline void return_row(const struct cuda_launch &l, const struct turn *turn,
                                  const struct combine_send_args &send, int rank, int32_t j,
                                  const struct returned_row *row)
{
    const struct exchange_shape &shape = l.shape;
    size_t bytes = shape.return_bytes;
    unsigned char *sum = region_at(turn, rank, shape.arrived) + row_at(shape, turn->rank, row->token) * bytes;
    unsigned char *home = region_at(turn, rank, shape.home) + (size_t)row->token * (size_t)shape.topk * bytes;
    if (!shape.expert_major)
        return_one<QUANTISED>(shape, rank_row(l, turn, send, rank, j), sum);
    else if (!shape.exact)
        return_parts<QUANTISED>(shape, &row->parts, sum);
    else
        for (int i = 0; i < row->parts.count; i++)
            return_one<QUANTISED>(shape, row->parts.row[i], home + (size_t)row->k[i] * bytes);
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
 * Returns some of the rows that were found out about, row i first and then every `blocks`-th, and raises their flags: one
 * fence for all of them, while the other warps go on. False: one of them cannot be used.
 */
template <bool QUANTISED>
__device__ inline bool return_batch(const struct cuda_launch &l, const struct turn *turn,
                                    const struct combine_send_args &send, int32_t i, int32_t blocks,
                                    const struct returned_row *rows)
{
    for (int n = 0; n < RETURN_BATCH; n++) {
        int32_t row = i + n * blocks;
        if (rows[n].there && !rows[n].good)
            return false;
        if (rows[n].there)
            return_row<QUANTISED>(l, turn, send, row % turn->ranks, row / turn->ranks, &rows[n]);
    }
    __syncthreads();
    int n = (int)threadIdx.x;
    if (n >= RETURN_BATCH || !rows[n].there)
        return true;
    uint64_t *flag = (uint64_t *)region_at(turn, (i + n * blocks) % turn->ranks, l.shape.arrived_flag);
    flag_raise(flag + row_at(l.shape, turn->rank, rows[n].token), turn->stamp);
    return true;
}

/*
 * Credit to store at home (X4): every active rank's dispatch line of this pair has been read, and a rank raises it when
 * the combine of the pair before, which read what lay there, is over. The flag comes after the row: all threads have
 * stored before the barrier, and it is a release (X5).
 *
 * What is known of a row takes several loads, one after the other, to find out. So each warp finds out about another of
 * the block's next rows, all at the same time, before the block returns them one by one.
 */
template <bool QUANTISED>
__device__ inline void send_rows_home(const struct cuda_launch &l, const struct turn *turn,
                                      const struct combine_send_args &send, int block, int blocks)
{
    __shared__ struct returned_row rows[RETURN_ROWS];
    int32_t ranks = turn->ranks, all = l.shape.tokens * ranks; /* at most 2^23: row 0 of every rank, row 1, ... */
    int32_t warp = (int32_t)threadIdx.x / 32, warps = (int32_t)blockDim.x / 32;
    int32_t ahead = warps < RETURN_ROWS ? RETURN_BATCH : RETURN_ROWS; /* a block has four warps or more */
    for (int32_t first = block; first < all; first += ahead * blocks) {
        int32_t mine = first + warp * blocks;
        __syncthreads(); /* the rows before are returned */
        if (warp < ahead && mine < all)
            find_row(l, turn, send, mine % ranks, mine / ranks, &rows[warp]);
        else if (warp < ahead)
            rows[warp].there = 0;
        __syncthreads();
        for (int32_t n = 0; n < ahead; n += RETURN_BATCH)
            if (!return_batch<QUANTISED>(l, turn, send, first + n * blocks, blocks, &rows[n]))
                return;
    }
}

#endif
