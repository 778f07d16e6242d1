// SPDX-License-Identifier: Apache-2.0
/*
 * The watchdog: notices operations that last longer than their deadline and says so. First in, first out; the flags
 * themselves say what is complete, and the stamp waited for carries the epoch and sequence of the workspace, so there
 * is no second generation counter that could drift. It reports and never changes membership.
 */
#ifndef CONTROL_WATCHDOG_H
#define CONTROL_WATCHDOG_H

#include <stdatomic.h>
#include <stdint.h>

#include "control/group.h"

enum { WATCHDOG_OPERATIONS = 64 };

struct watchdog_operation {
    const struct group_child *child;
    muster_phase phase;
    uint64_t stamp;
    muster_mask mask;
    uint64_t start_ns;
};

/* One writer (the caller's thread), one reader (the agent's). */
struct watchdog {
    struct watchdog_operation ring[WATCHDOG_OPERATIONS];
    _Atomic uint64_t pushed, popped;
    uint64_t reported; /* 1 + index of the newest operation that was reported */
    uint64_t since_ns; /* no operation counts from before this: see watchdog_restart() */
};

/* Adds an operation; when the ring is full it is not watched (the kernel's own deadline still holds). */
void watchdog_push(struct watchdog *w, const struct watchdog_operation *operation);

/*
 * Drops what is complete; fills *report and returns true when the oldest operation is overdue and was not reported
 * yet. *next_ns: when to look again. Call with the lock that protects children.
 */
bool watchdog_poll(struct watchdog *w, uint64_t now_ns, uint64_t timeout_ns, uint32_t live_epoch,
                   muster_wait_report *report, uint64_t *next_ns);

/* This process did not run until now: what operations have lasted does not count. The thread that polls. */
void watchdog_restart(struct watchdog *w, uint64_t now_ns);

/* Drops the operations of a child that goes away. Call with the lock that protects children. */
void watchdog_forget(struct watchdog *w, const struct group_child *child);

#endif
