// SPDX-License-Identifier: Apache-2.0
/* Starts the ranks, tells them what to do, and makes figures of what they say it took. */
#include "perf.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/clock.h"
#include "perf_link.h"
#include "perf_load.h"
#include "process.h"

#define SECOND_NS UINT64_C(1000000000)
#define START_NS (90 * SECOND_NS)
#define BLOCK_NS (300 * SECOND_NS)
#define LEAVE_NS (10 * SECOND_NS)
#define LOOK_NS (SECOND_NS / 5) /* between two looks at whether a rank has died */

/* ---- ranks ---- */

static bool start_ranks(struct perf_run *run)
{
    perf_board_expect(run->board);
    for (int32_t r = 0; r < run->options.shape.ranks; r++) {
        pid_t pid = process_start_rank(&(struct process_rank){.command = "perf",
                                                              .board = run->board_fd,
                                                              .server = run->server,
                                                              .rank = r,
                                                              .ranks = run->options.shape.ranks,
                                                              .err = -1});
        if (pid < 0) {
            perf_board_fail(run->board, "rank %d cannot be started: %s", r, strerror(errno));
            return false;
        }
        run->rank[r] = pid;
    }
    return perf_await(run, PERF_LIBRARY, START_NS);
}

/* A rank that ended, for whatever reason, while it was waited for. */
static bool rank_has_died(struct perf_run *run)
{
    int status;
    for (int32_t r = 0; r < run->options.shape.ranks; r++) {
        if (run->rank[r] == 0 || waitpid(run->rank[r], &status, WNOHANG) != run->rank[r])
            continue;
        run->rank[r] = 0;
        perf_board_fail(run->board, "rank %d has ended (%s %d)", r, WIFSIGNALED(status) ? "signal" : "status",
                        WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        return true;
    }
    return false;
}

static bool mpirun_has_ended(struct perf_run *run)
{
    int status;
    if (waitpid(run->baseline.pid, &status, WNOHANG) != run->baseline.pid)
        return false;
    run->baseline.pid = 0;
    perf_board_fail(run->board, "mpirun ended with status %d", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    return true;
}

bool perf_await(struct perf_run *run, enum perf_side_id side, uint64_t timeout_ns)
{
    uint64_t end_ns = clock_ns() + timeout_ns;
    while (!perf_board_await(run->board, LOOK_NS)) {
        if (atomic_load(&run->board->failed))
            return false;
        if (side == PERF_LIBRARY ? rank_has_died(run) : mpirun_has_ended(run))
            return false;
        if (clock_ns() > end_ns) {
            perf_board_fail(run->board, "the ranks were not done after %llu s",
                            (unsigned long long)(timeout_ns / SECOND_NS));
            return false;
        }
    }
    return true;
}

static bool any_rank_runs(struct perf_run *run)
{
    bool any = false;
    for (int32_t r = 0; r < run->options.shape.ranks; r++) {
        if (run->rank[r] && waitpid(run->rank[r], NULL, WNOHANG) == run->rank[r])
            run->rank[r] = 0;
        any |= run->rank[r] != 0;
    }
    return any;
}

/* In good order, if they are in good order themselves. */
static void stop_ranks(struct perf_run *run, bool good)
{
    uint64_t end_ns = clock_ns() + LEAVE_NS;
    if (good)
        perf_board_tell(run->board, PERF_LIBRARY, &(struct perf_order){.finish = true});
    while (good && any_rank_runs(run) && clock_ns() < end_ns)
        usleep(2000);
    for (int32_t r = 0; r < run->options.shape.ranks; r++)
        if (run->rank[r]) {
            process_signal(run->rank[r], SIGKILL);
            waitpid(run->rank[r], NULL, 0);
        }
}

/* ---- figures ---- */

/* What an iteration took the slowest rank. */
struct slowest {
    double dispatch_us, combine_us, pair_us;
};

/* What the blocks of one series came to, at one token count. */
struct record {
    int32_t blocks;
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
static void take_slowest(struct perf_run *run, size_t at, double *us)
{
    for (int32_t i = 0; i < run->options.iterations; i++) {
        uint32_t most_ns = 0;
        for (int32_t r = 0; r < run->options.shape.ranks; r++) {
            const struct perf_sample *sample = perf_board_samples(run->board, r) + i;
            uint32_t ns = *(const uint32_t *)(const void *)((const char *)sample + at);
            most_ns = ns > most_ns ? ns : most_ns;
        }
        us[i] = (double)most_ns / 1000.0;
    }
}

static double median_of(struct perf_run *run, size_t at, double *scratch)
{
    take_slowest(run, at, scratch);
    return quantile(scratch, run->options.iterations, 0.5);
}

static void take_block(struct perf_run *run, struct record *r)
{
    take_slowest(run, offsetof(struct perf_sample, pair_ns), r->pairs_us + r->pairs);
    r->pairs += run->options.iterations;
    r->median[r->blocks++] = (struct slowest){
        .dispatch_us = median_of(run, offsetof(struct perf_sample, dispatch_ns), r->scratch),
        .combine_us = median_of(run, offsetof(struct perf_sample, combine_ns), r->scratch),
        .pair_us = median_of(run, offsetof(struct perf_sample, pair_ns), r->scratch),
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
    f.link_gbs = perf_load_crossing_bytes(shape, shape->tokens[count]) / f.pair_us / 1000.0;
    f.link_fraction = run->link_rate_gbs > 0 ? f.link_gbs / run->link_rate_gbs : 0;
    return f;
}

/* ---- the run ---- */

static bool run_block(struct perf_run *run, const struct perf_series *series, int32_t count, struct record *record)
{
    struct perf_order order = {.in_place = series->in_place,
                               .count = count,
                               .warmup = run->options.warmup,
                               .iterations = run->options.iterations};
    perf_board_tell(run->board, series->side, &order);
    if (!perf_await(run, series->side, BLOCK_NS))
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
    if (run->series[s].side == PERF_LIBRARY)
        return false;
    perf_baseline_drop(run);
    return true;
}

static void print_rows(struct perf_run *run, int32_t count, struct record *record)
{
    struct perf_figures figures[PERF_MAX_SERIES];
    double baseline_us = 0;
    for (int32_t s = 0; s < run->series_count; s++) {
        figures[s] = make_figures(run, &run->series[s], count, &record[s]);
        if (run->series[s].side == PERF_MPI)
            baseline_us = figures[s].pair_us;
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
    for (int32_t b = 0; b < run->options.blocks; b++)
        for (int32_t i = 0; i < run->series_count; i++) {
            int32_t s = b % 2 ? run->series_count - 1 - i : i;
            if (!run_or_drop(run, s, count, &record[s]))
                return false;
        }
    return true;
}

static bool record_open(const struct perf_run *run, struct record *record)
{
    size_t iterations = (size_t)run->options.iterations;
    record->pairs_us = calloc((size_t)run->options.blocks * iterations, sizeof *record->pairs_us);
    record->scratch = calloc(iterations, sizeof *record->scratch);
    return record->pairs_us && record->scratch;
}

static bool measure_count(struct perf_run *run, int32_t count)
{
    struct record record[PERF_MAX_SERIES] = {{.blocks = 0}};
    bool good = true;
    for (int32_t s = 0; s < run->series_count; s++)
        good = record_open(run, &record[s]) && good;
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
 * Rows that stay in the library's memory are there in the rank-major layout only, and only if they go home as they are.
 * The baseline comes last.
 */
static void list_series(struct perf_run *run)
{
    struct perf_series *s = run->series;
    if (run->options.shape.cuda) {
        *s = (struct perf_series){PERF_LIBRARY, false, "cuda", "caller"};
        run->series_count = 1;
        return;
    }
    if (run->options.shape.layout == MUSTER_EP_RANK_MAJOR && !run->options.shape.quantise_return)
        *s++ = (struct perf_series){PERF_LIBRARY, true, "cpu", "in-place"};
    *s++ = (struct perf_series){PERF_LIBRARY, false, "cpu", "caller"};
    if (run->baseline.running)
        *s++ = (struct perf_series){PERF_MPI, false, "mpi", "caller"};
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

static bool open_store(struct perf_run *run)
{
    struct store_server_config config = {.ranks = run->options.shape.ranks, .lease_us = 5000000};
    if (store_server_create(&config, &run->server) == MUSTER_OK && store_server_start_thread(run->server) == MUSTER_OK)
        return true;
    fprintf(stderr, "muster perf ep: %s\n", muster_last_error());
    return false;
}

static bool open_board(struct perf_run *run)
{
    int32_t most = run->options.iterations > run->options.warmup ? run->options.iterations : run->options.warmup;
    run->board = perf_board_create(&run->options.shape, most, &run->board_fd);
    if (!run->board)
        perror("muster perf ep: shared memory");
    return run->board;
}

int perf_ep_run(const struct perf_options *options)
{
    struct perf_run run = {.options = *options, .baseline = {.output = -1}};
    bool good = open_board(&run) && open_store(&run);
    if (good) {
        good = start_ranks(&run) && measure(&run);
        if (!good)
            fprintf(stderr, "muster perf ep: %s\n", run.board->why);
        perf_baseline_stop(&run);
        stop_ranks(&run, good);
    }
    store_server_destroy(run.server);
    if (run.board)
        close(run.board_fd);
    perf_board_close(run.board);
    return good && run.wrong == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
