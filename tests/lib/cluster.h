// SPDX-License-Identifier: Apache-2.0
/*
 * A cluster: ranks as threads of one process, over a store of their own. Each rank runs one function; a rank that hangs
 * is named, with the place where it is, and ends the test program.
 */
#ifndef LIB_CLUSTER_H
#define LIB_CLUSTER_H

#include <stdbool.h>

#include "muster/ep.h"

struct cluster;

struct cluster_rank {
    struct cluster *cluster;
    int rank;
    void *context; /* of cluster_run() */
    muster_group *group;
    uint32_t incarnation;
};

/* What a rank does with its group. The group is destroyed when every rank's function has returned. */
typedef void cluster_function(struct cluster_rank *self);

struct cluster_options {
    int ranks;
    int min_ranks; /* 0: 1 */
    uint64_t memory_bytes;
    uint64_t operation_timeout_us; /* 0: 20 s, so that a loaded machine fails no test of something else */
    uint64_t step_timeout_us; /* 0: 40 s */
    uint64_t start_timeout_us; /* 0: 60 s */
    int limit_s; /* of the whole run; 0: 120 s */
    /*
     * The shortest time on which something in the run hangs: a deadline that some rank is to miss, or a pause; 0: none. If
     * the run fails because the machine kept a rank waiting for a good part of it, it is made again with deadlines and
     * pauses that are longer (pace.h); `function` must then find everything as before.
     */
    int short_ms;
    int manual_ready;
    int no_fault_tolerance; /* devices only */
    int no_groups; /* the function creates its group itself, with cluster_join() */
    void (*on_wait)(void *context, const muster_wait_report *report);
};

/* Runs `function` on every rank. True when no rank failed an expectation; the first failure is printed. */
bool cluster_run(const struct cluster_options *options, cluster_function *function, void *context);

/* ---- for use inside a rank's function ---- */

/* Ends this rank's function, and the run with a failure, when `holds` is not true. */
__attribute__((format(printf, 2, 3))) void expect(bool holds, const char *format, ...);

/* The same for a status; what the library says about the error is printed too. `what` is also where a hang is seen. */
void expect_status(muster_status got, muster_status want, const char *what);

/* For what may fail because a rank, or a peer, came too late; no wrong data is such. Counts for short_ms. */
__attribute__((format(printf, 2, 3))) void expect_in_time(bool holds, const char *format, ...);

/* Which of the two is for a status that is not the wanted one: some are what a rank is told that came too late. */
typedef void expect_function(bool holds, const char *format, ...);
expect_function *expectation(muster_status got);

/* The deadlines of this run, in which those of the options may have been stretched. */
int cluster_operation_ms(const struct cluster_rank *self);
int cluster_step_ms(const struct cluster_rank *self);

/* How long to wait for what must come. */
int cluster_patience_ms(const struct cluster_rank *self);

/* Gives others time for what cannot be seen from here; as much longer as the deadlines are. */
void cluster_pause_ms(const struct cluster_rank *self, int ms);

/* Says where this rank is, in case that it hangs. `place` must stay valid. */
void cluster_at(const char *place);

/* A group configuration of this cluster: rank, ranks, memory, timeouts, store. */
muster_group_config cluster_config(struct cluster_rank *self);

/* Creates the rank's group (again, after cluster_part): a new connection, and so a new incarnation. */
muster_status cluster_join(struct cluster_rank *self, const muster_group_config *config);

/* Waits until every rank that still takes part has come here. */
void cluster_barrier(struct cluster_rank *self);

/*
 * The rank dies: its connection closes and it counts as exited; it takes no further part, barriers included. Its group
 * is destroyed at the end of the run. Does not return.
 */
__attribute__((noreturn)) void cluster_die(struct cluster_rank *self);

/* The same for a rank that comes back: destroys the group, so that cluster_join() can follow. */
void cluster_part(struct cluster_rank *self);

/* The rank's connection closes, and it does not count as exited before cluster_fence(). */
void cluster_cut(struct cluster_rank *self);

/* Lets (rank, incarnation) count as exited, for a suspect whose thread is known to stand still. */
void cluster_fence(struct cluster *cluster, int rank, uint32_t incarnation);

void cluster_sleep_ms(int ms);

/* Waits for a ready view with `active` ranks and an epoch above `after`; fails the rank if it never comes. */
muster_view cluster_await_view(struct cluster_rank *self, int active, uint32_t after);

/* Waits until a view newer than this epoch is installed: nothing of the epoch can succeed from then on, on any rank. */
void cluster_await_end(struct cluster_rank *self, uint32_t epoch);

/* Reads the oldest verdict, which must be queued, or come of what was enqueued on the rank's stream. */
muster_verdict cluster_verdict(struct cluster_rank *self);

#endif
