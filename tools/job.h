// SPDX-License-Identifier: Apache-2.0
/* One served run: starts workers, hosts their store, routes requests to them, and notes what happens and when. */
#ifndef TOOLS_JOB_H
#define TOOLS_JOB_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "muster/group.h"
#include "router.h"

enum { JOB_MAX_FAULTS = 8, JOB_MAX_NOTES = 4096, JOB_MAX_EVENTS = 256, JOB_EVENT_BYTES = 96 };

/* A signal that a rank sends itself, between the first store of a dispatch and its flags. */
struct job_fault {
    int32_t rank, layer;
    uint64_t step; /* of that rank, counted from 1 */
    int signal; /* SIGKILL or SIGSTOP */
    /* Filled in by the run; 0: did not happen. CLOCK_MONOTONIC. */
    uint64_t fired_ns; /* the rank was about to signal itself */
    uint64_t detected_ns; /* the store saw it dead, or was asked to kill it */
    uint64_t agreed_ns; /* the last survivor had installed a view without it */
    uint64_t resumed_ns; /* the last survivor had finished a good step in such a view */
};

struct job_plan {
    const char *program; /* the tool itself */
    const char *model_dir;
    int32_t ranks, slots_per_rank, batch;
    bool trace; /* each rank that reaches its end leaves its trace in job_rank.trace */
    uint64_t limit_ns; /* of the whole run */
    void (*show)(void *context); /* called about ten times a second; may be NULL */
    void *context;
};

/* What a rank said: a view installed, experts loaded, the first good step of an epoch. */
struct job_note {
    enum channel_type type;
    int32_t rank;
    uint32_t epoch;
    int32_t value;
    muster_mask mask;
    uint64_t ns, end_ns;
};

struct job_rank {
    pid_t pid; /* 0: has ended */
    int status; /* of waitpid, once it has ended */
    uint64_t first_trouble_ns; /* the store found it dead, or was asked to kill it */
    uint64_t routes, remote_routes, experts_loaded, steps;
    uint32_t epoch;
    int trace; /* a memory file, or -1 */
};

/* The newest JOB_MAX_EVENTS of what happened, as lines. */
struct job_event {
    uint64_t ns; /* CLOCK_MONOTONIC */
    char text[JOB_EVENT_BYTES];
};

struct job {
    struct job_plan plan;
    struct router router; /* add the requests before job_run() */
    struct job_fault *fault;
    int32_t faults;
    struct job_rank rank[ROUTER_MAX_RANKS];
    struct job_note note[JOB_MAX_NOTES];
    int32_t notes;
    uint64_t started_ns, first_token_ns, last_token_ns;
    bool leaving; /* the ranks have been told to leave: what comes now is no part of the run */
    /* As it was when the last token had come and the last fault was got over; leaving makes further epochs. */
    uint32_t served_epoch;
    int32_t served_alive;
    int32_t disorderly; /* ranks that did not leave with status 0, those that a fault hit aside */
    int32_t events; /* all that happened */
    struct job_event event[JOB_MAX_EVENTS];
    struct store_server *server;
};

extern volatile sig_atomic_t job_interrupted; /* set by a signal handler: end the run soon */

void job_init(struct job *job, const struct job_plan *plan);

/*
 * Runs to the end: every token has come and every fault has been got over, or no rank is left, or the time is up, or
 * job_interrupted. Whatever happens, no process of it is left behind. True if every token has come.
 */
bool job_run(struct job *job);

/* Closes what outlives the run: the traces. */
void job_close(struct job *job);

uint32_t job_epoch(const struct job *job);
uint64_t job_remote_routes(const struct job *job);
uint64_t job_experts_loaded(const struct job *job);

/* ---- job_faults.c: what came of the faults ---- */

/* A rank is about to signal itself. NULL: none was planned for it, or it has happened already. */
const struct job_fault *job_fault_fired(struct job *job, int32_t rank, uint64_t ns);

/* Works out the times of the faults from what was noted. True if every fault that happened has been got over. */
bool job_faults_settle(struct job *job);

/* Whether no fault has hit the rank. */
bool job_spared(const struct job *job, int32_t rank);

/* The longest that a rank took to load what it lacked after a fault, in ms; 0: nothing was loaded. */
double job_weights_ms(const struct job *job);

#endif
