// SPDX-License-Identifier: Apache-2.0
/*
 * The board of a campaign of faults: shared memory through which the supervisor tells the ranks what to do, and they
 * tell what has become of them. Whoever writes here may be killed in the middle, so each word stands for itself; the
 * supervisor looks again and again, and no rank ever waits for the board.
 */
#ifndef TOOLS_CHAOS_BOARD_H
#define TOOLS_CHAOS_BOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "muster/group.h"

enum { CHAOS_WHY_BYTES = 400 };

/* What happens to the victim of a trial. */
enum chaos_kind {
    CHAOS_KILL, /* SIGKILL, anywhere */
    CHAOS_STOP, /* SIGSTOP, anywhere: it must be suspected and fenced */
    CHAOS_HANG, /* does not come to a dispatch: before it lies a kernel that never ends */
    CHAOS_BETWEEN, /* SIGKILL after a dispatch and before its combine is enqueued */
    CHAOS_KINDS,
};

const char *chaos_kind_name(enum chaos_kind kind);

/* What is exchanged, and how: the same for all ranks and for the whole campaign. */
struct chaos_shape {
    bool gpu;
    int32_t ranks, tokens, hidden, topk;
    int32_t slots; /* experts of a rank */
    int32_t timeout_ms; /* of an operation */
    uint64_t seed;
    bool spoil; /* rank 0 gets a byte wrong now and then: to see the check fail */
};

/* What a rank is doing, for whoever asks why it is late. */
enum chaos_at { CHAOS_AT_START, CHAOS_AT_READY, CHAOS_AT_STEP, CHAOS_AT_CHECK, CHAOS_AT_FAULT, CHAOS_AT_END };

const char *chaos_at_name(enum chaos_at at);

/* Why a rank gave up. */
enum chaos_failure { CHAOS_WELL, CHAOS_ERROR, CHAOS_HUNG };

/* One rank's. Times are clock_ns(), 0: not yet; the supervisor clears them, a rank sets them once. */
struct chaos_seat {
    _Alignas(64) _Atomic uint32_t
        fault; /* 1 + enum chaos_kind that the rank is to do to itself; 0: none. By the supervisor */
    _Atomic int32_t fault_pair; /* of the step, at which it does so */
    _Atomic uint64_t fault_ns; /* when it did */
    _Atomic uint64_t void_ns; /* first void verdict */
    _Atomic uint64_t view_ns; /* first view without the victim */
    _Atomic uint64_t good_ns; /* first good and right step without the victim */
    _Atomic uint64_t full_ns; /* first good and right step of all ranks */
    _Atomic uint64_t good_mask[2]; /* of the step at good_ns; written before it */
    _Atomic uint32_t good_epoch;
    _Atomic uint32_t at; /* enum chaos_at */
    _Atomic uint32_t epoch; /* of the last step */
    _Atomic uint64_t steps, voids; /* good and void ones; taken by the supervisor */
    _Atomic uint64_t wrong; /* bytes of good steps that were not what they should be */
    _Atomic uint32_t failure; /* enum chaos_failure; `why` is complete when it is set */
    char why[CHAOS_WHY_BYTES];
};

struct chaos_board {
    struct chaos_shape shape;
    uint64_t bytes;
    _Atomic bool finish; /* leave in good order */
    _Atomic bool graph; /* steps are replays of a captured graph, where the backend has that */
    _Atomic int32_t victim;
    struct chaos_seat seat[]; /* [ranks] */
};

/* In a memory file, which *fd holds; ranks open it by a path such as /proc/PID/fd/N. NULL with errno. */
struct chaos_board *chaos_board_create(const struct chaos_shape *shape, int *fd);
struct chaos_board *chaos_board_open(const char *path);
void chaos_board_close(struct chaos_board *board);

/* Before a process takes the seat. Nobody else holds it. */
void chaos_seat_clear(struct chaos_seat *seat);

/* The time of the first call since the word was cleared. */
void chaos_mark(_Atomic uint64_t *ns);

/* Gives up: keeps the first reason. */
__attribute__((format(printf, 3, 4))) void chaos_fail(struct chaos_seat *seat, enum chaos_failure failure,
                                                      const char *format, ...);

#endif
