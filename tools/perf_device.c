// SPDX-License-Identifier: Apache-2.0
#include "perf_device.h"

#include "core/config.h"

enum { PATIENCE_MS = 60000 };

bool perf_device_open(struct perf_device *device, int32_t ordinal, bool flush)
{
    struct runtime_device description;
    *device = (struct perf_device){.stream = NULL};
    if (runtime_load(&device->runtime) != MUSTER_OK)
        return false;
    const struct runtime *run = device->runtime;
    if (run->use(ordinal) != MUSTER_OK || run->describe(&description) != MUSTER_OK ||
        run->stream_create(&device->stream) != MUSTER_OK)
        return false;
    int32_t most = (int32_t)config_number(CONFIG_MULTIPROCESSORS);
    device->multiprocessors = most && most < description.multiprocessors ? most : description.multiprocessors;
    for (int i = 0; i < 3 * PERF_GRAPH_PAIRS; i++)
        if (run->event_create(&device->event[i]) != MUSTER_OK)
            return false;
    device->flushed_bytes = flush ? 2 * description.cache_bytes : 0;
    return !flush || run->allocate(&device->flushed, device->flushed_bytes) == MUSTER_OK;
}

void perf_device_close(struct perf_device *device)
{
    const struct runtime *run = device->runtime;
    if (!run)
        return;
    for (int i = 0; i < 3 * PERF_GRAPH_PAIRS; i++)
        if (device->event[i])
            run->event_destroy(device->event[i]);
    if (device->flushed)
        run->release(device->flushed);
    if (device->stream)
        run->stream_destroy(device->stream);
}

bool perf_device_wait(const struct perf_device *device)
{
    return device->runtime->stream_wait(device->stream, PATIENCE_MS) == MUSTER_OK;
}

void *perf_device_allocate(const struct perf_device *device, size_t bytes)
{
    void *memory = NULL;
    return device->runtime->allocate(&memory, bytes) == MUSTER_OK ? memory : NULL;
}

void perf_device_release(const struct perf_device *device, void *memory)
{
    if (memory)
        device->runtime->release(memory);
}

bool perf_device_copy(const struct perf_device *device, void *to, const void *from, size_t bytes)
{
    return device->runtime->copy(to, from, bytes, device->stream) == MUSTER_OK;
}

/* ---- graphs ---- */

static bool mark(const struct perf_device *device, int event)
{
    return device->runtime->event_record(device->event[event], device->stream) == MUSTER_OK;
}

static bool flush(const struct perf_device *device)
{
    return !device->flushed ||
           device->runtime->clear(device->flushed, device->flushed_bytes, device->stream) == MUSTER_OK;
}

/* Events 3i, 3i + 1 and 3i + 2: before dispatch, between, and after combine of pair i. */
static bool enqueue_split(const struct perf_device *device, const struct perf_pair *pair)
{
    bool good = true;
    for (int i = 0; i < PERF_GRAPH_PAIRS && good; i++)
        good = flush(device) && mark(device, 3 * i) && pair->dispatch(pair->state) && mark(device, 3 * i + 1) &&
               pair->combine(pair->state) && mark(device, 3 * i + 2);
    return good;
}

/* Events 3i and 3i + 2 around pair i if the cache is flushed between pairs; otherwise around all of them. */
static bool enqueue_whole(const struct perf_device *device, const struct perf_pair *pair)
{
    bool good = true, each = device->flushed;
    for (int i = 0; i < PERF_GRAPH_PAIRS && good; i++) {
        good = flush(device) && (!(each || i == 0) || mark(device, 3 * i));
        good = good && pair->dispatch(pair->state) && pair->combine(pair->state);
        good = good && (!(each || i == PERF_GRAPH_PAIRS - 1) || mark(device, 3 * i + 2));
    }
    return good;
}

typedef bool enqueue_function(const struct perf_device *device, const struct perf_pair *pair);

static void *capture(const struct perf_device *device, const struct perf_pair *pair, enqueue_function *enqueue)
{
    void *graph = NULL;
    if (device->runtime->capture_begin(device->stream) != MUSTER_OK)
        return NULL;
    bool good = pair->dispatch(pair->state) && pair->combine(pair->state) && enqueue(device, pair);
    if (device->runtime->capture_end(device->stream, &graph) == MUSTER_OK && good)
        return graph;
    return NULL;
}

static bool launch(const struct perf_device *device, const struct perf_pair *pair, void *graph)
{
    return device->runtime->graph_launch(graph, device->stream) == MUSTER_OK && perf_device_wait(device) &&
           pair->settle(pair->state, PERF_GRAPH_PAIRS + 1);
}

/* ---- times ---- */

static double between_us(const struct perf_device *device, int begin, int end)
{
    double us = 0;
    device->runtime->event_elapsed_us(device->event[begin], device->event[end], &us);
    return us;
}

/* The average over the pairs, from event 3i + begin to event 3i + end. */
static uint32_t average_ns(const struct perf_device *device, int begin, int end)
{
    double us = 0;
    for (int i = 0; i < PERF_GRAPH_PAIRS; i++)
        us += between_us(device, 3 * i + begin, 3 * i + end);
    return (uint32_t)(us * 1000.0 / PERF_GRAPH_PAIRS);
}

static uint32_t pair_ns(const struct perf_device *device)
{
    if (device->flushed)
        return average_ns(device, 0, 2);
    return (uint32_t)(between_us(device, 0, 3 * PERF_GRAPH_PAIRS - 1) * 1000.0 / PERF_GRAPH_PAIRS);
}

static bool iterate(const struct perf_device *device, const struct perf_pair *pair, void *split, void *whole,
                    int32_t iterations, struct perf_sample *sample)
{
    for (int32_t i = 0; i < iterations; i++) {
        if (!launch(device, pair, split))
            return false;
        sample[i].dispatch_ns = average_ns(device, 0, 1);
        sample[i].combine_ns = average_ns(device, 1, 2);
        if (!launch(device, pair, whole))
            return false;
        sample[i].pair_ns = pair_ns(device);
    }
    return true;
}

bool perf_device_iterate(const struct perf_device *device, const struct perf_pair *pair, int32_t iterations,
                         struct perf_sample *sample)
{
    void *split = capture(device, pair, enqueue_split), *whole = split ? capture(device, pair, enqueue_whole) : NULL;
    bool good = split && whole && iterate(device, pair, split, whole, iterations, sample);
    if (split)
        device->runtime->graph_destroy(split);
    if (whole)
        device->runtime->graph_destroy(whole);
    return good;
}
