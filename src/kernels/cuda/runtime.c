// SPDX-License-Identifier: Apache-2.0
/* The CUDA side of kernels/runtime.h: each function is one call of the CUDA runtime, or two. */
#include "kernels/runtime.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "kernels/cuda/runtime.h"

static runtime_error_function *say;

static muster_status checked(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return MUSTER_OK;
    cudaGetLastError(); /* said; a later call should not say it again */
    return say(error == cudaErrorMemoryAllocation ? MUSTER_ERR_MEMORY : MUSTER_ERR_SYSTEM, "%s: %s (%s)", what,
               cudaGetErrorString(error), cudaGetErrorName(error));
}

static int32_t count(void)
{
    int devices = 0;
    if (cudaGetDeviceCount(&devices) == cudaSuccess)
        return devices;
    cudaGetLastError();
    return 0;
}

static muster_status use(int32_t ordinal)
{
    return checked(cudaSetDevice(ordinal), "choosing a device");
}

static muster_status describe(struct runtime_device *device)
{
    struct cudaDeviceProp properties;
    int ordinal;
    cudaError_t error = cudaGetDevice(&ordinal);
    if (error == cudaSuccess)
        error = cudaGetDeviceProperties(&properties, ordinal);
    if (error != cudaSuccess)
        return checked(error, "describing a device");
    snprintf(device->name, sizeof device->name, "%.63s", properties.name);
    device->multiprocessors = properties.multiProcessorCount;
    device->memory_bytes = properties.totalGlobalMem;
    device->cache_bytes = (uint64_t)properties.l2CacheSize;
    return MUSTER_OK;
}

static muster_status allocate(void **memory, size_t bytes)
{
    cudaError_t error = cudaMalloc(memory, bytes ? bytes : 1);
    if (error == cudaSuccess)
        error = cudaMemset(*memory, 0, bytes);
    if (error == cudaSuccess)
        error = cudaDeviceSynchronize();
    return checked(error, "taking memory of a device");
}

static void release(void *memory)
{
    cudaFree(memory);
}

static muster_status copy(void *to, const void *from, size_t bytes, void *stream)
{
    cudaError_t error = cudaStreamSynchronize(stream); /* a copy that waits for kernels may hold up other threads */
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(stream);
    return checked(error, "copying");
}

_Static_assert(sizeof(cudaIpcMemHandle_t) == RUNTIME_HANDLE_BYTES, "a handle is passed on as plain bytes");

static muster_status export_memory(void *memory, void *handle)
{
    return checked(cudaIpcGetMemHandle(handle, memory), "exporting memory of a device");
}

static muster_status import_memory(const void *bytes, void **memory)
{
    cudaIpcMemHandle_t handle;
    memcpy(&handle, bytes, sizeof handle);
    return checked(cudaIpcOpenMemHandle(memory, handle, cudaIpcMemLazyEnablePeerAccess), "mapping a peer's memory");
}

static void unmap_memory(void *memory)
{
    cudaIpcCloseMemHandle(memory);
}

static muster_status enqueue_copy(void *to, const void *from, size_t bytes, void *stream)
{
    return checked(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copying on devices");
}

static muster_status clear(void *memory, size_t bytes, void *stream)
{
    return checked(cudaMemsetAsync(memory, 0, bytes, stream), "clearing memory");
}

static muster_status stream_create(void **stream)
{
    return checked(cudaStreamCreateWithFlags((cudaStream_t *)stream, cudaStreamNonBlocking), "a stream");
}

static void stream_destroy(void *stream)
{
    cudaStreamDestroy(stream);
}

static muster_status stream_wait(void *stream, int32_t timeout_ms)
{
    const struct timespec pause = {.tv_nsec = 20000};
    struct timespec now, begun;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    for (cudaError_t error; (error = cudaStreamQuery(stream)) != cudaSuccess; nanosleep(&pause, NULL)) {
        if (error != cudaErrorNotReady)
            return checked(error, "a stream's work");
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000 >= timeout_ms)
            return say(MUSTER_ERR_AGAIN, "the stream's work was not done after %d ms", timeout_ms);
    }
    return MUSTER_OK;
}

static muster_status event_create(void **event)
{
    return checked(cudaEventCreate((cudaEvent_t *)event), "an event");
}

static void event_destroy(void *event)
{
    cudaEventDestroy(event);
}

/* In a graph an event is a node of its own, recorded at every launch. */
static muster_status event_record(void *event, void *stream)
{
    enum cudaStreamCaptureStatus status;
    cudaError_t error = cudaStreamIsCapturing(stream, &status);
    unsigned flags = status == cudaStreamCaptureStatusActive ? cudaEventRecordExternal : cudaEventRecordDefault;
    if (error == cudaSuccess)
        error = cudaEventRecordWithFlags(event, stream, flags);
    return checked(error, "recording an event");
}

static muster_status event_elapsed_us(void *begin, void *end, double *us)
{
    float ms = 0;
    cudaError_t error = cudaEventElapsedTime(&ms, begin, end);
    *us = (double)ms * 1000.0;
    return checked(error, "the time between events");
}

static muster_status capture_begin(void *stream)
{
    return checked(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "beginning a graph");
}

static muster_status capture_end(void *stream, void **graph)
{
    cudaGraph_t captured;
    cudaError_t error = cudaStreamEndCapture(stream, &captured);
    if (error != cudaSuccess)
        return checked(error, "ending a graph");
    error = cudaGraphInstantiate((cudaGraphExec_t *)graph, captured, 0);
    cudaGraphDestroy(captured);
    return checked(error, "making a graph");
}

static muster_status graph_launch(void *graph, void *stream)
{
    return checked(cudaGraphLaunch(graph, stream), "launching a graph");
}

static void graph_destroy(void *graph)
{
    cudaGraphExecDestroy(graph);
}

static muster_status spin(void *stream, uint64_t ns)
{
    return checked(spin_launch(ns, stream), "a kernel that passes time");
}

static muster_status move_rows(const struct runtime_move *move, void *stream)
{
    return checked(move_rows_launch(move, stream), "a kernel that moves rows");
}

static muster_status sum_rows(const struct runtime_sum *sum, void *stream)
{
    return checked(sum_rows_launch(sum, stream), "a kernel that adds up rows");
}

/* An error that stays is the answer to every call. */
static const char *broken(void)
{
    cudaGetLastError();
    cudaError_t error = cudaFree(NULL);
    return error == cudaSuccess ? NULL : cudaGetErrorName(error);
}

static const struct runtime runtime = {
    .version = RUNTIME_VERSION,
    .count = count,
    .use = use,
    .describe = describe,
    .allocate = allocate,
    .release = release,
    .copy = copy,
    .export_memory = export_memory,
    .import_memory = import_memory,
    .unmap_memory = unmap_memory,
    .enqueue_copy = enqueue_copy,
    .clear = clear,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_wait = stream_wait,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_elapsed_us = event_elapsed_us,
    .capture_begin = capture_begin,
    .capture_end = capture_end,
    .graph_launch = graph_launch,
    .graph_destroy = graph_destroy,
    .spin = spin,
    .move_rows = move_rows,
    .sum_rows = sum_rows,
    .broken = broken,
};

__attribute__((visibility("default"))) const struct runtime *muster_cuda_runtime(runtime_error_function *error);

const struct runtime *muster_cuda_runtime(runtime_error_function *error)
{
    say = error;
    return &runtime;
}
