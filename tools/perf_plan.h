// SPDX-License-Identifier: Apache-2.0
/*
 * How one does dispatch and combine with an all-to-all of rows: which row goes where, for one rank and one token count.
 * Everybody's routes follow from the seed, so all of it is known before the clock starts.
 *
 * Both directions have memory of the same shape, and rows are numbered through it:
 *
 *   places    where rows are received, or results written, as the layout says
 *   leaving   rows for each other rank, one rank after the other; combine brings their results back into the same places
 *   arriving  expert-major: rows from each other rank, before they are put into their places, and results before they go
 *             back. In the other layouts rows arrive in their places, and leave from there.
 *
 * Dispatch moves a token's row to all its numbers, of which those of the own rank are places; exchanges `leaving` for
 * `arriving`; moves what arrived to its places. Combine does the same backwards, and adds up the rows of each token.
 * Expert-major: a row for each route, of one rank in the order of slots, and of tokens. Otherwise: one for each rank.
 */
#ifndef TOOLS_PERF_PLAN_H
#define TOOLS_PERF_PLAN_H

#include "perf_board.h"
#include "perf_load.h"

/* Moves of rows: row from[i] becomes row to[i]. */
struct perf_moves {
    int32_t count;
    int32_t *to, *from;
};

struct perf_span {
    int32_t first, count; /* rows */
};

/* What is exchanged with one other rank: rows of this rank's tokens, and of the other's. Nothing is with the own one. */
struct perf_traffic {
    struct perf_span sent, received;
};

struct perf_plan {
    int32_t ranks, tokens;
    int32_t rows; /* in all three parts */
    int32_t crossing; /* of them leaving or arriving: what an exchange needs beside the caller's own arrays */
    struct perf_traffic traffic[MUSTER_MAX_RANKS];
    struct perf_moves out; /* from tokens */
    struct perf_moves in; /* from `arriving` to places; not expert-major: none */
    int32_t parts; /* of a token's sum, at most */
    int32_t *home; /* [tokens][parts] their numbers, in the order of summation, then -1 */
    float *weight; /* likewise */

    /* What perf_received says of the places. */
    int32_t blocks, block_rows; /* flat: block_rows is 0 */
    int32_t *first, *count; /* [blocks] */
    int32_t *slots; /* [places][topk], not expert-major */
    float *weights; /* likewise */
};

/* False: no memory. Whatever came of it is freed with perf_plan_free(). */
bool perf_plan_make(const struct perf_shape *shape, int32_t rank, int32_t tokens, struct perf_plan *plan);
void perf_plan_free(struct perf_plan *plan);

#endif
