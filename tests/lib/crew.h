// SPDX-License-Identifier: Apache-2.0
/*
 * A crew: the ranks of one trial as real processes, and the store that their parent hosts. The parent has one thread
 * and one event loop, so it decides when the store answers.
 */
#ifndef LIB_CREW_H
#define LIB_CREW_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/world.h"

enum {
    CREW_MAX = 8,
    CREW_MESSAGE = 512,
    CREW_OPERATION_MS = 200, /* the deadlines, before they are stretched */
    CREW_STEP_MS = 600,
    CREW_START_MS = 1500,
    CREW_EPOCHS = 64,
};

/* The kinds of exchange that trials take turns with; any number is a case. */
const struct exchange_case *crew_case(int number);

struct crew_member {
    pid_t pid; /* 0: not running */
    int link; /* messages both ways */
    int list; /* names of the fault points that it reached */
    bool created, armed, stopped;
    int exit_status; /* as waitpid() gives it, when it has ended */
    bool exited;
    uint32_t good_epoch; /* of its last "good" */
    uint64_t good_mask;
    uint64_t reached; /* bit p: fault point p */
    char said[CREW_MESSAGE]; /* its last words: "ended ..." or "wrong ..." */
};

struct crew {
    int ranks;
    int stretch; /* of the ranks' deadlines */
    struct store_server *server;
    const char *program;
    uint64_t store_pause_ns; /* the store answers only this often; 0: at once */
    int favourite; /* then this rank has the first turn after each answer: those below it are held this long */
    int hold_ms;
    uint64_t store_next_ns;
    struct crew_member member[CREW_MAX];
    int epochs;
    struct {
        uint32_t epoch;
        uint64_t mask;
    } view[CREW_EPOCHS]; /* every epoch that somebody had a good step in */
    char why[1024]; /* the first thing that was wrong; "" = nothing */
};

bool crew_open(struct crew *crew, int ranks, const char *program, int stretch);

/* Ends what still runs, and frees everything. False if something is left that should not be. */
bool crew_close(struct crew *crew);

/* Starts a rank. `fault`: MUSTER_FAULT for it, or NULL. */
bool crew_start(struct crew *crew, int rank, int case_number, const char *fault, bool manual);

void crew_tell(struct crew *crew, int rank, const char *text);
void crew_signal(struct crew *crew, int rank, int signal);

/* Notes the first failure. Returns false. */
__attribute__((format(printf, 2, 3))) bool crew_fail(struct crew *crew, const char *format, ...);

/*
 * Serves the store and hears the ranks until `done`, or something is wrong, or the time is up, of which what the machine
 * takes is no part (pace_over). Returns whether it was done.
 */
typedef bool crew_condition(const struct crew *crew, void *context);
bool crew_await(struct crew *crew, crew_condition *done, void *context, int limit_ms);

/* Serves for that long at least. */
void crew_serve(struct crew *crew, int ms);

/* A rank ended by a signal, or by itself with a status. */
bool crew_was_killed(const struct crew *crew, int rank);
bool crew_exited_with(const struct crew *crew, int rank, int status);

#endif
