// SPDX-License-Identifier: Apache-2.0
/* Status codes, and the sentence that belongs to the last one. */
#ifndef MUSTER_STATUS_H
#define MUSTER_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MUSTER_API __attribute__((visibility("default")))
#else
#define MUSTER_API
#endif

/*
 * 0 is success, every error is negative, and the values never change. They are grouped by what is broken, from the
 * smallest to the largest: after an argument or order error nothing was touched and the caller may go on, but a step that
 * is open lacks the operation that was refused, and is void; after a peer error the step is void and the group goes on;
 * after a group error this handle only serves to be destroyed.
 */
typedef enum muster_status {
    MUSTER_OK = 0,

    /* The argument: nothing was touched. An operation that was refused within a step makes that step void. */
    MUSTER_ERR_ARGUMENT = -1, /* a value out of range, a wrong shape or type, overlapping memory */
    MUSTER_ERR_UNSUPPORTED = -2, /* a valid request that this build or backend does not serve */

    /* The order of calls: nothing was touched. Within a step as above. */
    MUSTER_ERR_ORDER = -10, /* this call is not allowed now: for example combine without a dispatch */
    MUSTER_ERR_VOID = -11, /* the step is void: the operation did nothing */
    MUSTER_ERR_AGAIN = -12, /* not yet: for example no verdict is queued, or a view is being agreed */

    /* Capacity. */
    MUSTER_ERR_CAPACITY = -20, /* fewer ranks than min_ranks are left, or experts have no slot */
    MUSTER_ERR_MEMORY = -21, /* symmetric or ordinary memory is used up */
    MUSTER_ERR_EXHAUSTED = -22, /* the epoch numbers of this group are used up */

    /* A peer: the step is void, the group goes on. */
    MUSTER_ERR_TIMEOUT = -30, /* a peer did not answer before the deadline */
    MUSTER_ERR_PEER = -31, /* a peer died or refused its part: the epoch has ended */
    MUSTER_ERR_UNFENCED = -32, /* a suspect could not be made to exit before the deadline */

    /* The group, for this rank. */
    MUSTER_ERR_MISMATCH = -40, /* the ranks were configured differently */
    MUSTER_ERR_STORE = -41, /* the store is gone, is another one, or has forgotten us */
    MUSTER_ERR_EVICTED = -42, /* the others went on without this rank */
    MUSTER_ERR_LEFT = -43, /* this rank has left */

    /* The process. */
    MUSTER_ERR_SYSTEM = -60, /* a system call failed that must not */
    MUSTER_ERR_FORKED = -61, /* the handle belongs to the parent process */
} muster_status;

/* The name of a status, for example "MUSTER_ERR_TIMEOUT". Never NULL. Any thread. */
MUSTER_API const char *muster_status_name(muster_status status);

/* One sentence that says what the status means. Never NULL. Any thread. */
MUSTER_API const char *muster_status_text(muster_status status);

/*
 * What went wrong in the last call of this thread that failed, and what to do about it: argument, limit, rank, phase,
 * epoch. Valid until the thread's next failing call; "" when none failed. Never NULL. Any thread.
 */
MUSTER_API const char *muster_last_error(void);

/* The version of the library that is loaded, for example "0.1.0". Any thread. */
MUSTER_API const char *muster_version(void);

#ifdef __cplusplus
}
#endif
#endif
