// SPDX-License-Identifier: Apache-2.0
#include "core/trace.h"

#include <stdatomic.h>
#include <stdbool.h>
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

/* Microseconds, with a point in every locale: the program may have set one whose numbers have a comma. */
static void trace_write_time(FILE *out, const char *name, uint64_t ns)
{
    fprintf(out, ",\"%s\":%llu.%03u", name, (unsigned long long)(ns / 1000), (unsigned)(ns % 1000));
}

static void trace_write_record(FILE *out, int rank, uint64_t kind, uint64_t start_ns, uint64_t duration_ns,
                               uint64_t argument)
{
    bool instant = kind >= TRACE_SUSPECTED;
    const char *type = instant ? "\"i\",\"s\":\"p\"" : "\"X\"";
    fprintf(out, "{\"name\":\"%s\",\"ph\":%s,\"pid\":%d,\"tid\":0", trace_names[kind], type, rank);
    trace_write_time(out, "ts", start_ns);
    if (!instant)
        trace_write_time(out, "dur", duration_ns);
    fprintf(out, ",\"args\":{\"value\":%llu}},\n", (unsigned long long)argument);
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
        uint64_t start_ns = atomic_load(&record->start_ns);
        uint64_t duration_ns = atomic_load(&record->duration_ns);
        uint64_t argument = atomic_load(&record->argument);
        if (atomic_load_explicit(&record->sequence, memory_order_acquire) == i + 1 && kind < TRACE_KINDS)
            trace_write_record(out, rank, kind, start_ns, duration_ns, argument);
    }
}
