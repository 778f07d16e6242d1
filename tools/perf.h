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

enum { PERF_MAX_SERIES = 6, PERF_MAX_BLOCKS = 101, PERF_REASON_BYTES = 600 };

struct perf_options {
    struct perf_shape shape;
    int32_t blocks; /* of each series and token count, taken in turns */
    int32_t warmup, iterations; /* of a block */
    bool scaled; /* of a block of few tokens: see perf_iterations() */
    bool baseline, json;
    bool both; /* cuda: also without fault tolerance */
    char left_out[PERF_REASON_BYTES]; /* token counts that a device has no room for; empty: none */
};

/* One way to do the same exchange. */
struct perf_series {
    enum perf_side_id side;
    bool in_place;
    const char *backend, *rows; /* as they are printed */
};

/* Of the differences between blocks that ran one after the other: their median, and where it lies with 95 %. */
struct perf_cost {
    bool known;
    double us, low_us, high_us;
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
    struct perf_cost cost; /* of fault tolerance, in a pair */
};

struct perf_baseline {
    enum perf_side_id side; /* which of them it is, or would be */
    bool running;
    pid_t pid; /* of mpirun */
    int output; /* memory file with what it prints */
    char
        command[PATH_MAX + 400]; /* of mpirun, as one would type it; of NCCL, what it is spared. Empty: never started */
    char reason[PERF_REASON_BYTES]; /* why it is not running */
};

/* The ranks of a side that are processes of this tool. */
struct perf_crew {
    struct store_server *server; /* where ranks of the library meet */
    pid_t pid[MUSTER_MAX_RANKS]; /* 0: has ended */
};

struct perf_run {
    struct perf_options options;
    struct perf_board *board;
    int board_fd;
    struct perf_crew crew[PERF_SIDES];
    struct perf_baseline baseline;
    int32_t series_count;
    struct perf_series series[PERF_MAX_SERIES];
    double link_rate_gbs; /* measured, for each GPU and direction; 0: not known, for the reason that follows */
    char link_reason[PERF_REASON_BYTES];
    uint64_t wrong;
};

/* ---- perf_options.c ---- */
void perf_parse(int argc, char **argv, struct perf_options *options);

/* Timed iterations of a block, and those before them, of a token count. */
int32_t perf_iterations(const struct perf_options *options, int32_t count);
int32_t perf_warmup(const struct perf_options *options, int32_t count);

/* ---- perf_ep.c ---- */

/* Measures and prints. The exit status: 0 if everything was measured, and no value was wrong. */
int perf_ep_run(const struct perf_options *options);

/* Waits for what the ranks of a side were last told. False: why is on the board. */
bool perf_await(struct perf_run *run, enum perf_side_id side, uint64_t timeout_ns);

/* ---- perf_floor.c ---- */
int perf_floor(int argc, char **argv);

/* ---- perf_crew.c ---- */

/* Starts the ranks of a side, and waits until they are ready. False: why is on the board. */
bool perf_crew_start(struct perf_run *run, enum perf_side_id side, uint64_t timeout_ns);

/* Whether one of them has ended, for whatever reason, which goes on the board. */
bool perf_crew_has_died(struct perf_run *run, enum perf_side_id side);

/* In good order, if they are in good order themselves. */
void perf_crew_stop(struct perf_run *run, enum perf_side_id side, bool good);

/* ---- perf_baseline.c ---- */

/* Starts the same exchange over MPI or NCCL, if that is there; `baseline.reason` says why it is not. */
void perf_baseline_start(struct perf_run *run);
void perf_baseline_stop(struct perf_run *run);

/* Goes on without it: it has failed. */
void perf_baseline_drop(struct perf_run *run);

/* Says why there is none. Always false. */
__attribute__((format(printf, 2, 3))) bool perf_baseline_refuse(struct perf_run *run, const char *format, ...);

/* ---- perf_mpi.c ---- */
void perf_mpi_start(struct perf_run *run);
void perf_mpi_stop(struct perf_run *run);
bool perf_mpi_has_ended(struct perf_run *run);

/* Whatever state it is in. Its first words that say something are left in `line`. */
void perf_mpi_end(struct perf_run *run, char *line, size_t bytes);

/* ---- perf_table.c ---- */
void perf_print_header(const struct perf_run *run);
void perf_print_row(const struct perf_run *run, const struct perf_series *series, int32_t count,
                    const struct perf_figures *figures);
void perf_print_footer(const struct perf_run *run);

#endif
