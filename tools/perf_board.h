// SPDX-License-Identifier: Apache-2.0
/*
 * The board of a measurement: shared memory through which `muster perf` tells the ranks what to do, and they tell what
 * it took. The ranks of the library and those of a baseline use it in the same way, so that both are started, aligned,
 * timed and checked by the same code.
 */
#ifndef TOOLS_PERF_BOARD_H
#define TOOLS_PERF_BOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "muster/group.h"

enum { PERF_MAX_TOKEN_COUNTS = 16, PERF_MAX_HIDDEN = 65536, PERF_WHY_BYTES = 400, PERF_NAME_BYTES = 64 };
enum { PERF_HANDLE_BYTES = 64, PERF_LINK_ROUNDS = 8, PERF_MEETING_BYTES = 128 };

/*
 * Who exchanges: the library, also without fault tolerance, and what it is compared with. Each side has ranks of its own;
 * one side works at a time, the others sleep.
 */
enum perf_side_id { PERF_LIBRARY, PERF_UNCHECKED, PERF_MPI, PERF_NCCL, PERF_SIDES };

/* What the elements of rows are. */
enum perf_type { PERF_BF16, PERF_FP16, PERF_FP32 };

/* What is exchanged: the same for all ranks and for the whole run. */
struct perf_shape {
    int32_t ranks, hidden, topk, experts;
    int32_t slots; /* experts of a rank; expert e is slot e % slots of rank e / slots */
    enum perf_type type;
    int32_t quantise, quantise_return, layout, combine; /* as in muster/ep.h */
    int32_t token_counts;
    int32_t tokens[PERF_MAX_TOKEN_COUNTS]; /* of each rank, one count after the other */
    int32_t cores; /* that the ranks may use */
    bool cuda; /* rank r on GPU r; otherwise on the host */
    bool flush; /* cuda: the second-level cache is overwritten between pairs */
    bool no_fault_tolerance; /* cuda */
    uint64_t seed;
    bool check; /* what comes is compared with what should */
    bool copy; /* between dispatch and combine each row received is copied to where its result belongs */
    bool spoil; /* rank 0 gets one value wrong: to see the check fail */
};

/* One block of iterations, or one of the first two. */
struct perf_order {
    bool finish; /* leave */
    bool link; /* measure the links */
    bool serve; /* what comes is checked, and results made of it; otherwise those of an earlier block are there still */
    bool in_place; /* rows are used and results written where they lie in the library's memory */
    int32_t count; /* index into perf_shape.tokens */
    int32_t warmup, iterations;
};

/* What one iteration took on one rank. */
struct perf_sample {
    uint32_t dispatch_ns, combine_ns;
    uint32_t pair_ns; /* both, and what lies in between */
};

/* Every word that other ranks wait for has a cache line of its own. */
struct perf_word {
    _Alignas(64) _Atomic uint32_t value;
};

struct perf_mailbox {
    struct perf_word number; /* of the newest order; futex */
    struct perf_order order; /* written while no rank of the side works */
    struct perf_word arrived; /* how often ranks came to the barrier, in all */
    _Atomic uint64_t wrong; /* values that were not what they should be, in this order */
    uint64_t
        exchange_bytes[PERF_MAX_TOKEN_COUNTS]; /* memory of a rank for this; written by rank 0, like the next two */
    int32_t multiprocessors; /* cuda: that an operation may use */
    char name[PERF_NAME_BYTES]; /* of what exchanges, and its version; written by rank 0 */
};

/* How the ranks measure their links, and what it took: see perf_link.h. */
struct perf_link {
    unsigned char handle[MUSTER_MAX_RANKS][PERF_HANDLE_BYTES]; /* of the memory that others copy into */
    uint32_t round_ns[MUSTER_MAX_RANKS][PERF_LINK_ROUNDS];
    _Atomic bool refused;
    char why[PERF_WHY_BYTES]; /* of the first refusal, complete after the next alignment */
};

/* How ranks of NCCL find each other: written by rank 0. */
struct perf_meeting {
    unsigned char id[PERF_MEETING_BYTES];
    _Atomic bool known;
};

struct perf_board {
    struct perf_shape shape;
    struct perf_link link;
    struct perf_meeting meeting;
    uint64_t bytes;
    int32_t samples; /* room for each rank */
    struct perf_word done; /* ranks that have done their order, or are ready for the first; futex */
    _Atomic bool failed;
    char why[PERF_WHY_BYTES]; /* of the first failure, complete when `failed` is set */
    _Atomic bool why_taken;
    struct perf_mailbox mailbox[PERF_SIDES];
    struct perf_sample sample[]; /* [ranks][samples] of the side that has worked last */
};

/*
 * A board in a memory file. *fd stays open, and locked, for as long as this process measures: that is how ranks find the
 * board, and how they see that this process has died. NULL with errno.
 */
struct perf_board *perf_board_create(const struct perf_shape *shape, int32_t samples, int *fd);

/* For a rank: the board behind a path such as /proc/PID/fd/N. *fd stays open, for perf_board_take(). NULL with errno. */
struct perf_board *perf_board_open(const char *path, int *fd);
void perf_board_close(struct perf_board *board);

struct perf_sample *perf_board_samples(struct perf_board *board, int32_t rank);

/* ---- for the one who measures ---- */

/* The ranks of a side are about to be started: perf_board_await() then waits until they are ready. No failure yet. */
void perf_board_expect(struct perf_board *board);

/* Gives all ranks of a side something to do. They have done what they were told before. */
void perf_board_tell(struct perf_board *board, enum perf_side_id side, const struct perf_order *order);

/* Sleeps until all ranks of the side are done, or one has failed, or the time is up. True: all are done, and well. */
bool perf_board_await(struct perf_board *board, uint64_t timeout_ns);

/* ---- for the ranks ---- */

/* Done with the order before, or ready for the first. */
void perf_board_done(struct perf_board *board);

/*
 * Sleeps until there is an order newer than *number, and takes it. If the one who measures is gone, the order is to
 * finish.
 */
void perf_board_take(struct perf_board *board, int fd, enum perf_side_id side, uint32_t *number,
                     struct perf_order *order);

/*
 * Waits for all ranks of the side, the *round-th time: polls where every rank has a core, otherwise gives its core away.
 * False: not all came within ten seconds, or one has failed.
 */
bool perf_board_align(struct perf_board *board, enum perf_side_id side, uint32_t *round);

/* Keeps the first failure's reason. */
__attribute__((format(printf, 2, 3))) void perf_board_fail(struct perf_board *board, const char *format, ...);

#endif
