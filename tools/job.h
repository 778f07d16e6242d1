// SPDX-License-Identifier: Apache-2.0
/* One served run: starts workers, hosts their store, routes requests to them, and notes what happens and when. */
#ifndef TOOLS_JOB_H
#define TOOLS_JOB_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "router.h"

enum { JOB_MAX_FAULTS = 8, JOB_MAX_NOTES = 4096, JOB_MAX_EVENTS = 64, JOB_EVENT_BYTES = 96 };

/* A signal that a rank sends itself, between the first store of a dispatch and its flags. */
struct job_fault {
    int32_t rank, layer;
    uint64_t step; /* of that rank, counted from 1 */
    int signal; /* SIGKILL or SIGSTOP */
    /* Filled in by the run; 0: did not happen. CLOCK_MONOTONIC. */
    uint64_t fired_ns, detected_ns, agreed_ns, resumed_ns;
};

struct job_plan {
    const char *program; /* the tool itself */
    const char *model_dir;
    int32_t ranks, slots_per_rank, batch;
    const char *trace_dir; /* NULL: none; each rank writes R.json there at its end */
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
    uint64_t ns, end_ns;
};

struct job_rank {
    pid_t pid; /* 0: has ended */
    int status; /* of waitpid, once it has ended */
    bool alive;
    uint64_t first_trouble_ns; /* the store found it dead, or was asked to kill it */
    uint64_t routes, remote_routes, experts_loaded, steps;
    uint32_t epoch;
};

struct job {
    struct job_plan plan;
    struct router router; /* add the requests before job_run() */
    struct job_fault *fault;
    int32_t faults;
    struct job_rank rank[ROUTER_MAX_RANKS];
    struct job_note note[JOB_MAX_NOTES];
    int32_t notes;
    uint64_t started_ns, first_token_ns, ended_ns;
    uint32_t served_epoch; /* when the last token had come; leaving makes further epochs */
    int32_t events; /* all that happened; the newest JOB_MAX_EVENTS are kept */
    struct {
        uint64_t ns;
        char text[JOB_EVENT_BYTES];
    } event[JOB_MAX_EVENTS];
    struct store_server *server;
};

extern volatile sig_atomic_t job_interrupted; /* set by a signal handler: end the run soon */

void job_init(struct job *job, const struct job_plan *plan);

/*
 * Runs to the end: every token has come, or no rank is left, or the time is up, or job_interrupted. Whatever happens, no
 * process of it is left behind. True if every token has come.
 */
bool job_run(struct job *job);

int32_t job_alive(const struct job *job);
uint32_t job_epoch(const struct job *job);
uint64_t job_remote_routes(const struct job *job);
uint64_t job_experts_loaded(const struct job *job);
/* The longest that a rank took to load what it lacked after a fault, in ms; 0: nothing was loaded. */
double job_weights_ms(const struct job *job);

#endif
