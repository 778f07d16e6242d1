// SPDX-License-Identifier: Apache-2.0
/* `muster perf ep`: its options, its run, and what it prints; and what else `muster perf` measures. */
#ifndef TOOLS_PERF_H
#define TOOLS_PERF_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "control/store_server.h"
#include "muster/group.h"
#include "perf_board.h"

enum { PERF_MAX_SERIES = 3, PERF_MAX_BLOCKS = 101, PERF_REASON_BYTES = 600 };

struct perf_options {
    struct perf_shape shape;
    int32_t blocks; /* of each series and token count, taken in turns */
    int32_t warmup, iterations; /* of a block */
    bool baseline, json;
};

/* One way to do the same exchange. */
struct perf_series {
    enum perf_side_id side;
    bool in_place;
    const char *backend, *rows; /* as they are printed */
};

/* What came of a series at one token count. */
struct perf_figures {
    /* Medians over blocks of the median over a block's iterations of the slowest rank. */
    double dispatch_us, combine_us, pair_us;
    double pair_p90_us; /* of all iterations */
    double link_gbs; /* what leaves a rank for others in dispatch and in combine, on average, by the pair's time */
    double link_fraction; /* of the measured link rate; 0: that is not known */
    double exchange_mb; /* memory of a rank */
    uint64_t wrong; /* values, of all blocks */
    double ratio; /* of the pair's time to the baseline's; 0: there is none */
};

struct perf_baseline {
    bool running;
    pid_t pid; /* of mpirun */
    int output; /* memory file with what it prints */
    char command[PATH_MAX + 400]; /* as one would type it */
    char reason[PERF_REASON_BYTES]; /* why it is not running */
};

struct perf_run {
    struct perf_options options;
    struct perf_board *board;
    int board_fd;
    struct store_server *server;
    pid_t rank[MUSTER_MAX_RANKS]; /* 0: has ended */
    struct perf_baseline baseline;
    int32_t series_count;
    struct perf_series series[PERF_MAX_SERIES];
    double link_rate_gbs; /* measured, for each GPU and direction; 0: not known, for the reason that follows */
    char link_reason[PERF_REASON_BYTES];
    uint64_t wrong;
};

/* ---- perf_options.c ---- */
void perf_parse(int argc, char **argv, struct perf_options *options);

/* ---- perf_ep.c ---- */

/* Measures and prints. The exit status: 0 if everything was measured, and no value was wrong. */
int perf_ep_run(const struct perf_options *options);

/* Waits for what the ranks of a side were last told. False: why is on the board. */
bool perf_await(struct perf_run *run, enum perf_side_id side, uint64_t timeout_ns);

/* ---- perf_floor.c ---- */
int perf_floor(int argc, char **argv);

/* ---- perf_baseline.c ---- */

/* Starts the same exchange over MPI, if that is there; `baseline.reason` says why it is not. */
void perf_baseline_start(struct perf_run *run);
void perf_baseline_stop(struct perf_run *run);

/* Goes on without it: it has failed. */
void perf_baseline_drop(struct perf_run *run);

/* ---- perf_table.c ---- */
void perf_print_header(const struct perf_run *run);
void perf_print_row(const struct perf_run *run, const struct perf_series *series, int32_t count,
                    const struct perf_figures *figures);
void perf_print_footer(const struct perf_run *run);

#endif
