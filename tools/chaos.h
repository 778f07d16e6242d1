// SPDX-License-Identifier: Apache-2.0
/* `muster chaos`: its options, its campaign, and what it prints. */
#ifndef TOOLS_CHAOS_H
#define TOOLS_CHAOS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "chaos_board.h"
#include "control/store_server.h"

enum { CHAOS_MAX_TRIALS = 100000, CHAOS_REASON_BYTES = 800 };

struct chaos_options {
    struct chaos_shape shape;
    int32_t devices, multiprocessors; /* of GPUs; 0 on the CPU */
    int32_t trials;
    int32_t kind_count;
    enum chaos_kind kind[CHAOS_KINDS]; /* taken in turn */
    bool json;
};

/* What is to happen in one trial; all of it follows from the seed. */
struct chaos_plan {
    int32_t number; /* from 0 */
    enum chaos_kind kind;
    int32_t victim;
    bool graph;
    int32_t pair; /* of a step: where a hang, or a death between dispatch and combine, has its place */
    uint64_t delay_ns;
};

enum chaos_end { CHAOS_GOOD, CHAOS_ERRED, CHAOS_HANGS };

/* What a trial came to. */
struct chaos_outcome {
    enum chaos_end end;
    double detect_ms, agree_ms, resume_ms; /* if it ended well */
    uint64_t steps, voids; /* good and void ones of survivors, from the trial before until the victim was back */
    uint64_t wrong; /* bytes of good steps */
    int32_t expelled; /* ranks that were left out though nothing was done to them */
    char why[CHAOS_REASON_BYTES]; /* if it did not end well */
};

/* The ranks, as processes, and their store. */
struct chaos_crew {
    const struct chaos_options *options;
    struct chaos_board *board;
    int board_fd;
    int log_fd; /* what becomes the ranks' stderr; -1: ours */
    struct store_server *server;
    pid_t pid[MUSTER_MAX_RANKS]; /* 0: does not run */
    int32_t victim; /* may die, in whatever way; -1: nobody may */
    int32_t expelled; /* others that the group has left out; taken by the trial */
    uint64_t wrong; /* bytes, of ranks whose seat has a new process since; taken by the trial */
    bool failed; /* a rank has given up, or died of something else */
    enum chaos_end end; /* in which way */
    char why[CHAOS_REASON_BYTES];
};

/* What came of all trials of a kind, or of all kinds. */
struct chaos_tally {
    int32_t trials, errors, hangs, expelled;
    uint64_t steps, voids, wrong;
    int32_t times; /* trials that ended well */
    double *detect_ms, *agree_ms, *resume_ms; /* [times], room for all */
};

/* ---- chaos_options.c ---- */
void chaos_parse(int argc, char **argv, bool gpu, struct chaos_options *options);

/* ---- chaos_crew.c ---- */

/* A store and a board, and nobody there yet. False: `why`. */
bool chaos_crew_open(struct chaos_crew *crew, const struct chaos_options *options);

/*
 * Lets all ranks leave, if in_order; kills who does not, and frees everything. False if one should have left in good order
 * and did not: `why`.
 */
bool chaos_crew_close(struct chaos_crew *crew, bool in_order);

/* Starts every rank that does not run, as a new process. */
bool chaos_crew_start(struct chaos_crew *crew);

bool chaos_crew_runs(const struct chaos_crew *crew, int32_t rank);
bool chaos_crew_all_run(const struct chaos_crew *crew);

/*
 * Watches the ranks until `done` is true of all of `who` that run, and at least one does; or somebody fails, or the time
 * is up.
 */
typedef bool chaos_condition(const struct chaos_seat *seat);
bool chaos_crew_await(struct chaos_crew *crew, chaos_condition *done, muster_mask who, uint64_t timeout_ns);

/* Until the rank's process has exited. */
bool chaos_crew_await_exit(struct chaos_crew *crew, int32_t rank, uint64_t timeout_ns);

/* Notes the first failure. False. */
__attribute__((format(printf, 3, 4))) bool chaos_crew_fail(struct chaos_crew *crew, enum chaos_end end,
                                                           const char *format, ...);

/* ... that something was waited for in vain: says of everybody what it is doing. */
bool chaos_crew_fail_late(struct chaos_crew *crew, const char *what);

/* ---- chaos_trial.c ---- */

/* Starts who does not run, until everybody has had a part in an exact step. False: crew->why. */
bool chaos_trial_gather(struct chaos_crew *crew);

/* Everybody has been well; afterwards everybody is again, if it ended well. */
void chaos_trial_run(struct chaos_crew *crew, const struct chaos_plan *plan, struct chaos_outcome *outcome);

/* ---- chaos_campaign.c ---- */

/* All trials, and what is printed. The exit status. */
int chaos_campaign_run(const struct chaos_options *options);

/* ---- chaos_table.c ---- */

/* One line that is written over, on stderr if that is a terminal. `text` NULL: takes it away. */
void chaos_print_progress(const struct chaos_options *options, const struct chaos_plan *plan,
                          const struct chaos_tally *all);
void chaos_print_header(const struct chaos_options *options);

/* `name`: of the kind, or "all". Sorts the times. */
void chaos_print_row(const struct chaos_options *options, const char *name, struct chaos_tally *tally);

#endif
