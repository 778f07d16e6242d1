// SPDX-License-Identifier: Apache-2.0
/*
 * First half of combine: bring home what this rank's experts made of each row. Reduced: weighted and added up here, one
 * row per token. Exact: every expert's row. Rank-major and flat: the caller has added up already. Blocks take rows in the
 * order in which they came: row 0 of every source, row 1 of every source, and so on. Results of a row that came in words
 * go home in words.
 */
#ifndef CUDA_COMBINE_SEND_CUH
#define CUDA_COMBINE_SEND_CUH

#include "kernels/cuda/combine_facts.cuh"
#include "kernels/cuda/divide.cuh"
#include "kernels/cuda/quantise_return.cuh"
#include "kernels/cuda/region.cuh"
#include "kernels/cuda/sum.cuh"
#include "kernels/cuda/words.cuh"

/* Rows that a block finds out about at a time, and that it returns under one fence, at most. */
enum { RETURN_ROWS = 6, RETURN_BATCH = 3 };

/* One row that was received, and where its experts' results lie. In shared memory, filled by one warp. */
struct returned_row {
    int32_t rank; /* that it is from */
    int32_t token; /* of that rank */
    uint32_t there; /* it is a row that came */
    uint32_t words; /* and it came in words, as its results go home */
    uint32_t good; /* what came with it can be used */
    struct sum_parts parts; /* the results, in k order */
    int32_t k[MUSTER_EP_MAX_TOPK]; /* of each part */
};

/* What a block knows of its next rows, and of how many there are. In shared memory. */
struct returning {
    int32_t most_rows, most_in_words; /* that came from any rank, in either way */
    struct returned_row row[RETURN_ROWS];
};

/* Row j of a source, where dispatch put it. */
__device__ __forceinline__ size_t received_row(const struct cuda_launch &l, int rank, int32_t j)
{
    return l.shape.flat ? (size_t)(l.own.rows_before[rank] + j) : row_at(l.shape, rank, j);
}

/* Rank-major and flat: the caller's row j for a source; in place if no tensor was given. */
__device__ __forceinline__ const unsigned char *rank_row(const struct cuda_launch &l,
                                                         const struct combine_send_args &send, int rank, int32_t j)
{
    if (!send.results.data)
        return own_at(l, l.shape.results) + received_row(l, rank, j) * l.shape.result_bytes;
    if (l.shape.flat)
        return send.results.data + received_row(l, rank, j) * send.results.stride;
    return send.results.data + (size_t)rank * send.block_stride + (size_t)j * send.results.stride;
}

/* What lies beside a row, as it is: a lane is a route. The index is dispatch's: of the output's row in the slot. */
struct stored_row {
    int32_t token, slot, index;
    float weight;
};

/* All loads are under way before the first is used. Needs no turn: what lies in this rank's region, it knows. */
template <typename Facts> __device__ inline struct stored_row load_row(const struct cuda_launch &l, size_t row)
{
    const struct exchange_shape &shape = l.shape;
    int lane = threadIdx.x & 31;
    size_t route = row * (size_t)shape.topk + (size_t)lane;
    struct stored_row in = {0, -1, 0, 0.0f};
    in.token = ((const volatile int32_t *)(l.own.base + shape.row_token))[row];
    if ((!Facts::SUMS && !shape.expert_major) || lane >= shape.topk)
        return in;
    in.slot = ((const volatile int32_t *)(l.own.base + shape.row_slot))[route];
    in.index = ((const volatile int32_t *)(l.own.base + shape.row_index))[route];
    in.weight = ((const volatile float *)(l.own.base + shape.row_weight))[route];
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
 * One warp finds out about row j of a rank, if it is there, which is known as late as what lies beside it. Whether that can
 * be used is told here, and found to be an error where it is to be (X9).
 */
template <typename Facts>
__device__ inline void find_row(const struct cuda_launch &l, const struct combine_send_args &send, int rank, int32_t j,
                                struct returned_row *out)
{
    struct stored_row in = load_row<Facts>(l, Facts::SUMS ? row_at(l.shape, rank, j) : received_row(l, rank, j));
    bool there = j < l.own.rows_from[rank], words = l.own.words_from[rank] != 0;
    int32_t tokens = words ? l.shape.word_tokens : l.shape.tokens;
    bool good = in.token >= 0 && in.token < tokens && in.slot >= -1 && in.slot < l.shape.slots;
    good = __all_sync(~0u, good && in.index >= 0 && in.index < l.shape.ranks * l.shape.tokens);
    if (there && good && (Facts::SUMS || l.shape.expert_major))
        find_parts(send, in, out);
    if ((threadIdx.x & 31) != 0)
        return;
    out->rank = rank;
    out->token = in.token;
    out->there = there;
    out->words = words;
    out->good = good;
}

/* A warp for each of a block's next rows: of units `first`, `first` + `blocks` and so on, 2^log2_parts of which are one. */
template <typename Facts>
__device__ inline void find_rows(const struct cuda_launch &l, const struct combine_send_args &send, int32_t first,
                                 int32_t blocks, int32_t log2_parts, int32_t warp, struct returning *r)
{
    int32_t i = (first + warp * blocks) >> log2_parts;
    struct quotient at = divide(i, l.by.ranks);
    if (warp >= RETURN_ROWS)
        return;
    if (i < l.shape.tokens * l.shape.ranks) /* at most 2^23 */
        find_row<Facts>(l, send, at.rest, at.whole, &r->row[warp]);
    else if ((threadIdx.x & 31) == 0)
        r->row[warp].there = 0;
}

/* How many rows came from any rank in each of the two ways. One warp. */
__device__ inline void find_most(const struct cuda_launch &l, struct returning *r)
{
    int32_t rows = 0, words = 0;
#pragma unroll 1
    for (int rank = threadIdx.x & 31; rank < l.shape.ranks; rank += 32) {
        int32_t from = l.own.rows_from[rank];
        bool in_words = l.own.words_from[rank];
        rows = !in_words && from > rows ? from : rows;
        words = in_words && from > words ? from : words;
    }
    rows = __reduce_max_sync(~0u, rows);
    words = __reduce_max_sync(~0u, words);
    if ((threadIdx.x & 31) == 0) {
        r->most_rows = rows;
        r->most_in_words = words;
    }
}

/* Rows that a block of so many warps finds out about at a time; it has four warps or more. */
__device__ __forceinline__ int32_t rows_ahead(int32_t warps)
{
    return warps < RETURN_ROWS ? RETURN_BATCH : RETURN_ROWS;
}

/* While the turn is entered: see turn_enter(). */
template <typename Facts>
__device__ inline void returning_prepare(const struct cuda_launch &l, const struct combine_send_args &send, int block,
                                         int thread, int threads, struct returning *r)
{
    int32_t warp = thread / 32, warps = threads / 32;
    find_rows<Facts>(l, send, block, l.plan.send_blocks, l.plan.send_cut.log2_parts, warp, r);
    if (warp == warps - 1)
        find_most(l, r);
}

/* X9. By all threads of a block. Returns false. */
__device__ inline bool refuse_row(const struct cuda_launch &l, const struct turn *turn, const struct returned_row *row)
{
    if (threadIdx.x == 0)
        turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_COMBINE, row->rank, turn->epoch, (uint32_t)row->token);
    return false;
}

/* A row of the caller's as it is, or in codes. */
template <typename Facts>
__device__ __forceinline__ void return_one(const struct exchange_shape &shape, const unsigned char *from,
                                           unsigned char *to)
{
    if (Facts::QUANTISED)
        return_copy<Facts::TYPE>(shape, from, to);
    else
        copy_row(to, from, shape.result_bytes, threadIdx.x, blockDim.x);
}

/* A sum of rows, rounded to their type or to codes. */
template <typename Facts>
__device__ __forceinline__ void return_parts(const struct exchange_shape &shape, const struct sum_parts *parts,
                                             unsigned char *to)
{
    if (Facts::QUANTISED)
        return_sum<Facts::TYPE>(shape, parts, to);
    else
        sum_row<Facts::TYPE>(parts, to, shape.result_bytes);
}

/* Every expert's row as it is, behind one another at home: pieces of several are under way together. */
__device__ __forceinline__ void return_each(const struct returned_row *row, unsigned char *home, size_t bytes)
{
    int count = row->parts.count;
    for (size_t at = (size_t)threadIdx.x * SUM_PIECE; at < bytes; at += (size_t)blockDim.x * SUM_PIECE) {
#pragma unroll 1
        for (int begin = 0; begin < count; begin += SUM_FLIGHT) {
            uint4 piece[SUM_FLIGHT];
#pragma unroll
            for (int i = 0; i < SUM_FLIGHT; i++)
                if (begin + i < count)
                    piece[i] = stream_load(row->parts.row[begin + i] + at);
#pragma unroll
            for (int i = 0; i < SUM_FLIGHT; i++)
                if (begin + i < count)
                    stream_store(home + (size_t)row->k[begin + i] * bytes + at, piece[i]);
        }
    }
}

template <typename Facts>
__device__ inline void return_row(const struct cuda_launch &l, const struct turn *turn,
                                  const struct combine_send_args &send, int rank, int32_t j,
                                  const struct returned_row *row)
{
    const struct exchange_shape &shape = l.shape;
    size_t bytes = shape.return_bytes;
    unsigned char *sum = region_at(turn, rank, shape.arrived) + row_at(shape, turn->rank, row->token) * bytes;
    unsigned char *home = region_at(turn, rank, shape.home) + (size_t)row->token * (size_t)shape.topk * bytes;
    if (Facts::SUMS)
        return_parts<Facts>(shape, &row->parts, sum);
    else if (!shape.expert_major)
        return_one<Facts>(shape, rank_row(l, send, rank, j), sum);
    else if (!Facts::QUANTISED && row->parts.aligned)
        return_each(row, home, bytes);
    else
        for (int i = 0; i < row->parts.count; i++)
            return_one<Facts>(shape, row->parts.row[i], home + (size_t)row->k[i] * bytes);
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
            flag_raise(&line_at(region_at(turn, rank, l.shape.combine_line), turn->rank)->flag, turn->stamp);
}

/* The block's next rows, when those before are returned. By all threads. */
template <typename Facts>
__device__ inline void find_next_rows(const struct cuda_launch &l, const struct combine_send_args &send, int32_t first,
                                      int32_t blocks, int32_t log2_parts, struct returning *r)
{
    __syncthreads();
    find_rows<Facts>(l, send, first, blocks, log2_parts, (int32_t)threadIdx.x / 32, r);
    __syncthreads();
}

/* ------------------------------------------------------------------------------------------------------ row by row */

/*
 * Returns `count` of the rows that were found out about, row i first and then every `blocks`-th, and raises their flags: one
 * fence for all of them, while the other warps go on. False: one of them cannot be used.
 */
template <typename Facts>
__device__ inline bool return_batch(const struct cuda_launch &l, const struct turn *turn,
                                    const struct combine_send_args &send, int32_t i, int32_t blocks,
                                    const struct returned_row *rows, int32_t count)
{
    for (int32_t n = 0; n < count; n++) {
        bool returns = rows[n].there && !rows[n].words;
        if (returns && !rows[n].good)
            return refuse_row(l, turn, &rows[n]);
        if (returns)
            return_row<Facts>(l, turn, send, rows[n].rank, divide_whole(i + n * blocks, l.by.ranks), &rows[n]);
    }
    __syncthreads();
    int32_t n = (int32_t)threadIdx.x;
    if (n >= count || !rows[n].there || rows[n].words)
        return true;
    uint64_t *flag = (uint64_t *)region_at(turn, rows[n].rank, l.shape.arrived_flag);
    flag_raise(flag + row_at(l.shape, turn->rank, rows[n].token), turn->stamp);
    return true;
}

/* A block that has few rows returns fewer at a time, so that home ranks can begin earlier. */
template <typename Facts>
__device__ inline void return_rows(const struct cuda_launch &l, const struct turn *turn,
                                   const struct combine_send_args &send, int block, int blocks, bool prepared,
                                   struct returning *r)
{
    int32_t ahead = rows_ahead((int32_t)blockDim.x / 32 - 1), all = r->most_rows * turn->ranks;
    int32_t batch = all <= RETURN_ROWS * blocks ? RETURN_BATCH - 1 : RETURN_BATCH;
    for (int32_t first = block; first < all; first += ahead * blocks) {
        if (first != block || !prepared)
            find_next_rows<Facts>(l, send, first, blocks, 0, r);
        for (int32_t n = 0, count; n < ahead; n += count) {
            count = ahead - n < batch ? ahead - n : batch;
            if (!return_batch<Facts>(l, turn, send, first + n * blocks, blocks, &r->row[n], count))
                return;
        }
    }
}

/* --------------------------------------------------------------------------------------------------------- in words */

/* A share of the sum of a row's results. A warp takes 32 pieces at a time. */
template <enum exchange_type TYPE>
__device__ inline void return_sum_in_words(const struct cuda_launch &l, const struct turn *turn,
                                           const struct returned_row *row, const struct cut_share &share)
{
    size_t to = (size_t)(turn->rank * l.shape.word_tokens + row->token);
    struct exchange_word *home = words_result(l.shape, region_at(turn, row->rank, 0), to);
    for (int32_t n = share.begin + (int32_t)threadIdx.x; n - (int32_t)(threadIdx.x & 31) < share.end;
         n += (int32_t)blockDim.x) {
        uint4 piece = make_uint4(0, 0, 0, 0);
        if (n < share.end)
            piece = row->parts.aligned ? sum_pieces<TYPE, true>(&row->parts, (size_t)n * SUM_PIECE)
                                       : sum_pieces<TYPE, false>(&row->parts, (size_t)n * SUM_PIECE);
        words_publish(home, n, share.end, piece, turn->stamp);
    }
}

/* A share of each of them. */
__device__ inline void return_each_in_words(const struct cuda_launch &l, const struct turn *turn,
                                            const struct returned_row *row, const struct cut_share &share)
{
    unsigned char *region = region_at(turn, row->rank, 0);
    int32_t chunks = (share.end - share.begin + 31) / 32;
    for (int32_t i = (int32_t)threadIdx.x / 32; i < row->parts.count * chunks; i += (int32_t)blockDim.x / 32) {
        int32_t p = i / chunks, n = share.begin + i % chunks * 32 + (int32_t)(threadIdx.x & 31);
        size_t to = (size_t)(row->token * l.shape.topk + row->k[p]);
        uint4 piece = make_uint4(0, 0, 0, 0);
        if (n < share.end)
            piece = row->parts.aligned ? sum_load<true>(row->parts.row[p] + (size_t)n * SUM_PIECE)
                                       : sum_load<false>(row->parts.row[p] + (size_t)n * SUM_PIECE);
        words_publish(words_result(l.shape, region, to), n, share.end, piece, turn->stamp);
    }
}

/* Not inlined: that would take registers from those who return rows of many tokens. */
template <typename Facts>
static __device__ __noinline__ void return_words(const struct cuda_launch &l, const struct turn *turn,
                                                 const struct returned_row *row, const struct cut_share &share)
{
    if (Facts::SUMS)
        return_sum_in_words<Facts::TYPE>(l, turn, row, share);
    else
        return_each_in_words(l, turn, row, share);
}

/*
 * Those that were prepared are the first. A row of which this block returns nothing is not judged: its source does not wait
 * for this block, and may store the next row there. False: what was found out about is no longer that, or there is an error.
 */
template <typename Facts>
__device__ inline bool return_in_words(const struct cuda_launch &l, const struct turn *turn,
                                       const struct combine_send_args &send, int block, int blocks, struct returning *r)
{
    int32_t ahead = rows_ahead((int32_t)blockDim.x / 32 - 1), log2_parts = l.plan.send_cut.log2_parts;
    int32_t all = r->most_in_words * turn->ranks << log2_parts, pieces = (int32_t)(l.shape.result_bytes / SUM_PIECE);
    for (int32_t first = block; first < all; first += ahead * blocks) {
        if (first != block)
            find_next_rows<Facts>(l, send, first, blocks, log2_parts, r);
        for (int32_t n = 0; n < ahead; n++) {
            const struct returned_row *row = &r->row[n];
            struct cut_share share = cut_share(l.plan.send_cut, pieces, first + n * blocks);
            if (!row->there || !row->words || share.begin == share.end)
                continue;
            if (!row->good)
                return refuse_row(l, turn, row);
            return_words<Facts>(l, turn, row, share);
        }
    }
    return all <= ahead * blocks;
}

/*
 * Credit to store at home (X4): every active rank's dispatch line of this pair has been read, and a rank raises it when
 * the combine of the pair before, which read what lay there, is over. A flag comes after its row: all threads have
 * stored before the barrier, and it is a release (X5).
 *
 * What is known of a row takes several loads, one after the other, to find out. So each warp finds out about another of
 * the block's next rows, all at the same time, before the block returns them one by one; the first ones while it enters.
 */
template <typename Facts>
__device__ inline void send_rows_home(const struct cuda_launch &l, const struct turn *turn,
                                      const struct combine_send_args &send, int block, int blocks, struct returning *r)
{
    bool prepared = l.plan.send_cut.log2_parts == 0;
    if (!Facts::QUANTISED && r->most_in_words > 0)
        prepared = return_in_words<Facts>(l, turn, send, block, blocks, r) && prepared;
    if (r->most_rows > 0)
        return_rows<Facts>(l, turn, send, block, blocks, prepared, r);
}

#endif
