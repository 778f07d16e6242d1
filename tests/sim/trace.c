// SPDX-License-Identifier: Apache-2.0
/* The trace hash of a run, its last events for a person, and counters over all runs. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "world.h"

enum { TRACE_KEPT = 120 };

struct trace_entry {
    uint64_t at_ns, a, b;
    int64_t who; /* rank << 32 | incarnation; -1: nobody */
    const char *what;
};

static struct trace_entry trace_ring[TRACE_KEPT];
static uint64_t trace_count;
static bool trace_verbose;

struct tally tally;

void trace_reset(struct world *w, bool verbose)
{
    w->hash = 0;
    trace_count = 0;
    trace_verbose = verbose;
}

static const char *const trace_events[] = {
    "hello",  "put",     "swap",    "read", "fence",  "leave",    "closed", "reaped",  "kill", "pause", "continue",
    "fault",  "heal",    "welcome", "view", "record", "presence", "fenced", "swapped", "lost", "tick",  "quiesced",
    "loaded", "verdict", "step",    "send", "land",   "deadline", "return", "leaving", "exit",
};
static const char *const trace_actions[] = {"put",   "swap",  "read", "raise", "install",
                                            "begin", "fence", "stop", "left"};

static void trace_show(const struct trace_entry *e)
{
    const char *detail = "";
    if (strcmp(e->what, "event") == 0 || strcmp(e->what, "store") == 0)
        detail = trace_events[e->a];
    else if (strcmp(e->what, "does") == 0)
        detail = trace_actions[e->a];
    printf("%12.6f ms  ", (double)e->at_ns / 1e6);
    if (e->who >= 0)
        printf("rank %d.%d  ", (int)(e->who >> 32), (int)(e->who & 0xffffffff));
    else
        printf("          ");
    printf("%s %s %" PRIu64 "\n", e->what, detail, e->b);
}

void trace_event(struct world *w, const struct process *p, const char *what, uint64_t a, uint64_t b)
{
    struct trace_entry *e = &trace_ring[trace_count++ % TRACE_KEPT];
    *e = (struct trace_entry){
        .at_ns = w->now_ns, .a = a, .b = b, .who = p ? (int64_t)p->rank << 32 | p->incarnation : -1, .what = what};
    w->hash = XXH3_64bits_withSeed(e, offsetof(struct trace_entry, what), w->hash);
    w->hash = XXH3_64bits_withSeed(what, strlen(what), w->hash);
    if (trace_verbose)
        trace_show(e);
}

void trace_print_last(void)
{
    uint64_t first = trace_count > TRACE_KEPT ? trace_count - TRACE_KEPT : 0;
    for (uint64_t i = first; i < trace_count; i++)
        trace_show(&trace_ring[i % TRACE_KEPT]);
}

static const struct {
    muster_status status;
    const char *name;
} tally_stops[] = {
    {MUSTER_ERR_TIMEOUT, "timeout"}, {MUSTER_ERR_CAPACITY, "capacity"}, {MUSTER_ERR_UNFENCED, "unfenced"},
    {MUSTER_ERR_EVICTED, "evicted"}, {MUSTER_ERR_STORE, "store"},       {MUSTER_ERR_EXHAUSTED, "exhausted"},
    {MUSTER_ERR_LEFT, "left"},
};

void tally_stop(muster_status status)
{
    for (size_t i = 0; i < sizeof tally_stops / sizeof *tally_stops; i++)
        tally.stops[i] += tally_stops[i].status == status;
}

void tally_print(void)
{
    uint64_t faults = 0;
    printf("faults:");
    for (int k = 0; k < SIM_KINDS; k++) {
        printf("%s %s %" PRIu64, k ? "," : "", plan_fault_name((enum fault_kind)k), tally.faults[k]);
        faults += tally.faults[k];
    }
    printf("\nstops:");
    for (size_t i = 0; i < sizeof tally_stops / sizeof *tally_stops; i++)
        printf("%s %s %" PRIu64, i ? "," : "", tally_stops[i].name, tally.stops[i]);
    printf("\n%" PRIu64 " schedules, %" PRIu64 " events, %" PRIu64 " faults, %" PRIu64 " views committed, %" PRIu64
           " joins, %" PRIu64 " expulsions, %" PRIu64 " exact exchanges\n",
           tally.schedules, tally.events, faults, tally.commits, tally.joins, tally.expulsions, tally.exchanges);
    printf("ended: %" PRIu64 " with several ranks, %" PRIu64 " with one, %" PRIu64 " with none, %" PRIu64
           " without their store; slowest %.1f ms after the faults (seed %" PRIu64 ")\n",
           tally.together, tally.alone, tally.nobody, tally.restarted, (double)tally.slowest_ns / 1e6,
           tally.slowest_seed);
}

/* Every kind of fault and every reason to stop must have occurred: a run that misses one proves less than it says. */
bool tally_complete(void)
{
    bool complete = true;
    for (int k = 0; k < SIM_KINDS; k++)
        complete &= tally.faults[k] > 0;
    for (size_t i = 0; i < sizeof tally_stops / sizeof *tally_stops; i++)
        complete &= tally.stops[i] > 0;
    return complete && tally.joins > 0 && tally.expulsions > 0 && tally.together > 0;
}
