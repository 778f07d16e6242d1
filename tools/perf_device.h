// SPDX-License-Identifier: Apache-2.0
/* A GPU as a rank of a measurement uses it: memory with a copy on the host, and graphs of many pairs that are timed. */
#ifndef TOOLS_PERF_DEVICE_H
#define TOOLS_PERF_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/runtime.h"
#include "perf_board.h"

/* Pairs of a graph that are timed; one more goes before them, in which the ranks come together. */
enum { PERF_GRAPH_PAIRS = 20 };

struct perf_device {
    const struct runtime *runtime; /* NULL: rows lie in host memory, and there is no stream */
    void *stream;
    int32_t multiprocessors; /* that an operation may use */
    void *event[3 * PERF_GRAPH_PAIRS];
    void *flushed; /* memory that is cleared to empty the cache */
    size_t flushed_bytes;
};

/* What is measured. Both enqueue; settle reads the verdicts of so many pairs, after the stream was waited for. */
struct perf_pair {
    void *state;
    bool (*dispatch)(void *state);
    bool (*combine)(void *state);
    bool (*settle)(void *state, int32_t pairs);
};

/* The functions below say why with muster_last_error(). */
bool perf_device_open(struct perf_device *device, int32_t ordinal, bool flush);
void perf_device_close(struct perf_device *device);

/* Waits until the stream has done everything. */
bool perf_device_wait(const struct perf_device *device);

/* Memory on the device, zeroed; NULL if there is none. */
void *perf_device_allocate(const struct perf_device *device, size_t bytes);
void perf_device_release(const struct perf_device *device, void *memory);
bool perf_device_copy(const struct perf_device *device, void *to, const void *from, size_t bytes);

/*
 * Each iteration launches two graphs: one with an event between dispatch and combine, which gives their times, and one
 * without, which gives the pair's; all are averages over the pairs of a graph, on this rank.
 */
bool perf_device_iterate(const struct perf_device *device, const struct perf_pair *pair, int32_t iterations,
                         struct perf_sample *sample);

#endif
