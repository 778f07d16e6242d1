// SPDX-License-Identifier: Apache-2.0
#include "control/watchdog.h"

#include <string.h>

void watchdog_push(struct watchdog *w, const struct watchdog_operation *operation)
{
    uint64_t pushed = atomic_load_explicit(&w->pushed, memory_order_relaxed);
    if (pushed - atomic_load_explicit(&w->popped, memory_order_acquire) >= WATCHDOG_OPERATIONS)
        return;
    w->ring[pushed % WATCHDOG_OPERATIONS] = *operation;
    atomic_store_explicit(&w->pushed, pushed + 1, memory_order_release);
}

static uint64_t watchdog_flag(const struct watchdog_operation *o, int rank)
{
    return atomic_load_explicit(o->child->flag(o->child, o->phase, rank), memory_order_acquire);
}

static muster_mask watchdog_missing(const struct watchdog_operation *o)
{
    muster_mask missing = o->mask;
    for (int r = mask_next(o->mask, 0); r >= 0; r = mask_next(o->mask, r + 1))
        if (watchdog_flag(o, r) >= o->stamp)
            missing = mask_without(missing, r);
    return missing;
}

static void watchdog_fill(const struct watchdog_operation *o, muster_mask missing, uint64_t now_ns,
                          muster_wait_report *report)
{
    memset(report, 0, sizeof *report);
    report->operation = o->child->operation;
    report->phase = o->phase;
    report->expected = o->stamp;
    report->missing = missing;
    report->elapsed_us = (now_ns - o->start_ns) / 1000;
    for (int r = mask_next(o->mask, 0); r >= 0; r = mask_next(o->mask, r + 1))
        report->observed[r] = watchdog_flag(o, r);
}

void watchdog_restart(struct watchdog *w, uint64_t now_ns)
{
    w->since_ns = now_ns;
}

bool watchdog_poll(struct watchdog *w, uint64_t now_ns, uint64_t timeout_ns, uint32_t live_epoch,
                   muster_wait_report *report, uint64_t *next_ns)
{
    uint64_t popped = atomic_load_explicit(&w->popped, memory_order_relaxed);
    uint64_t pushed = atomic_load_explicit(&w->pushed, memory_order_acquire);
    *next_ns = UINT64_MAX;
    for (; popped < pushed; popped++) {
        const struct watchdog_operation *o = &w->ring[popped % WATCHDOG_OPERATIONS];
        muster_mask missing = o->child ? watchdog_missing(o) : (muster_mask){{0, 0}};
        if (!mask_empty(missing)) {
            uint64_t since_ns = o->start_ns > w->since_ns ? o->start_ns : w->since_ns;
            bool overdue = now_ns > since_ns && now_ns - since_ns >= timeout_ns;
            if (overdue && w->reported <= popped) {
                w->reported = popped + 1;
                watchdog_fill(o, missing, now_ns, report);
                return true;
            }
            /* The flags of an epoch that has ended may never come; nobody waits for them any more. */
            if (stamp_epoch(o->stamp) >= live_epoch) {
                *next_ns = overdue ? UINT64_MAX : since_ns + timeout_ns;
                return false;
            }
        }
        atomic_store_explicit(&w->popped, popped + 1, memory_order_release);
    }
    return false;
}

void watchdog_forget(struct watchdog *w, const struct group_child *child)
{
    for (int i = 0; i < WATCHDOG_OPERATIONS; i++)
        if (w->ring[i].child == child)
            w->ring[i].child = NULL;
}
