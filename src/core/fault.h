// SPDX-License-Identifier: Apache-2.0
/*
 * Fault points: named places in the shipped code where a test or the demo may have this process killed or stopped.
 * Setting MUSTER_FAULT="POINT:SIGNAL[:COUNT]" (COUNT-th time the point is reached; default 1; SIGNAL is KILL, STOP, or
 * NONE to only record) arms one point; with MUSTER_FAULT_LIST=FD every point reached is reported once on that file
 * descriptor as a line. An unarmed point costs one load and one branch.
 */
#ifndef CORE_FAULT_H
#define CORE_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>

enum fault_point {
    FAULT_NONE,
    FAULT_STEP_BEGUN,
    FAULT_DISPATCH_ENTRY,
    FAULT_DISPATCH_ROW, /* after the first row was stored, before the others */
    FAULT_DISPATCH_BEFORE_FLAG, /* all payload stored, no flag yet */
    FAULT_DISPATCH_BETWEEN_FLAGS, /* one peer has its flag, the next has not */
    FAULT_DISPATCH_SENT,
    FAULT_DISPATCH_WAITED, /* flags seen, rows not read yet */
    FAULT_DISPATCH_DONE,
    FAULT_COMBINE_ENTRY,
    FAULT_COMBINE_ROW,
    FAULT_COMBINE_BEFORE_FLAG,
    FAULT_COMBINE_BETWEEN_FLAGS,
    FAULT_COMBINE_SENT,
    FAULT_COMBINE_WAITED,
    FAULT_COMBINE_DONE,
    FAULT_STEP_ENDED,
    FAULT_VIEW_PROPOSED, /* the proposal was sent to the store */
    FAULT_VIEW_RAISED, /* the live epoch was raised, nothing acknowledged yet */
    FAULT_VIEW_ACKNOWLEDGED, /* acknowledged, not committed */
    FAULT_VIEW_COMMITTING, /* the commit was sent to the store */
    FAULT_VIEW_INSTALLED, /* installed, not ready */
    FAULT_VIEW_READY, /* ready was published */
    FAULT_VIEW_BEGUN, /* every member is ready; the caller does not know it yet */
    FAULT_POINTS,
};

/* The name used in MUSTER_FAULT, for example "dispatch.before_flag". */
const char *fault_name(enum fault_point point);

/* Reads MUSTER_FAULT and MUSTER_FAULT_LIST; called once, when the first group is created. */
void fault_configure(void);

/* Arms a point at run time (the engine's --kill does): the count-th time from now. signal 0 disarms. */
void fault_arm(enum fault_point point, int signal, unsigned count);

/* Calls `fired` right before the signal of an armed point is sent, on the thread that reached it; NULL: nobody. */
void fault_observe(void (*fired)(enum fault_point point));

extern _Atomic bool fault_active;
void fault_reached(enum fault_point point);

static inline void fault_here(enum fault_point point)
{
    if (__builtin_expect(atomic_load_explicit(&fault_active, memory_order_relaxed), 0))
        fault_reached(point);
}

#endif
