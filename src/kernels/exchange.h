// SPDX-License-Identifier: Apache-2.0
/*
 * The exchange (MoE dispatch and combine) as every backend sees it: what it is, where its parts lie, and what an
 * operation is given. Plain structs, which C and CUDA compilers read alike. R = ranks, S = slots, T = tokens, K = topk,
 * H = hidden.
 */
#ifndef KERNELS_EXCHANGE_H
#define KERNELS_EXCHANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "muster/ep.h"

/* A word that several ranks or threads look at while it changes. CUDA has its own instructions for that. */
#ifdef __cplusplus
typedef uint64_t shared_u64;
#else
typedef _Atomic uint64_t shared_u64;
#endif

/*
 * A line is what one peer tells another: a flag, and what is written before it. Each has a cache line of its own, since
 * each has another writer. Line p of an array in a rank's region is written by rank p alone.
 */
struct exchange_line {
    shared_u64 flag; /* stamp of the newest dispatch or combine that the peer has finished sending */
    uint64_t mask[2]; /* dispatch: the ranks that the peer takes to be part of it */
    uint64_t step; /* dispatch: the number of the peer's step in the epoch */
    uint32_t rows; /* dispatch: rows that came with it */
    uint32_t first; /* combine, flat, if home ranks read the peer's results: the row at which this rank's begin */
    uint32_t pad[6];
};

/* A value with its flag: 16 bytes that are written and read at once. For backends that have such accesses. */
struct exchange_word {
    uint64_t value, stamp;
};

/*
 * What a rank tells another before its rows, a word each: its mask (two words), its step's number in the epoch, how many
 * rows come, and of which tokens if they come in words (a bit for each). Then counts, two to a word: expert-major the routes to
 * each of the other's slots, flat the rows to each rank.
 */
enum {
    EXCHANGE_TOLD_MASK,
    EXCHANGE_TOLD_STEP = EXCHANGE_TOLD_MASK + 2,
    EXCHANGE_TOLD_ROWS,
    EXCHANGE_TOLD_TOKENS,
    EXCHANGE_TOLD_COUNTS
};

/*
 * The most tokens of a rank whose rows can travel in words, and the most bytes of one: as the caller gives it, and all that
 * travels. A block keeps as much in its shared memory.
 */
enum { EXCHANGE_WORD_TOKENS = 16, EXCHANGE_WORD_BYTES = 80 * 1024 };

/* Blocks that count a rank's tokens together, at most. */
enum { EXCHANGE_COUNTERS = 8 };

enum { EXCHANGE_MAX_ARRAYS = 2 + MUSTER_EP_MAX_PAYLOADS, EXCHANGE_STATE_BYTES = 256 };

/* The types of elements that are added up: IEEE half and single precision, and bfloat16. */
enum exchange_type { EXCHANGE_BF16, EXCHANGE_FP16, EXCHANGE_FP32 };
enum { EXCHANGE_TYPES = EXCHANGE_FP32 + 1 };

/* One array whose rows travel: hidden states first, then scales if quantised, then the caller's payloads. */
struct exchange_array {
    uint64_t offset; /* of [R][T] rows */
    size_t row_bytes;
    int32_t word_bytes; /* so much of a row lies in a word, where it travels in words */
    int32_t first_word; /* of the array, in such a row */
};

/* What an exchange is, and where its parts lie in every region: a pure function of config and rank count (X6). */
struct exchange_shape {
    int32_t ranks, slots, tokens, topk, hidden;
    bool expert_major, flat, exact, masked, load_stats; /* neither of the first two: rank-major */
    enum exchange_type type; /* of hidden states and results */
    muster_ep_quantise quantise, quantise_return;
    int32_t arrays;
    struct exchange_array array[EXCHANGE_MAX_ARRAYS];
    size_t result_bytes; /* of one row of H, as callers give and get it */
    size_t return_bytes; /* of one row on its way home: the same, or H codes and behind them their scales */
    size_t return_scales; /* quantise_return: where in such a row the scales begin */
    uint64_t dispatch_line; /* [R] lines */
    uint64_t combine_line; /* [R] lines */
    uint64_t loads; /* [R][R * S] int32; with load_stats */
    uint64_t row_token; /* [R][T] int32 */
    uint64_t row_slot; /* [R][T][K] int32: local slot or -1 */
    uint64_t row_weight; /* [R][T][K] fp32 */
    uint64_t results; /* reduced: [R][T] or, flat, [R * T] rows, read by their home ranks */
    uint64_t home; /* exact: [T][K] rows, written by the ranks of the experts */

    /* Only for backends that push results home and wait for single rows; others leave these untouched. */
    uint64_t told; /* [R][told_words] words: see EXCHANGE_TOLD_MASK */
    int32_t told_words;
    int32_t word_tokens; /* a rank with no more tokens can send their rows in words; 0: none can */
    int32_t word_row_words; /* of a row: two for each route (see dispatch_words.cuh), then the arrays */
    uint64_t word_rows; /* [R][word_tokens][word_row_words] words: rows of dispatch, by token */
    uint64_t word_results; /* rows of H in words: reduced [R][word_tokens], exact [word_tokens][K] */
    uint64_t row_index; /* [R][T][K] int32: which of its source's rows in that slot a route is; once laid out, of all */
    uint64_t row_flag; /* [R][T] flags: a row has come */
    uint64_t arrived; /* reduced: [R][T] rows: what each rank adds to this rank's token */
    uint64_t arrived_flag; /* [R][T] flags: a rank has sent all that it owes to this rank's token */

    /* Likewise, and written by this rank alone: what it keeps from one operation of a pair to the next. */
    uint64_t state; /* EXCHANGE_STATE_BYTES; all zero before the first pair */
    uint64_t counted; /* [EXCHANGE_COUNTERS][1 + R + R * S] int32: what blocks that count together have found */
    uint64_t rows_from; /* [R] int32: rows received from each rank; 0 for ranks that take no part */
    uint64_t words_from; /* [R] int32: 1 if those came in words, and their results are to go so */
    uint64_t rows_before; /* [R] int32; flat: rows received from the ranks before each */
    uint64_t token_ranks; /* [T][2]: the ranks that own routes of a token: who owes it something */
    uint64_t token_slots; /* [T][K] int32: global slot of each route that was sent, otherwise -1 */
    uint64_t token_weights; /* [T][K] fp32: their weights */
    uint64_t begin, end; /* all of the above */
};

/* A caller's input: `stride` bytes from row to row. */
struct row_input {
    const unsigned char *data;
    size_t stride;
};

struct dispatch_send_args {
    uint64_t stamp;
    int32_t tokens;
    struct row_input input[EXCHANGE_MAX_ARRAYS]; /* by array; the one of the scales is not used */
    struct row_input topk_slots; /* [tokens, K] */
    bool wide; /* int64 ids, otherwise int32 */
    struct row_input topk_weights; /* [tokens, K] fp32; data NULL: all 1 */
    int32_t *dropped_routes; /* NULL: not wanted */
    bool keeps_own; /* rows of this rank to itself stay where they are: see dispatch_receive_args.own */
};

/*
 * Outputs are compact; those with a NULL pointer are not wanted, except for hidden states outside expert-major: their
 * caller reads them in the region, in the layout of the exchange. (On the CPU flat ones have always another place.)
 */
struct dispatch_receive_args {
    uint64_t stamp;
    unsigned char *output[EXCHANGE_MAX_ARRAYS];
    int32_t *counts, *source, *loads, *slots;
    int64_t *ranges;
    float *weights;
    bool pad_ids;
    int32_t invalid_id;
    const struct dispatch_send_args *own; /* where this rank's rows to itself are; NULL: they were sent like others */
};

/* results: [S][R*T], [R][T] or, flat, [R*T] rows; data NULL: they already lie in the region, in just this layout. */
struct combine_send_args {
    uint64_t stamp;
    struct row_input results;
    size_t block_stride; /* bytes from one slot or source rank to the next; flat: 0 */
    bool keeps_own; /* as in dispatch */
};

struct combine_receive_args {
    uint64_t stamp;
    unsigned char *out; /* [tokens, H], tokens as dispatched */
    const struct combine_send_args *own; /* as in dispatch */
};

#endif
