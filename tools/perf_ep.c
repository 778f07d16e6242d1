// SPDX-License-Identifier: Apache-2.0
/* Starts the ranks, tells them what to do, and makes figures of what they say it took. */
#include "perf.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"
#include "perf_link.h"
#include "perf_load.h"

#define SECOND_NS UINT64_C(1000000000)
#define START_NS (90 * SECOND_NS)
#define BLOCK_NS (300 * SECOND_NS)
#define NCCL_BLOCK_NS (90 * SECOND_NS) /* a machine with GPUs is not kept waiting for a baseline that hangs */
#define LOOK_NS (SECOND_NS / 5) /* between two looks at whether a rank has died */

static bool has_ended(struct perf_run *run, enum perf_side_id side)
{
    return side == PERF_MPI ? perf_mpi_has_ended(run) : perf_crew_has_died(run, side);
}

bool perf_await(struct perf_run *run, enum perf_side_id side, uint64_t timeout_ns)
{
    uint64_t end_ns = clock_ns() + timeout_ns;
    while (!perf_board_await(run->board, LOOK_NS)) {
        if (atomic_load(&run->board->failed))
            return false;
        if (has_ended(run, side))
            return false;
        if (clock_ns() > end_ns) {
            perf_board_fail(run->board, "the ranks were not done after %llu s",
                            (unsigned long long)(timeout_ns / SECOND_NS));
            return false;
        }
    }
    return true;
}

/* ---- figures ---- */

/* What an iteration took the slowest rank. */
struct slowest {
    double dispatch_us, combine_us, pair_us;
};

/* What the blocks of one series came to, at one token count. */
struct record {
    int32_t blocks, iterations; /* of each block */
    struct slowest median[PERF_MAX_BLOCKS]; /* of each block */
    double *pairs_us; /* of all iterations */
    int64_t pairs;
    uint64_t wrong;
    double *scratch; /* [iterations] */
};

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts the values. */
static double quantile(double *values, int64_t count, double part)
{
    qsort(values, (size_t)count, sizeof *values, by_size);
    return values[(int64_t)(part * (double)(count - 1) + 0.5)];
}

/* One of the three times of every iteration, of the slowest rank, into `us`. `at`: where a sample has it. */
static void take_slowest(struct perf_run *run, int32_t iterations, size_t at, double *us)
{
    for (int32_t i = 0; i < iterations; i++) {
        uint32_t most_ns = 0;
        for (int32_t r = 0; r < run->options.shape.ranks; r++) {
            const struct perf_sample *sample = perf_board_samples(run->board, r) + i;
            uint32_t ns = *(const uint32_t *)(const void *)((const char *)sample + at);
            most_ns = ns > most_ns ? ns : most_ns;
        }
        us[i] = (double)most_ns / 1000.0;
    }
}

static double median_of(struct perf_run *run, const struct record *r, size_t at)
{
    take_slowest(run, r->iterations, at, r->scratch);
    return quantile(r->scratch, r->iterations, 0.5);
}

static void take_block(struct perf_run *run, struct record *r)
{
    take_slowest(run, r->iterations, offsetof(struct perf_sample, pair_ns), r->pairs_us + r->pairs);
    r->pairs += r->iterations;
    r->median[r->blocks++] = (struct slowest){
        .dispatch_us = median_of(run, r, offsetof(struct perf_sample, dispatch_ns)),
        .combine_us = median_of(run, r, offsetof(struct perf_sample, combine_ns)),
        .pair_us = median_of(run, r, offsetof(struct perf_sample, pair_ns)),
    };
}

static double median_of_blocks(const struct record *r, size_t at)
{
    double us[PERF_MAX_BLOCKS] = {0};
    for (int32_t b = 0; b < r->blocks; b++)
        us[b] = *(const double *)(const void *)((const char *)&r->median[b] + at);
    return quantile(us, r->blocks, 0.5);
}

static struct perf_figures make_figures(const struct perf_run *run, const struct perf_series *series, int32_t count,
                                        struct record *r)
{
    const struct perf_shape *shape = &run->options.shape;
    struct perf_figures f = {
        .dispatch_us = median_of_blocks(r, offsetof(struct slowest, dispatch_us)),
        .combine_us = median_of_blocks(r, offsetof(struct slowest, combine_us)),
        .pair_us = median_of_blocks(r, offsetof(struct slowest, pair_us)),
        .pair_p90_us = quantile(r->pairs_us, r->pairs, 0.9),
        .exchange_mb = (double)run->board->mailbox[series->side].exchange_bytes[count] / 1e6,
        .wrong = r->wrong,
    };
    bool each_route = series->side == PERF_NCCL && shape->layout == MUSTER_EP_EXPERT_MAJOR;
    f.link_gbs = perf_load_crossing_bytes(shape, shape->tokens[count], each_route) / f.pair_us / 1000.0;
    f.link_fraction = run->link_rate_gbs > 0 ? f.link_gbs / run->link_rate_gbs : 0;
    return f;
}

/* ---- the run ---- */

/*
 * Looking at every value takes the host longer than a large batch takes a GPU: there it is done in the first block of a
 * series only, and its results stay in the caller's arrays for the other blocks. In place they may be overwritten.
 */
static bool run_block(struct perf_run *run, const struct perf_series *series, int32_t count, struct record *record)
{
    struct perf_order order = {.in_place = series->in_place,
                               .serve = !run->options.shape.cuda || series->in_place || record->blocks == 0,
                               .count = count,
                               .warmup = perf_warmup(&run->options, count),
                               .iterations = record->iterations};
    perf_board_tell(run->board, series->side, &order);
    if (!perf_await(run, series->side, series->side == PERF_NCCL ? NCCL_BLOCK_NS : BLOCK_NS))
        return false;
    record->wrong += atomic_load(&run->board->mailbox[series->side].wrong);
    take_block(run, record);
    return true;
}

/* A baseline that fails is left out from then on; what it has given so far is shown no more. */
static bool run_or_drop(struct perf_run *run, int32_t s, int32_t count, struct record *record)
{
    if (run_block(run, &run->series[s], count, record))
        return true;
    if (run->series[s].side != run->baseline.side)
        return false;
    perf_baseline_drop(run);
    return true;
}

/*
 * How many of `blocks` values in order lie outside, at either end, of an interval that holds the median with 95 %: each
 * value is as likely to be above it as below. With fewer than six values none may be left out, and it is a little less.
 */
static int32_t outside(int32_t blocks)
{
    double chance = 1.0, sum = 0;
    for (int32_t i = 0; i < blocks; i++)
        chance /= 2;
    for (int32_t i = 0; i < blocks / 2; i++) {
        sum += chance;
        if (2 * sum > 0.05)
            return i > 0 ? i - 1 : 0;
        chance *= (double)(blocks - i) / (i + 1);
    }
    return 0;
}

/* What a pair of the first took more than one of the second, from block to block. */
static struct perf_cost cost_of(const struct record *more, const struct record *less)
{
    double us[PERF_MAX_BLOCKS] = {0};
    int32_t blocks = more->blocks, aside = outside(blocks);
    for (int32_t b = 0; b < blocks; b++)
        us[b] = more->median[b].pair_us - less->median[b].pair_us;
    double median = quantile(us, blocks, 0.5);
    return (struct perf_cost){.known = true, .us = median, .low_us = us[aside], .high_us = us[blocks - 1 - aside]};
}

static void print_rows(struct perf_run *run, int32_t count, struct record *record)
{
    struct perf_figures figures[PERF_MAX_SERIES];
    double baseline_us = 0;
    for (int32_t s = 0; s < run->series_count; s++) {
        figures[s] = make_figures(run, &run->series[s], count, &record[s]);
        if (run->series[s].side == run->baseline.side)
            baseline_us = figures[s].pair_us;
    }
    for (int32_t s = 0; s < run->series_count; s++) {
        if (run->series[s].side == PERF_UNCHECKED) /* comes after the same with fault tolerance */
            figures[s - 1].cost = figures[s].cost = cost_of(&record[s - 1], &record[s]);
    }
    for (int32_t s = 0; s < run->series_count; s++) {
        figures[s].ratio = baseline_us > 0 ? figures[s].pair_us / baseline_us : 0;
        perf_print_row(run, &run->series[s], count, &figures[s]);
        run->wrong += figures[s].wrong;
    }
}

/* The series take turns, forwards and backwards, so that what slows the machine for a while slows all of them. */
static bool run_blocks(struct perf_run *run, int32_t count, struct record *record)
{
    int32_t most = run->series_count; /* a baseline that is dropped takes the last away */
    for (int32_t b = 0; b < run->options.blocks; b++)
        for (int32_t i = 0; i < most; i++) {
            int32_t s = b % 2 ? most - 1 - i : i;
            if (s < run->series_count && !run_or_drop(run, s, count, &record[s]))
                return false;
        }
    return true;
}

static bool record_open(const struct perf_run *run, int32_t count, struct record *record)
{
    size_t iterations = (size_t)(record->iterations = perf_iterations(&run->options, count));
    record->pairs_us = calloc((size_t)run->options.blocks * iterations, sizeof *record->pairs_us);
    record->scratch = calloc(iterations, sizeof *record->scratch);
    return record->pairs_us && record->scratch;
}

static bool measure_count(struct perf_run *run, int32_t count)
{
    struct record record[PERF_MAX_SERIES] = {{.blocks = 0}};
    bool good = true;
    for (int32_t s = 0; s < run->series_count; s++)
        good = record_open(run, count, &record[s]) && good;
    if (!good)
        perf_board_fail(run->board, "no memory for the times of %d blocks", run->options.blocks);
    good = good && run_blocks(run, count, record);
    if (good)
        print_rows(run, count, record);
    for (int32_t s = 0; s < PERF_MAX_SERIES; s++) {
        free(record[s].pairs_us);
        free(record[s].scratch);
    }
    return good;
}

/*
 * Rows can stay in the library's memory in the rank-major and flat layouts, and only if they go home as they are. The
 * baseline comes last.
 */
static void list_series(struct perf_run *run)
{
    struct perf_series *s = run->series;
    const struct perf_shape *shape = &run->options.shape;
    const char *backend = shape->cuda ? "cuda" : "cpu";
    bool can_lend = shape->layout != MUSTER_EP_EXPERT_MAJOR && !shape->quantise_return;
    for (int in_place = can_lend; in_place >= 0; in_place--) {
        const char *rows = in_place ? "in-place" : "caller";
        *s++ = (struct perf_series){PERF_LIBRARY, in_place, backend, rows};
        if (shape->cuda && run->options.both)
            *s++ = (struct perf_series){PERF_UNCHECKED, in_place, backend, rows};
    }
    if (run->baseline.running)
        *s++ = (struct perf_series){run->baseline.side, false, shape->cuda ? "nccl" : "mpi", "caller"};
    run->series_count = (int32_t)(s - run->series);
}

/* False: a rank has failed. That there is no rate is no failure. */
static bool measure_link(struct perf_run *run)
{
    if (!run->options.shape.cuda || run->options.shape.ranks < 2) {
        snprintf(run->link_reason, sizeof run->link_reason, "one rank has no links");
        return true;
    }
    perf_board_tell(run->board, PERF_LIBRARY, &(struct perf_order){.link = true});
    if (!perf_await(run, PERF_LIBRARY, BLOCK_NS))
        return false;
    run->link_rate_gbs = perf_link_rate_gbs(run->board);
    snprintf(run->link_reason, sizeof run->link_reason, "%s", run->board->link.why);
    return true;
}

static bool measure(struct perf_run *run)
{
    if (!measure_link(run))
        return false;
    perf_baseline_start(run);
    list_series(run);
    perf_print_header(run);
    for (int32_t i = 0; i < run->options.shape.token_counts; i++)
        if (!measure_count(run, i))
            return false;
    perf_print_footer(run);
    return true;
}

static bool open_board(struct perf_run *run)
{
    int32_t most = run->options.iterations > run->options.warmup ? run->options.iterations : run->options.warmup;
    run->board = perf_board_create(&run->options.shape, most, &run->board_fd);
    if (!run->board)
        perror("muster perf ep: shared memory");
    return run->board;
}

static bool start_library(struct perf_run *run)
{
    return perf_crew_start(run, PERF_LIBRARY, START_NS) &&
           (!run->options.both || perf_crew_start(run, PERF_UNCHECKED, START_NS));
}

int perf_ep_run(const struct perf_options *options)
{
    struct perf_run run = {.options = *options, .baseline = {.output = -1}};
    if (!open_board(&run))
        return EXIT_FAILURE;
    bool good = start_library(&run) && measure(&run);
    if (!good)
        fprintf(stderr, "muster perf ep: %s\n", run.board->why);
    perf_baseline_stop(&run);
    perf_crew_stop(&run, PERF_LIBRARY, good);
    if (run.options.both)
        perf_crew_stop(&run, PERF_UNCHECKED, good);
    close(run.board_fd);
    perf_board_close(run.board);
    return good && run.wrong == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
