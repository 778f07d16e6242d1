// SPDX-License-Identifier: Apache-2.0
/*
 * The trace ring: fixed records of what this process did, always on, cheap enough to leave on. MUSTER_TRACE=FILE writes
 * it as Chrome trace events (ui.perfetto.dev) when the last group is destroyed; "%r" in FILE is the rank.
 */
#ifndef CORE_TRACE_H
#define CORE_TRACE_H

#include <stdint.h>
#include <stdio.h>

enum trace_kind {
    TRACE_STEP,
    TRACE_DISPATCH,
    TRACE_COMBINE,
    TRACE_EXPERTS,
    TRACE_LOAD, /* weights */
    TRACE_SUSPECTED, /* instants from here on: duration 0; argument = rank or epoch */
    TRACE_DEATH,
    TRACE_PROPOSED,
    TRACE_RAISED,
    TRACE_ACKNOWLEDGED,
    TRACE_COMMITTED,
    TRACE_READY,
    TRACE_BEGUN,
    TRACE_VOID,
    TRACE_KINDS,
};

/* Adds a record. Any thread, wait-free; when the ring is full the oldest records are overwritten. */
void trace_add(enum trace_kind kind, uint64_t start_ns, uint64_t duration_ns, uint64_t argument);

/* Writes the records as the elements of a Chrome trace array (no brackets, each followed by ",\n"). */
void trace_write(FILE *out, int rank);

#endif
