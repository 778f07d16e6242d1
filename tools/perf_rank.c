// SPDX-License-Identifier: Apache-2.0
#include "perf_rank.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"

struct loop {
    struct perf_board *board;
    const struct perf_shape *shape;
    const struct perf_side *side;
    void *state;
    int32_t rank;
    struct perf_order order;
    int32_t tokens;
    uint32_t round; /* of the barrier */
    struct perf_received received; /* the same in every iteration of a block */
};

/* ---- before and after the timed iterations ---- */

/* What a side leaves out is already done. */
static bool step(const struct loop *l, bool (*move)(void *state))
{
    return !move || move(l->state);
}

static bool poison_output(const struct loop *l)
{
    memset(l->side->output(l->state), 0xff, (size_t)l->tokens * perf_load_row_bytes(l->shape)); /* NaNs */
    return step(l, l->side->give_output);
}

static void add_wrong(const struct loop *l, uint64_t wrong)
{
    atomic_fetch_add(&l->board->mailbox[l->side->id].wrong, wrong);
}

static bool check_output(const struct loop *l, bool copied)
{
    if (!step(l, l->side->fetch_output))
        return false;
    add_wrong(l, perf_load_check(l->shape, l->rank, l->tokens, copied, l->side->output(l->state)));
    return true;
}

static bool serve(struct loop *l)
{
    if (!step(l, l->side->fetch_received))
        return false;
    l->side->received(l->state, &l->received);
    add_wrong(l, perf_load_serve(l->shape, l->rank, l->tokens, &l->received));
    return step(l, l->side->give_results);
}

/*
 * The first iteration of a block, with experts that compute: what came, and what came of it, is compared with what it
 * should be. The results that it leaves are those of every later iteration, since tokens and routes stay.
 */
static bool run_first(struct loop *l)
{
    if (!poison_output(l) || !l->side->dispatch(l->state) || (l->order.serve && !serve(l)))
        return false;
    return l->side->combine(l->state) && check_output(l, false);
}

/* ---- the timed iterations ---- */

/* Back to back, as a layer's caller would, with nothing in between, or a copy that stands in for the experts. */
static bool run_pair(const struct loop *l, struct perf_sample *sample)
{
    uint64_t begun_ns = clock_ns();
    if (!l->side->dispatch(l->state))
        return false;
    uint64_t dispatched_ns = clock_ns(), served_ns = dispatched_ns;
    if (l->shape->copy) {
        perf_load_copy(l->shape, &l->received);
        served_ns = clock_ns();
    }
    if (!l->side->combine(l->state))
        return false;
    uint64_t ended_ns = clock_ns();
    sample->dispatch_ns = (uint32_t)(dispatched_ns - begun_ns);
    sample->combine_ns = (uint32_t)(ended_ns - served_ns);
    sample->pair_ns = (uint32_t)(ended_ns - begun_ns);
    return true;
}

/* All ranks begin an iteration together; waiting for that is no part of its time. */
static bool run_iterations(struct loop *l, int32_t count, struct perf_sample *sample)
{
    if (l->shape->cuda)
        return l->side->iterate(l->state, count, sample);
    for (int32_t i = 0; i < count; i++)
        if (!perf_board_align(l->board, l->side->id, &l->round) || !run_pair(l, &sample[i]))
            return false;
    return true;
}

static bool run_block(struct loop *l)
{
    struct perf_sample *sample = perf_board_samples(l->board, l->rank);
    l->tokens = l->shape->tokens[l->order.count];
    if (!l->side->prepare(l->state, &l->order) || !run_first(l))
        return false;
    if (!run_iterations(l, l->order.warmup, sample)) /* written over below */
        return false;
    return poison_output(l) && run_iterations(l, l->order.iterations, sample) && check_output(l, l->shape->copy);
}

/* ---- from beginning to end ---- */

/* Rank r on the r-th core it may use, if each can have one: a rank that moves would be measured with cold caches. */
static void pin_to_core(const struct loop *l)
{
    cpu_set_t allowed, one;
    if (l->shape->ranks > l->shape->cores || sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return;
    if (CPU_COUNT(&allowed) < l->shape->ranks)
        return; /* somebody has placed us already */
    size_t core = 0;
    for (int32_t left = l->rank; !CPU_ISSET(core, &allowed) || left-- > 0;)
        core++;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    sched_setaffinity(0, sizeof one, &one);
}

static bool run_orders(struct loop *l, int board_fd)
{
    uint32_t number = 0;
    for (;;) {
        perf_board_done(l->board);
        perf_board_take(l->board, board_fd, l->side->id, &number, &l->order);
        if (l->order.finish)
            return true;
        if (!(l->order.link ? l->side->measure_link(l->state, &l->round) : run_block(l)))
            return false;
    }
}

int perf_rank_run(const char *board_path, int32_t rank, const struct perf_side *side, void *state)
{
    int fd;
    struct loop l = {.board = perf_board_open(board_path, &fd), .side = side, .state = state, .rank = rank};
    if (!l.board) {
        fprintf(stderr, "muster perf: rank %d: %s: %s\n", rank, board_path, strerror(errno));
        return EXIT_FAILURE;
    }
    l.shape = &l.board->shape;
    bool good = side->open(state, l.board, rank);
    if (good) {
        pin_to_core(&l);
        good = run_orders(&l, fd);
    }
    side->close(state);
    perf_board_close(l.board);
    close(fd);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
