// SPDX-License-Identifier: Apache-2.0
/*
 * A wait has three exits (X1): the flags came, also if the live epoch has moved since; the live epoch moved; the deadline
 * passed. It spins for a moment, since a flag is normally a microsecond away. Then it gives its core away, since with more
 * ranks than cores the peer that is waited for may need this very core.
 */
#include "kernels/cpu/wait.h"

#include "kernels/cpu/memory.h"

enum {
    POLLS_PER_LOOK = 64, /* polls between two looks at clock and peers: a look costs as much as many polls */
    YIELDS = 100, /* before sleeping */
    SHORTEST_SLEEP_NS = 2000,
    LONGEST_SLEEP_NS = 100000,
    PAUSE_NS = 50000000, /* from one look to the next: more is no wait for a core, but a process that did not run */
    MAX_FRESH_STARTS = 8,
    FINISH_NS = 100000000, /* a fifth of the shortest time in which an acknowledgement must come */
};

/* A wait that did not end at its first look. */
struct wait {
    const struct kernel_step *step;
    const struct exchange_line *line;
    uint64_t stamp;
    muster_phase phase;
    muster_mask missing; /* peers whose flag is short */
    muster_mask begun; /* peers seen to have begun the step */
    uint64_t looked_ns;
    int fresh_starts; /* after pauses */
    uint64_t started_ns;
    uint64_t begun_ns[MUSTER_MAX_RANKS]; /* of the peers in `begun`: since when their clock runs */
};

static muster_mask wait_missing(const struct exchange_line *line, uint64_t stamp, muster_mask mask)
{
    for (int p = mask_next(mask, 0); p >= 0; p = mask_next(mask, p + 1))
        if (flag_read(&line[p].flag) >= stamp)
            mask = mask_without(mask, p);
    return mask;
}

static bool wait_arrived(struct wait *w)
{
    w->missing = wait_missing(w->line, w->stamp, w->missing);
    return mask_empty(w->missing);
}

static void wait_fail(const struct kernel_step *step, muster_reason reason, muster_phase phase, int peer)
{
    failure_record(step->control, failure_pack(reason, phase, peer, step->epoch));
}

/* For the agent, which tells the other ranks whom this one waits for when it is accused of being late (M7). */
static void wait_publish(const struct wait *w)
{
    struct kernel_control *control = w->step->control;
    for (int i = 0; i < 2; i++)
        atomic_store_explicit(&control->waiting_for[i], w->missing.word[i], memory_order_relaxed);
}

static void wait_close(struct wait *w)
{
    w->missing = (muster_mask){{0, 0}};
    wait_publish(w);
    atomic_store_explicit(&w->step->control->waiting_since_ns, 0, memory_order_relaxed);
}

bool wait_epoch_lives(const struct kernel_step *step, muster_phase phase)
{
    if (atomic_load_explicit(&step->control->live_epoch, memory_order_acquire) == step->epoch)
        return true;
    wait_fail(step, MUSTER_REASON_EPOCH, phase, -1);
    return false;
}

bool wait_may_finish(const struct kernel_step *step, muster_phase phase, uint64_t *ended_ns)
{
    if (atomic_load_explicit(&step->control->live_epoch, memory_order_acquire) == step->epoch)
        return true;
    uint64_t now_ns = wait_clock_ns();
    if (*ended_ns == 0)
        *ended_ns = now_ns;
    return now_ns - *ended_ns < FINISH_NS || wait_epoch_lives(step, phase);
}

static uint64_t wait_step_word(const struct wait *w, int peer)
{
    const struct kernel_step *step = w->step;
    const struct region_header *header = (const struct region_header *)(const void *)step->peers[step->rank];
    return flag_read(&header->step_word[peer].word);
}

static void wait_note_begun(struct wait *w, uint64_t now_ns)
{
    uint64_t begun = stamp_make(w->step->epoch, 2 * w->step->number + 1);
    muster_mask rest = mask_minus(w->missing, w->begun);
    for (int p = mask_next(rest, 0); p >= 0; p = mask_next(rest, p + 1)) {
        if (wait_step_word(w, p) < begun)
            continue;
        w->begun = mask_with(w->begun, p);
        w->begun_ns[p] = now_ns;
    }
}

static void wait_open(struct wait *w)
{
    w->started_ns = w->looked_ns = wait_clock_ns();
    w->fresh_starts = 0;
    w->begun = (muster_mask){{0, 0}};
    atomic_store_explicit(&w->step->control->waiting_since_ns, w->started_ns, memory_order_relaxed);
    wait_publish(w);
    wait_note_begun(w, w->started_ns);
}

/* X2: a peer has step_timeout to come to the step, and operation_timeout from when it was first seen inside it. */
static bool wait_overdue(const struct wait *w, int peer, uint64_t now_ns)
{
    const struct kernel_control *control = w->step->control;
    if (!mask_has(w->begun, peer))
        return now_ns - w->started_ns > atomic_load_explicit(&control->step_timeout_ns, memory_order_relaxed);
    return now_ns - w->begun_ns[peer] > atomic_load_explicit(&control->operation_timeout_ns, memory_order_relaxed);
}

/*
 * X3: a peer that has ended the step raised its flag before, if it ever will. Its step word is stored with release
 * after the flag and read here with acquire, so a flag that is still short after the word was seen stays short.
 */
static bool wait_refused(const struct wait *w, int peer)
{
    return wait_step_word(w, peer) >= stamp_make(w->step->epoch, 2 * w->step->number + 2);
}

/* The peers that are beyond waiting for, and why; their flags are read once more after that was seen. */
static muster_mask wait_lost(const struct wait *w, uint64_t now_ns, muster_reason *reason)
{
    muster_mask refused = {{0, 0}}, overdue = {{0, 0}};
    for (int p = mask_next(w->missing, 0); p >= 0; p = mask_next(w->missing, p + 1)) {
        if (wait_refused(w, p))
            refused = mask_with(refused, p);
        else if (wait_overdue(w, p, now_ns))
            overdue = mask_with(overdue, p);
    }
    refused = wait_missing(w->line, w->stamp, refused);
    *reason = mask_empty(refused) ? MUSTER_REASON_TIMEOUT : MUSTER_REASON_REFUSED;
    return mask_empty(refused) ? wait_missing(w->line, w->stamp, overdue) : refused;
}

static void wait_shift(struct wait *w, uint64_t ns)
{
    w->started_ns += ns;
    for (int p = mask_next(w->begun, 0); p >= 0; p = mask_next(w->begun, p + 1))
        w->begun_ns[p] += ns;
}

/*
 * X17: who did not run judges nobody. A gap between two looks counts as PAUSE_NS at most; after one that is long against the
 * deadline, in which the peers probably stood still as well, every deadline starts anew. Not for ever: a process that
 * never gets a core must come to an end too.
 */
static void wait_forgive_pause(struct wait *w, uint64_t now_ns)
{
    uint64_t gap_ns = now_ns - w->looked_ns;
    uint64_t timeout_ns = atomic_load_explicit(&w->step->control->operation_timeout_ns, memory_order_relaxed);
    w->looked_ns = now_ns;
    if (gap_ns <= PAUSE_NS)
        return;
    wait_shift(w, gap_ns - PAUSE_NS);
    if (gap_ns < timeout_ns / 2 || w->fresh_starts == MAX_FRESH_STARTS)
        return;
    w->fresh_starts++;
    w->started_ns = now_ns;
    for (int p = mask_next(w->begun, 0); p >= 0; p = mask_next(w->begun, p + 1))
        w->begun_ns[p] = now_ns;
}

/* A look at clock and peers. False: some peer is beyond waiting for, which is recorded. */
static bool wait_look(struct wait *w)
{
    struct kernel_control *control = w->step->control;
    muster_reason reason;
    uint64_t now_ns = wait_clock_ns();
    wait_publish(w);
    wait_forgive_pause(w, now_ns);
    wait_note_begun(w, now_ns);
    muster_mask lost = wait_lost(w, now_ns, &reason);
    if (mask_empty(lost))
        return true;
    /* A new epoch explains a missing flag better than any deadline does. */
    if (!wait_epoch_lives(w->step, w->phase))
        return false;
    for (int i = 0; i < 2; i++)
        atomic_store_explicit(&control->overdue[i], lost.word[i], memory_order_relaxed);
    wait_fail(w->step, reason, w->phase, mask_next(lost, 0));
    return false;
}

/* The n-th pause, from 0: polls, then yields, then sleeps that double. */
static void wait_pause(uint32_t spin, uint64_t n)
{
    if (n < spin) {
        wait_poll();
        return;
    }
    n -= spin;
    if (n < YIELDS) {
        wait_yield();
        return;
    }
    n -= YIELDS;
    uint64_t ns = n < 8 ? (uint64_t)SHORTEST_SLEEP_NS << n : LONGEST_SLEEP_NS;
    wait_sleep(ns < LONGEST_SLEEP_NS ? ns : LONGEST_SLEEP_NS);
}

/* What was raised before the epoch moved counts, so the flags are read once more after that was seen. */
static bool wait_called_off(struct wait *w)
{
    const struct kernel_step *step = w->step;
    if (atomic_load_explicit(&step->control->live_epoch, memory_order_acquire) == step->epoch || wait_arrived(w))
        return false;
    return !wait_epoch_lives(step, w->phase);
}

static bool wait_loop(struct wait *w)
{
    uint32_t spin = w->step->control->spin;
    for (uint64_t n = 0;; n++) {
        if (wait_arrived(w))
            return true;
        if (wait_called_off(w))
            return false;
        if ((n >= spin || n % POLLS_PER_LOOK == POLLS_PER_LOOK - 1) && !wait_look(w))
            return false;
        wait_pause(spin, n);
    }
}

bool wait_lines(const struct kernel_step *step, const struct exchange_line *line, uint64_t stamp, muster_mask mask,
                muster_phase phase)
{
    muster_mask missing = wait_missing(line, stamp, mask);
    if (mask_empty(missing))
        return true;
    struct wait w; /* not initialised as a whole: begun_ns is large, and only read where it was written */
    w.step = step;
    w.line = line;
    w.stamp = stamp;
    w.phase = phase;
    w.missing = missing;
    wait_open(&w);
    bool arrived = wait_loop(&w);
    wait_close(&w);
    return arrived;
}
