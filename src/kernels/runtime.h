// SPDX-License-Identifier: Apache-2.0
/*
 * What the tools need of a device beside exchanges: memory, streams, graphs, time. It comes with the backend's shared
 * object, so that the tools link no GPU library. Functions act on the device that runtime.use() has chosen for the calling
 * thread; they return MUSTER_OK, or SYSTEM or MEMORY with the error's text set. Those that wait say so.
 */
#ifndef KERNELS_RUNTIME_H
#define KERNELS_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/exchange.h"
#include "muster/status.h"

enum { RUNTIME_VERSION = 2, RUNTIME_NAME_BYTES = 64, RUNTIME_HANDLE_BYTES = 64 };

typedef muster_status runtime_error_function(muster_status status, const char *format, ...);

struct runtime_device {
    char name[RUNTIME_NAME_BYTES];
    int32_t multiprocessors;
    uint64_t memory_bytes, cache_bytes; /* of the second level */
};

/*
 * Rows of memory of the device, in places that lists on the device give; rows are multiples of 16 bytes, and begin on 16.
 * Row to_row[i] of `to` becomes row from_row[i] of `from`, for i from 0 to rows - 1.
 */
struct runtime_move {
    void *to;
    const void *from;
    const int32_t *to_row, *from_row; /* [rows] */
    int32_t rows;
    size_t row_bytes;
};

/*
 * Row i of `to` becomes the sum of rows from_row[i][0..] of `from`, each times its weight: in fp32, in this order, rounded
 * once. A row has at most `parts` of them (at most 32), and its list ends before the first -1.
 */
struct runtime_sum {
    void *to;
    const void *from;
    const int32_t *from_row; /* [rows][parts] */
    const float *weight; /* likewise */
    int32_t rows, parts;
    enum exchange_type type;
    size_t row_bytes;
};

struct runtime {
    uint32_t version; /* RUNTIME_VERSION */

    /* Devices of this process; 0 if there are none, or no driver. */
    int32_t (*count)(void);
    muster_status (*use)(int32_t ordinal);
    muster_status (*describe)(struct runtime_device *device);

    /* Zeroed. Both may wait for kernels of any stream: not while another rank of the device waits for this one. */
    muster_status (*allocate)(void **memory, size_t bytes);
    void (*release)(void *memory);
    /* In either direction; waits for the stream before and after. */
    muster_status (*copy)(void *to, const void *from, size_t bytes, void *stream);

    /*
     * Memory of `allocate` as it is known to other processes, in RUNTIME_HANDLE_BYTES; what they map of it with `import`
     * they unmap before it is released. The device must reach the other's memory.
     */
    muster_status (*export_memory)(void *memory, void *handle);
    muster_status (*import_memory)(const void *handle, void **memory);
    void (*unmap_memory)(void *memory);

    /* Enqueues: a copy from device memory to device memory, its own or another's, that no kernel has a part in. */
    muster_status (*enqueue_copy)(void *to, const void *from, size_t bytes, void *stream);

    /* Enqueues: zeros. */
    muster_status (*clear)(void *memory, size_t bytes, void *stream);

    muster_status (*stream_create)(void **stream);
    void (*stream_destroy)(void *stream);
    /* Waits until all that was enqueued is done; at most timeout_ms, then AGAIN. */
    muster_status (*stream_wait)(void *stream, int32_t timeout_ms);

    /* Events that measure time; recorded in stream order, also inside a graph. */
    muster_status (*event_create)(void **event);
    void (*event_destroy)(void *event);
    muster_status (*event_record)(void *event, void *stream);
    muster_status (*event_elapsed_us)(void *begin, void *end, double *us); /* both have passed */

    /* What is enqueued between begin and end becomes a graph instead of being executed. */
    muster_status (*capture_begin)(void *stream);
    muster_status (*capture_end)(void *stream, void **graph);
    muster_status (*graph_launch)(void *graph, void *stream);
    void (*graph_destroy)(void *graph);

    /* Enqueues a kernel that only passes time. */
    muster_status (*spin)(void *stream, uint64_t ns);

    /* Enqueue the kernels above. No rows: nothing. */
    muster_status (*move_rows)(const struct runtime_move *move, void *stream);
    muster_status (*sum_rows)(const struct runtime_sum *sum, void *stream);

    /* The name of the error that the device is in and cannot leave, or NULL. */
    const char *(*broken)(void);
};

/* Loads it; UNSUPPORTED, with the reason, if there is no CUDA backend. */
muster_status runtime_load(const struct runtime **runtime);

#endif
