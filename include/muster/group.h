// SPDX-License-Identifier: Apache-2.0
/* Groups, views and steps: who is here, and what a step's results are worth. */
#ifndef MUSTER_GROUP_H
#define MUSTER_GROUP_H

#include <stddef.h>
#include <stdint.h>

#include "muster/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MUSTER_MAX_RANKS 128

/*
 * The ranks that communicate. Children (exchanges) hold their group: destroy them first. A store serves one group, in which
 * a process is a rank once: a second group of the process there is created when the first one has been destroyed. To a
 * forked child its parent's handles are of no use: every call returns FORKED at once, whatever the parent's threads did.
 */
typedef struct muster_group muster_group;

/* A set of ranks: bit r of the 128 is rank r. */
typedef struct muster_mask {
    uint64_t word[2];
} muster_mask;

/* Who is here. All members agree on it; epochs only grow, and one epoch never has two masks. */
typedef struct muster_view {
    uint32_t epoch; /* 1..2^24-2; 0 while no view has been committed */
    int32_t ranks; /* size of the group: rank numbers are 0..ranks-1 */
    int32_t active; /* ranks in the mask */
    int32_t ready; /* 1 when every member is ready, that is, when steps of this epoch may begin */
    muster_mask mask;
    uint32_t incarnation[MUSTER_MAX_RANKS]; /* of each rank, counted from 1; 0 = never seen */
    /*
     * When it is ready, and 0 before: the least and the most of what its members have done, as each has said with
     * muster_group_set_progress(), or in good steps. So look at `ready` first: after muster_group_wait_ready() the next view may
     * have been installed already. A step may be good here and void there; so whoever is ahead of the
     * least goes back to it, and all work on the same again. The same on all members. A newcomer that has said nothing does
     * not count; 0 and 0 where nobody does.
     */
    uint64_t progress_least, progress_most;
} muster_view;

typedef enum muster_phase {
    MUSTER_PHASE_NONE = 0,
    MUSTER_PHASE_DISPATCH = 1,
    MUSTER_PHASE_COMBINE = 2,
    MUSTER_PHASE_STEP = 3,
} muster_phase;

/* Why a step is void. */
typedef enum muster_reason {
    MUSTER_REASON_NONE = 0,
    MUSTER_REASON_TIMEOUT = 1, /* a peer's flag did not come before the deadline */
    MUSTER_REASON_EPOCH = 2, /* the epoch ended: a rank died, left or joined, or an operation failed elsewhere */
    MUSTER_REASON_VALUE = 3, /* an id in the input is out of range, inactive or named twice */
    MUSTER_REASON_REFUSED = 4, /* a peer ended its step without its part of the operation */
    MUSTER_REASON_NOT_READY = 5, /* the step began before every member was ready for the new view */
    MUSTER_REASON_UNREAD = 6, /* the verdict of an earlier void step had not been read */
    MUSTER_REASON_ABORT = 7, /* muster_group_abort */
    MUSTER_REASON_LEFT_OUT = 8, /* masked mode: a peer went on without this rank, which was still reading its results */
    MUSTER_REASON_ARGUMENT = 9, /* an operation of the step was refused: its call says why, `phase` which it was */
} muster_reason;

/* What a step came to. */
typedef struct muster_verdict {
    uint64_t step; /* counted from 1 over the life of the handle */
    /*
     * MUSTER_OK: every result of the step on this rank is exact for `mask`; otherwise the step is void here. Ranks may differ
     * in that: see muster_view.progress_least.
     */
    muster_status status;
    muster_reason reason;
    muster_phase phase;
    int32_t peer; /* the rank that was waited for, or -1 */
    uint32_t epoch;
    muster_mask mask;
    int32_t token; /* MUSTER_REASON_VALUE, peer -1: which entry of topk_slots, or -1 if it was a mask; otherwise -1 */
    int32_t k;
} muster_verdict;

/*
 * What the watchdog sees when an operation lasts too long. It reports; it never changes who is a member. On the CPU
 * backend alone: it does not look into a device, where the verdict names the peer.
 */
typedef struct muster_wait_report {
    const char *operation; /* "ep" */
    muster_phase phase;
    uint64_t expected; /* the flag that each peer should have reached: epoch << 40 | sequence */
    uint64_t observed[MUSTER_MAX_RANKS]; /* what each rank's flag is now */
    muster_mask missing; /* active ranks whose flag is short */
    muster_mask waiting_for; /* what this rank's running kernel itself waits for now */
    uint64_t elapsed_us;
} muster_wait_report;

typedef enum muster_backend {
    MUSTER_BACKEND_CPU = 0, /* host shared memory */
    MUSTER_BACKEND_CUDA = 1, /* NVIDIA GPUs of one host that reach each other's memory; libmuster_cuda.so.0 is loaded */
} muster_backend;

/*
 * How a group is created. Start from MUSTER_GROUP_CONFIG_INIT. Fields marked (same) must be equal on all ranks; a
 * difference is MUSTER_ERR_MISMATCH and names the field and each rank's value.
 */
typedef struct muster_group_config {
    size_t size; /* sizeof(muster_group_config) */
    int32_t rank; /* -1: from the launcher's environment */
    int32_t ranks; /* (same) -1: from the launcher's environment */
    int32_t min_ranks; /* (same) below this the group stops with MUSTER_ERR_CAPACITY; default 1 */
    muster_backend backend; /* (same) */
    uint64_t memory_bytes; /* (same) symmetric memory per rank: the sum of muster_ep_memory_bytes(); at most 2^60 */
    /* Where the store is: "fd:N", "unix:@NAME" or, with commas, what to try in order; NULL: from the environment. */
    const char *store;
    /* Deadlines. Any length will do; one of more than 36 years never passes, UINT64_MAX for instance. */
    uint64_t operation_timeout_us; /* deadline of one wait; 0: setting MUSTER_OPERATION_TIMEOUT_US, 1 s */
    uint64_t step_timeout_us; /* deadline for a rank to begin its step or to get ready; 0: setting, 30 s */
    uint64_t start_timeout_us; /* deadline for all ranks to arrive; 0: setting, 60 s */
    /*
     * 0: a rank is ready for a new view as soon as the verdict of its void step, if any, has been read.
     * 1: it also waits for muster_group_ready(), for callers that must load weights first.
     */
    int32_t manual_ready;
    int32_t device; /* CUDA: device of this process; -1: the rank modulo their number */
    /*
     * (same) CUDA: 1 takes kernels without any check: they wait for ever, and are not called back when a view changes.
     * Promises 1 to 6 are then off. The CPU backend refuses it.
     */
    int32_t no_fault_tolerance;
    void (*on_view)(void *context, const muster_view *view); /* a view was installed; may be NULL */
    void (*on_wait)(void *context, const muster_wait_report *report); /* an operation is overdue; may be NULL */
    void *context; /* handed to the callbacks, which run on the agent's thread and must not block or call back */
} muster_group_config;

#define MUSTER_GROUP_CONFIG_INIT                                                                   \
    {                                                                                              \
        .size = sizeof(muster_group_config), .rank = -1, .ranks = -1, .min_ranks = 1, .device = -1 \
    }

/*
 * Groups with a device (MUSTER_BACKEND_CUDA).
 *
 * Streams. `stream` is a cudaStream_t of the group's device, which is the current device of the calling thread; NULL is
 * CUDA's default stream. A call that takes one enqueues and returns. Operations of a group are enqueued on one stream,
 * or on streams that the caller orders by events: those of a step run in the order begin, operations, end.
 *
 * Who decides. Whether a step may begin, for which epoch and mask, and how it ended, is decided on the device when the
 * stream comes to it. So calls find wrong arguments and calls out of order, and what a kernel finds (a bad id, a peer
 * that does not come, an epoch that has ended) is told by the verdict alone. A caller goes through the same calls in
 * either case: in a void step operations do nothing, and a pair that was begun still has to be ended. Only where a call
 * was refused do the calls know: those that follow in the step return VOID, and the step is ended next.
 *
 * Graphs. Calls that take a stream may be captured; other calls of this thread are made outside of capture. Every rank
 * captures the same operations in the same order, between whole pairs and steps. Token counts and addresses are frozen,
 * and nothing of a view is: a graph goes on to be right after a view change. Each launch runs the steps that were
 * captured, each with a number and a verdict of its own. The group and its exchanges outlive their graphs.
 *
 * Memory is taken from the device by muster_group_create() alone, and given back by muster_group_destroy().
 */

/*
 * Joins or founds the group. Blocks until a view with this rank in it is ready, at most start_timeout_us (the error
 * then names the ranks that are missing). One thread. On failure *group is untouched.
 * CPU: takes all pages of the symmetric memory, so that no step fails for want of one. Before it takes any it looks at what
 * the host and the memory cgroups of this process have left. MEMORY names the limit that is in the way, of this rank's own
 * memory or of mapping a peer's. Later, a rank that cannot map a newcomer's memory leaves, and its group ends with MEMORY.
 * CUDA: also opens the device, loads every kernel, and takes all memory that the group will ever need there; that may
 * wait for whatever the device is doing.
 * Errors: ARGUMENT (launchers that disagree on who this is, too), ORDER (this process has a group in that place of the
 * store already), UNSUPPORTED (there is no such backend, device or driver), MISMATCH, STORE, TIMEOUT, MEMORY, SYSTEM.
 */
MUSTER_API muster_status muster_group_create(const muster_group_config *config, muster_group **group);

/*
 * Leaves in good order: the others go on without this rank and count no fault. Waits until the members of the view have ended
 * the steps that this rank has ended, so that nobody loses its last one, and then for this rank's own kernels: each at most
 * operation_timeout_us. Afterwards only muster_group_destroy may be called.
 * CUDA: steps that the stream has not ended yet are called off, and void: to have them, wait for the stream first. Without
 * fault tolerance nothing can be called off, and the caller has to wait for the stream.
 */
MUSTER_API muster_status muster_group_leave(muster_group *group);

/*
 * Leaves, if that was not done, and frees everything. NULL is allowed; in a forked child it does nothing. CUDA: waits until
 * the device has nothing more to do, of the caller's work either.
 */
MUSTER_API void muster_group_destroy(muster_group *group);

/* This rank's number. Any thread. */
MUSTER_API int32_t muster_group_rank(const muster_group *group);

/* The installed view. Never blocks. Any thread. Errors: the group's sticky error, if it has one. */
MUSTER_API muster_status muster_group_view(const muster_group *group, muster_view *view);

/*
 * Blocks until the installed view is ready for steps, at most timeout_us (0: only looks; UINT64_MAX: for as long as it
 * takes). The caller's thread.
 * Errors: AGAIN when the time is up; the group's sticky error (CAPACITY, STORE, EVICTED, UNFENCED; MEMORY or
 * SYSTEM when a newcomer's memory could not be mapped).
 */
MUSTER_API muster_status muster_group_wait_ready(muster_group *group, uint64_t timeout_us);

/*
 * With manual_ready: says that this rank has what it needs (weights, caches) for the view with this epoch. Does not
 * block. Errors: ARGUMENT if the epoch is not the installed one; ORDER if a void step's verdict is unread.
 */
MUSTER_API muster_status muster_group_ready(muster_group *group, uint32_t epoch);

/*
 * Says how far this rank has come: the number of its batch, say. It is told to the others with this rank's readiness for
 * the next view, which it must be said before: before the verdict of the void step is read, or muster_group_ready()
 * is called; and in muster_view.progress_least all hear the least. Without it good steps are counted, and a rank
 * that was ahead counts on from the least. Once said, this rank's good steps are counted no more. Does not block. Any thread.
 * Errors: ARGUMENT (2^64 - 1 is not a number here); the group's sticky error.
 */
MUSTER_API muster_status muster_group_set_progress(muster_group *group, uint64_t progress);

/*
 * Ends the current epoch: this rank's open step becomes void, and so do those of other ranks that still have an
 * operation to do. A same-mask epoch follows. Any thread. It is not in the order of any stream: kernels that wait are
 * called back.
 */
MUSTER_API muster_status muster_group_abort(muster_group *group);

/*
 * Opens a step on this rank. A step is good or void as a whole: one in which a call was refused (ARGUMENT, UNSUPPORTED,
 * ORDER) is void too, with MUSTER_REASON_ARGUMENT. Every active rank opens the same steps in the same order. Does not
 * block. `stream` must be NULL on the CPU backend. Where no step can be good now (a view is being agreed, an unread
 * verdict) the step opens void and says so in its verdict; use muster_group_wait_ready() to wait instead.
 * CUDA: enqueued; the step takes the view that is in force when the stream comes to it. After an unread void verdict
 * the reason is that verdict's. Errors: ORDER (a step is open), the group's sticky error.
 */
MUSTER_API muster_status muster_step_begin(muster_group *group, void *stream);

/*
 * Closes the step and queues its verdict. Does not block. CUDA: enqueued; the verdict is there when the stream has come
 * to it, and covers all that was enqueued before. Errors: ORDER (no step is open; an exchange is half done: on CUDA
 * also in a void step, unless a call of it was refused), after which the step is open as before.
 */
MUSTER_API muster_status muster_step_end(muster_group *group, void *stream);

/*
 * Takes the oldest verdict from the queue (64 deep; step_begin fails with ORDER when it is full). Does not block.
 * Reading the verdict of a void step is what lets this rank take part in the next epoch.
 * CUDA: AGAIN until the stream has come to the step's end; whoever must know waits for the stream, or for an event
 * behind the step, first. The device keeps 1024 verdicts and overwrites the oldest: a reader that falls further behind
 * misses some, and sees that by their numbers.
 * Errors: AGAIN (none is queued).
 */
MUSTER_API muster_status muster_step_verdict(muster_group *group, muster_verdict *verdict);

#ifdef __cplusplus
}
#endif
#endif
