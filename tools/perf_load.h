// SPDX-License-Identifier: Apache-2.0
/*
 * What is exchanged in a measurement, and what must come of it. Everything follows from the seed, so every rank knows
 * every other rank's tokens, and can tell of any value whether it is right without asking anyone.
 *
 * Token: `hidden` values of magnitude 1 to 2. Routes: `topk` distinct experts, uniformly at random; positive weights that
 * add up to 1. Expert e multiplies by a factor of its own, so a row that went to a wrong expert, twice, or nowhere shows.
 */
#ifndef TOOLS_PERF_LOAD_H
#define TOOLS_PERF_LOAD_H

#include <stddef.h>
#include <stdint.h>

#include "muster/ep.h"
#include "perf_board.h"

struct perf_routes {
    int32_t expert[MUSTER_EP_MAX_TOPK];
    float weight[MUSTER_EP_MAX_TOPK];
};

void perf_load_routes(const struct perf_shape *shape, int32_t rank, int32_t token, struct perf_routes *routes);

/* Whether any of the routes leads to an expert in [begin, end). */
bool perf_load_goes_to(const struct perf_shape *shape, const struct perf_routes *routes, int32_t begin, int32_t end);

size_t perf_load_row_bytes(const struct perf_shape *shape);

/* The token's hidden states, in the type of the rows. */
void perf_load_row(const struct perf_shape *shape, int32_t rank, int32_t token, void *row);

/* What one rank has received, and where its results go. */
struct perf_received {
    int32_t blocks; /* expert-major: one for each slot; otherwise one for each source rank */
    size_t block_rows; /* rows from the beginning of a block to that of the next; 0: `first` says */
    const int32_t *first; /* with block_rows 0: first row of each block */
    const int32_t *count; /* rows of each block */
    const unsigned char *rows;
    size_t row_stride;
    const float *scales; /* of quantised rows, otherwise NULL */
    const unsigned char *slots; /* not expert-major: [row][topk] int32, local slots or -1 */
    const unsigned char *weights; /* likewise: [row][topk] fp32 */
    size_t route_stride; /* bytes from row to row of slots and weights */
    unsigned char *results; /* compact rows, in the same places */
};

/*
 * Compares what has come with what should have; computes the results of this rank's experts from what has come. Returns
 * the number of wrong values, counts included; 0 if the shape says that nothing is to be checked.
 */
uint64_t perf_load_serve(const struct perf_shape *shape, int32_t rank, int32_t tokens,
                         const struct perf_received *received);

/* Instead of results: copies the rows as they came. */
void perf_load_copy(const struct perf_shape *shape, const struct perf_received *received);

/* Compares the output of combine with what it should be. `copied`: perf_load_copy() stood in for the experts. */
uint64_t perf_load_check(const struct perf_shape *shape, int32_t rank, int32_t tokens, bool copied, const void *out);

/*
 * Bytes of rows that a rank's tokens send to other ranks and that come back from there, on average over the ranks. What
 * comes back to one leaves another, so this is also what leaves a rank in dispatch and in combine together.
 * Each route: a row goes out, and comes home, for every route of a token, not only for every rank.
 */
double perf_load_crossing_bytes(const struct perf_shape *shape, int32_t tokens, bool each_route);

#endif
