// SPDX-License-Identifier: Apache-2.0
/*
 * What a rank of a measurement does: takes orders from the board, and runs dispatch and combine again and again, in
 * whatever way its side does that.
 */
#ifndef TOOLS_PERF_RANK_H
#define TOOLS_PERF_RANK_H

#include "perf_board.h"
#include "perf_load.h"

/* How a side exchanges. Each call says what went wrong with perf_board_fail() and then returns false. */
struct perf_side {
    enum perf_side_id id;
    /* Joins the other ranks, and makes everything that any order will need. */
    bool (*open)(void *state, struct perf_board *board, int32_t rank);
    void (*close)(void *state);
    /* Before a block: tokens and routes. Not timed. */
    bool (*prepare)(void *state, const struct perf_order *order);
    bool (*dispatch)(void *state);
    bool (*combine)(void *state);
    /* With GPUs: the timed iterations, which run on a stream. Otherwise they are run and timed by the caller. */
    bool (*iterate)(void *state, int32_t iterations, struct perf_sample *sample);
    /* With GPUs: what perf_link.h says; NULL: others do that. */
    bool (*measure_link)(void *state, uint32_t *round);
    /* What dispatch (or combine) has brought becomes readable here; NULL: it is. */
    bool (*fetch_received)(void *state);
    bool (*fetch_output)(void *state);
    /* The results (or the output) that were written here go to where they are used; NULL: they are there. */
    bool (*give_results)(void *state);
    bool (*give_output)(void *state);
    /* After dispatch: what has come. */
    void (*received)(void *state, struct perf_received *received);
    /* After combine: where it has put its output, [tokens][hidden]. */
    void *(*output)(void *state);
};

/* A rank from beginning to end. The exit status of its process. */
int perf_rank_run(const char *board_path, int32_t rank, const struct perf_side *side, void *state);

#endif
