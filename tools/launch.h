// SPDX-License-Identifier: Apache-2.0
/*
 * What `muster run` does with its ranks: starts them, notes how they end, starts them again, ends them, and judges. The
 * loop around it (run.c) waits and passes output on; nothing here blocks.
 */
#ifndef TOOLS_LAUNCH_H
#define TOOLS_LAUNCH_H

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "control/store_server.h"
#include "muster/group.h"
#include "relay.h"

enum {
    LAUNCH_STREAMS = 2,
    LAUNCH_ENDED_BY_US = 1, /* exit status when the launcher ended the job */
    LAUNCH_OUTPUT_LOST = 1, /* exit status when all went well, but for what the ranks printed */
};

struct launch_options {
    int32_t ranks;
    int32_t min_ranks;
    uint32_t restarts; /* how often one rank is started again */
    uint64_t start_timeout_ns; /* 0: none */
    uint64_t grace_ns;
    bool prefix;
    char **program;
};

enum rank_state { RANK_ENDED /* or not started yet */, RANK_RUNNING, RANK_WAITING /* to be started again */ };

struct launch_rank {
    enum rank_state state;
    pid_t pid;
    uint32_t starts;
    uint32_t quick_deaths;
    uint64_t started_ns;
    uint64_t exited_ns;
    uint64_t start_at_ns; /* while waiting */
    int status; /* of its last process, as wait() gives it */
    uint32_t arrived_before; /* incarnation that had arrived when the process was started */
    _Atomic uint32_t arrived; /* the newest that has; the store's thread writes it */
    _Atomic(const char *) fault; /* why the store kills an incarnation whose process goes on; likewise */
    _Atomic uint32_t faulty; /* that incarnation; written behind its fault */
    struct relay_source source[LAUNCH_STREAMS];
};

struct launch {
    struct launch_options options;
    struct store_server *server;
    char store_name[48]; /* the abstract socket at which the store listens, too; "": it does not */
    int signals;
    sigset_t mask; /* that we were started with */
    struct relay_sink sink[LAUNCH_STREAMS];
    struct launch_rank rank[MUSTER_MAX_RANKS];

    uint64_t turned_ns; /* when the loop last came round */
    bool ending; /* the ranks have been asked to exit, or will be at ask_at_ns */
    uint64_t ask_at_ns; /* 0: they have been asked */
    uint64_t kill_at_ns; /* while ending */
    int ended_status; /* exit status that the reason for ending gives; 0: none */
    int finished; /* ranks that exited with 0 */
    int failed; /* ranks that died or failed and are not started again */
    int first_failure; /* first nonzero exit status of a rank */
    int first_signal;
    uint64_t hopeless_ns; /* since when ranks that create their group wait for one that has gone; 0: none does */
    bool told_losses; /* that output could not be written */
};

/* Starts the rank's next process. False: it cannot be started, which has been said. */
bool launch_start(struct launch *launch, int32_t rank);

/* Asks all ranks to exit and sets the time of their patience. `status`: what the exit status becomes. */
void launch_end(struct launch *launch, int signal, int status);

/* The same by SIGTERM, but not before they have had the time to say why they could not go on. */
void launch_end_soon(struct launch *launch, int status);

/* A signal that we were sent: the first is passed on; a second has no patience. */
void launch_signal(struct launch *launch, int signal);

/* Notes who has exited. */
void launch_reap(struct launch *launch);

/* The launcher did not run for about that long, and the ranks perhaps neither: no deadline counts that time. */
void launch_was_paused(struct launch *launch, uint64_t pause_ns);

/* Does what its time has come for: kills, new starts, late ranks. And when that is next. */
void launch_check(struct launch *launch);
int launch_wait_ms(const struct launch *launch);

/* Says, once, that what the ranks print cannot be written. */
void launch_tell_losses(struct launch *launch);

int launch_ranks_in(const struct launch *launch, enum rank_state state);
bool launch_streams_closed(const struct launch_rank *rank);

/* True when an ending job is not waited for any longer. */
bool launch_is_over(struct launch *launch);
int launch_status(const struct launch *launch);

#endif
