// SPDX-License-Identifier: Apache-2.0
#include "core/trace.h"

#include <stdatomic.h>
#include <string.h>

enum { TRACE_RECORDS = 1 << 15 };

/*
 * A record's sequence is 0 while it is being written and index + 1 afterwards, so that a reader can tell a finished
 * record from one that a writer is replacing.
 */
struct trace_record {
    _Atomic uint64_t sequence;
    _Atomic uint64_t start_ns;
    _Atomic uint64_t duration_ns;
    _Atomic uint64_t argument;
    _Atomic uint64_t kind;
};

static struct trace_record trace_ring[TRACE_RECORDS];
static _Atomic uint64_t trace_count;

static const char *const trace_names[TRACE_KINDS] = {
    [TRACE_STEP] = "step",
    [TRACE_DISPATCH] = "dispatch",
    [TRACE_COMBINE] = "combine",
    [TRACE_EXPERTS] = "experts",
    [TRACE_LOAD] = "load weights",
    [TRACE_SUSPECTED] = "suspected",
    [TRACE_DEATH] = "death",
    [TRACE_PROPOSED] = "view proposed",
    [TRACE_RAISED] = "epoch raised",
    [TRACE_ACKNOWLEDGED] = "view acknowledged",
    [TRACE_COMMITTED] = "view committed",
    [TRACE_READY] = "ready",
    [TRACE_BEGUN] = "epoch begun",
    [TRACE_VOID] = "step void",
};

void trace_add(enum trace_kind kind, uint64_t start_ns, uint64_t duration_ns, uint64_t argument)
{
    uint64_t index = atomic_fetch_add_explicit(&trace_count, 1, memory_order_relaxed);
    struct trace_record *record = &trace_ring[index % TRACE_RECORDS];
    atomic_store_explicit(&record->sequence, 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&record->start_ns, start_ns, memory_order_relaxed);
    atomic_store_explicit(&record->duration_ns, duration_ns, memory_order_relaxed);
    atomic_store_explicit(&record->argument, argument, memory_order_relaxed);
    atomic_store_explicit(&record->kind, kind, memory_order_relaxed);
    atomic_store_explicit(&record->sequence, index + 1, memory_order_release);
}

static void trace_write_record(FILE *out, int rank, uint64_t kind, double start_us, double duration_us,
                               uint64_t argument)
{
    if (kind >= TRACE_SUSPECTED)
        fprintf(
            out,
            "{\"name\":\"%s\",\"ph\":\"i\",\"s\":\"p\",\"pid\":%d,\"tid\":0,\"ts\":%.3f,\"args\":{\"value\":%llu}},\n",
            trace_names[kind], rank, start_us, (unsigned long long)argument);
    else
        fprintf(
            out,
            "{\"name\":\"%s\",\"ph\":\"X\",\"pid\":%d,\"tid\":0,\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"value\":%llu}},\n",
            trace_names[kind], rank, start_us, duration_us, (unsigned long long)argument);
}

void trace_write(FILE *out, int rank)
{
    uint64_t count = atomic_load(&trace_count);
    uint64_t first = count > TRACE_RECORDS ? count - TRACE_RECORDS : 0;
    for (uint64_t i = first; i < count; i++) {
        struct trace_record *record = &trace_ring[i % TRACE_RECORDS];
        if (atomic_load_explicit(&record->sequence, memory_order_acquire) != i + 1)
            continue;
        uint64_t kind = atomic_load(&record->kind);
        double start_us = (double)atomic_load(&record->start_ns) / 1e3;
        double duration_us = (double)atomic_load(&record->duration_ns) / 1e3;
        uint64_t argument = atomic_load(&record->argument);
        if (atomic_load_explicit(&record->sequence, memory_order_acquire) == i + 1 && kind < TRACE_KINDS)
            trace_write_record(out, rank, kind, start_us, duration_us, argument);
    }
}
