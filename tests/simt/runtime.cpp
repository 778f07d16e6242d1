// SPDX-License-Identifier: Apache-2.0
/*
 * A CUDA runtime without a GPU: devices, streams, events and graphs. A stream is a host thread with a queue. The
 * functions have the linkage of their declarations in CUDA's own headers.
 */
#include "stream.h"

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

/* ----------------------------------------------------------------------------------------------------------- errors */

namespace
{

struct error_text {
    cudaError_t error;
    const char *name, *text;
};

const error_text error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorDeviceUninitialized, "cudaErrorDeviceUninitialized", "invalid device context"},
    {cudaErrorMapBufferObjectFailed, "cudaErrorMapBufferObjectFailed", "mapping of buffer object failed"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
};

thread_local cudaError_t last_error = cudaSuccess;

const error_text *find_error(cudaError_t error)
{
    const error_text *found = std::find_if(std::begin(error_texts), std::end(error_texts),
                                           [=](const error_text &known) { return known.error == error; });
    return found == std::end(error_texts) ? nullptr : found;
}

} // namespace

/* That a stream is still at work is an answer, and no error that a later launch should say again. */
cudaError_t simt_report(cudaError_t error)
{
    if (error != cudaSuccess && error != cudaErrorNotReady)
        last_error = error;
    return error;
}

cudaError_t cudaGetLastError()
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError()
{
    return last_error;
}

const char *cudaGetErrorName(cudaError_t error)
{
    const error_text *found = find_error(error);
    return found ? found->name : "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
    const error_text *found = find_error(error);
    return found ? found->text : "unrecognized error code";
}

/* ---------------------------------------------------------------------------------------------------------- devices */

namespace
{

using simt_work = std::function<void()>;

struct capture {
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool spoiled;
    std::vector<simt_work> work;
};

struct device {
    std::mutex lock;
    std::vector<std::shared_ptr<CUstream_st>> streams; /* until their work is done */
    CUstream_st *default_stream = nullptr; /* until it is needed; it is never destroyed */
};

thread_local int current_device = 0;

} // namespace

struct CUstream_st {
    explicit CUstream_st(int ordinal) : device(ordinal)
    {
    }

    const int device;
    std::mutex lock; /* taken after the device's, if both are; all that follows */
    std::condition_variable more, passed;
    std::deque<simt_work> queue;
    uint64_t given = 0, done = 0;
    bool ended = false;
    std::unique_ptr<struct capture> capture; /* if one is under way */
};

namespace
{

int setting(const char *name, int usual, int least, int most)
{
    const char *text = std::getenv(name);
    char *end;
    long value = text ? std::strtol(text, &end, 10) : usual;
    if (!text || (*text && !*end && value >= least && value <= most))
        return static_cast<int>(value);
    std::fprintf(stderr, "%s = %s: must be %d to %d\n", name, text, least, most);
    std::abort();
}

int device_count()
{
    static const int count = setting("MUSTER_SIMT_DEVICES", 1, 0, simt_most_devices);
    return count;
}

int multiprocessors()
{
    static const int count = setting("MUSTER_SIMT_MULTIPROCESSORS", 32, 1, 1024);
    return count;
}

/* What a block may ask for; GPUs have 99 to 227. */
int shared_kib()
{
    static const int kib = setting("MUSTER_SIMT_SHARED_KIB", 228, 48, 228);
    return kib;
}

/* Never destroyed: threads of streams may still use them while the process exits. */
device &device_at(int ordinal)
{
    static device *const devices = new device[simt_most_devices];
    return devices[ordinal];
}

cudaError_t check_device(int ordinal)
{
    if (device_count() == 0)
        return cudaErrorNoDevice;
    return ordinal >= 0 && ordinal < device_count() ? cudaSuccess : cudaErrorInvalidDevice;
}

/* An attribute that is not here has no value that anybody could rely on. */
int attribute(cudaDeviceAttr name)
{
    switch (name) {
    case cudaDevAttrComputeCapabilityMajor: return 8; /* nothing may be launched early */
    case cudaDevAttrComputeCapabilityMinor: return 0;
    case cudaDevAttrMultiProcessorCount: return multiprocessors();
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return shared_kib() << 10;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 228 << 10;
    case cudaDevAttrL2CacheSize: return 1 << 20;
    default: return -1;
    }
}

} // namespace

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = device_count();
    return simt_report(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaSetDevice(int ordinal)
{
    cudaError_t error = check_device(ordinal);
    if (error == cudaSuccess)
        current_device = ordinal;
    return simt_report(error);
}

cudaError_t cudaGetDevice(int *ordinal)
{
    cudaError_t error = check_device(current_device);
    if (error == cudaSuccess)
        *ordinal = current_device;
    return simt_report(error);
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr name, int ordinal)
{
    cudaError_t error = check_device(ordinal);
    if (error == cudaSuccess && attribute(name) < 0)
        error = cudaErrorInvalidValue;
    if (error == cudaSuccess)
        *value = attribute(name);
    return simt_report(error);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int ordinal)
{
    cudaError_t error = check_device(ordinal);
    if (error != cudaSuccess)
        return simt_report(error);
    *properties = {};
    std::snprintf(properties->name, sizeof properties->name, "simulated device");
    properties->totalGlobalMem = simt_memory_bytes;
    properties->major = attribute(cudaDevAttrComputeCapabilityMajor);
    properties->minor = attribute(cudaDevAttrComputeCapabilityMinor);
    properties->multiProcessorCount = attribute(cudaDevAttrMultiProcessorCount);
    properties->warpSize = attribute(cudaDevAttrWarpSize);
    properties->maxThreadsPerBlock = attribute(cudaDevAttrMaxThreadsPerBlock);
    properties->maxThreadsPerMultiProcessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
    properties->sharedMemPerBlock = static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlock));
    properties->sharedMemPerBlockOptin = static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
    properties->sharedMemPerMultiprocessor =
        static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
    properties->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
    properties->unifiedAddressing = 1;
    properties->canMapHostMemory = 1;
    properties->concurrentKernels = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return simt_report(check_device(current_device));
}

/* ---------------------------------------------------------------------------------------------------------- streams */

namespace
{

void stream_forget(const std::shared_ptr<CUstream_st> &stream)
{
    device &on = device_at(stream->device);
    std::lock_guard<std::mutex> guard(on.lock);
    on.streams.erase(std::find(on.streams.begin(), on.streams.end(), stream));
}

/* Does the stream's work, until it is destroyed and all is done. */
void stream_run(const std::shared_ptr<CUstream_st> &stream)
{
    std::unique_lock<std::mutex> guard(stream->lock);
    for (;;) {
        stream->more.wait(guard, [&] { return stream->ended || !stream->queue.empty(); });
        if (stream->queue.empty())
            break;
        simt_work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        guard.unlock();
        work();
        work = nullptr; /* what it holds is given back before anybody learns that it is done */
        guard.lock();
        stream->done++;
        stream->passed.notify_all();
    }
    guard.unlock();
    stream_forget(stream);
}

/* The thread takes no signal: handlers belong to the program's own threads. The caller holds the device's lock. */
CUstream_st *stream_start(device &on, int ordinal)
{
    sigset_t all, before;
    std::shared_ptr<CUstream_st> stream = std::make_shared<CUstream_st>(ordinal);
    on.streams.push_back(stream);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread(stream_run, stream).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return stream.get();
}

CUstream_st *default_stream()
{
    if (check_device(current_device) != cudaSuccess)
        return nullptr;
    device &on = device_at(current_device);
    std::lock_guard<std::mutex> guard(on.lock);
    if (!on.default_stream)
        on.default_stream = stream_start(on, current_device);
    return on.default_stream;
}

/* NULL if there is no such stream. */
CUstream_st *stream_of(cudaStream_t handle)
{
    if (handle == nullptr || handle == cudaStreamLegacy)
        return default_stream();
    return handle == cudaStreamPerThread ? nullptr : handle;
}

cudaError_t stream_give(cudaStream_t handle, simt_work work)
{
    CUstream_st *stream = stream_of(handle);
    if (!stream)
        return cudaErrorInvalidResourceHandle;
    std::lock_guard<std::mutex> guard(stream->lock);
    if (stream->capture && stream->capture->spoiled)
        return cudaErrorStreamCaptureInvalidated;
    if (stream->capture) {
        stream->capture->work.push_back(std::move(work));
        return cudaSuccess;
    }
    stream->queue.push_back(std::move(work));
    stream->given++;
    stream->more.notify_one();
    return cudaSuccess;
}

/* Waits for all that it was given so far. */
void stream_wait(CUstream_st *stream)
{
    std::unique_lock<std::mutex> guard(stream->lock);
    uint64_t last = stream->given;
    stream->passed.wait(guard, [=] { return stream->done >= last; });
}

/* What asks for the state of a stream that is being captured spoils the capture. */
cudaError_t refuse_if_captured(CUstream_st *stream)
{
    if (!stream)
        return cudaErrorInvalidResourceHandle;
    std::lock_guard<std::mutex> guard(stream->lock);
    if (!stream->capture)
        return cudaSuccess;
    stream->capture->spoiled = true;
    return cudaErrorStreamCaptureUnsupported;
}

} // namespace

unsigned simt_late_ms()
{
    static const int late_ms = setting("MUSTER_SIMT_LATE_MS", 0, 0, 60000);
    return static_cast<unsigned>(late_ms);
}

cudaError_t simt_enqueue(cudaStream_t handle, simt_work work)
{
    CUstream_st *stream = stream_of(handle);
    if (!stream || stream->device != current_device)
        return simt_report(cudaErrorInvalidResourceHandle);
    return simt_report(stream_give(stream, std::move(work)));
}

/* Streams that wait for the default stream, and it for them, are not simulated. */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    cudaError_t error = check_device(current_device);
    if (error == cudaSuccess && flags != cudaStreamNonBlocking)
        error = cudaErrorNotSupported;
    if (error != cudaSuccess)
        return simt_report(error);
    device &on = device_at(current_device);
    std::lock_guard<std::mutex> guard(on.lock);
    *stream = stream_start(on, current_device);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int)
{
    return cudaStreamCreateWithFlags(stream, flags);
}

/* Returns at once; the stream's thread does what it was given, and forgets the stream then. */
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    if (stream_of(stream) != stream)
        return simt_report(cudaErrorInvalidResourceHandle);
    std::lock_guard<std::mutex> guard(stream->lock);
    stream->capture.reset();
    stream->ended = true;
    stream->more.notify_one();
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    CUstream_st *stream = stream_of(handle);
    cudaError_t error = refuse_if_captured(stream);
    if (error == cudaSuccess)
        stream_wait(stream);
    return simt_report(error);
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    CUstream_st *stream = stream_of(handle);
    cudaError_t error = refuse_if_captured(stream);
    if (error != cudaSuccess)
        return simt_report(error);
    std::lock_guard<std::mutex> guard(stream->lock);
    return simt_report(stream->done == stream->given ? cudaSuccess : cudaErrorNotReady);
}

void simt_wait_for_device(int ordinal)
{
    device &on = device_at(ordinal);
    std::unique_lock<std::mutex> guard(on.lock);
    std::vector<std::shared_ptr<CUstream_st>> streams = on.streams;
    guard.unlock();
    for (const std::shared_ptr<CUstream_st> &stream : streams)
        stream_wait(stream.get());
}

cudaError_t cudaDeviceSynchronize()
{
    cudaError_t error = check_device(current_device);
    if (error == cudaSuccess)
        error = simt_refuse_while_capturing();
    if (error == cudaSuccess)
        simt_wait_for_device(current_device);
    return simt_report(error);
}

/* ------------------------------------------------------------------------------------------------- copies, in order */

namespace
{

cudaError_t check_copy(const void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    return bytes > 0 && (!to || !from) ? cudaErrorInvalidValue : cudaSuccess;
}

} // namespace

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    cudaError_t error = check_copy(to, from, bytes, kind);
    if (error == cudaSuccess && bytes > 0)
        error = stream_give(stream, [=] { std::memcpy(to, from, bytes); });
    return simt_report(error);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    cudaError_t error = simt_refuse_while_capturing();
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return error == cudaSuccess ? cudaStreamSynchronize(nullptr) : simt_report(error);
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    cudaError_t error = bytes > 0 && !memory ? cudaErrorInvalidValue : cudaSuccess;
    if (error == cudaSuccess && bytes > 0)
        error = stream_give(stream, [=] { std::memset(memory, value, bytes); });
    return simt_report(error);
}

/* Of memory of a device it returns before it is done, as on a device. */
cudaError_t cudaMemset(void *memory, int value, size_t bytes)
{
    cudaError_t error = simt_refuse_while_capturing();
    return error == cudaSuccess ? cudaMemsetAsync(memory, value, bytes, nullptr) : simt_report(error);
}

/* ---------------------------------------------------------------------------------------------------------- capture */

struct CUgraph_st {
    std::vector<simt_work> work;
};

namespace
{

struct graph_launches {
    std::mutex running; /* a graph does not run beside itself, on whatever streams */
    std::vector<simt_work> work;
};

} // namespace

struct CUgraphExec_st {
    std::shared_ptr<graph_launches> launches; /* those that are not over hold it too */
};

namespace
{

bool capture_forbids(const capture &under_way)
{
    return under_way.mode == cudaStreamCaptureModeGlobal ||
           (under_way.mode == cudaStreamCaptureModeThreadLocal && under_way.thread == std::this_thread::get_id());
}

/* Whether there was one on the device that does not allow what the thread was about to do. */
bool device_spoil_captures(device &on)
{
    bool found = false;
    std::lock_guard<std::mutex> guard(on.lock);
    for (const std::shared_ptr<CUstream_st> &stream : on.streams) {
        std::lock_guard<std::mutex> stream_guard(stream->lock);
        if (!stream->capture || !capture_forbids(*stream->capture))
            continue;
        stream->capture->spoiled = true;
        found = true;
    }
    return found;
}

bool stream_is_captured(CUstream_st *stream)
{
    std::lock_guard<std::mutex> guard(stream->lock);
    return stream->capture != nullptr;
}

} // namespace

cudaError_t simt_refuse_while_capturing()
{
    bool found = false;
    for (int ordinal = 0; ordinal < device_count(); ordinal++)
        found |= device_spoil_captures(device_at(ordinal));
    return simt_report(found ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    if (stream_of(stream) != stream)
        return simt_report(cudaErrorStreamCaptureUnsupported);
    std::lock_guard<std::mutex> guard(stream->lock);
    if (stream->capture)
        return simt_report(cudaErrorIllegalState);
    stream->capture.reset(new capture{mode, std::this_thread::get_id(), false, {}});
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status)
{
    CUstream_st *stream = stream_of(handle);
    if (!stream)
        return simt_report(cudaErrorInvalidResourceHandle);
    std::lock_guard<std::mutex> guard(stream->lock);
    *status = !stream->capture           ? cudaStreamCaptureStatusNone
              : stream->capture->spoiled ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    *graph = nullptr;
    if (stream_of(stream) != stream)
        return simt_report(cudaErrorIllegalState);
    std::lock_guard<std::mutex> guard(stream->lock);
    if (!stream->capture)
        return simt_report(cudaErrorIllegalState);
    if (stream->capture->mode != cudaStreamCaptureModeRelaxed && stream->capture->thread != std::this_thread::get_id())
        return simt_report(cudaErrorStreamCaptureWrongThread);
    std::unique_ptr<capture> ended = std::move(stream->capture);
    if (ended->spoiled)
        return simt_report(cudaErrorStreamCaptureInvalidated);
    *graph = new CUgraph_st{std::move(ended->work)};
    return cudaSuccess;
}

/* ----------------------------------------------------------------------------------------------------------- graphs */

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    if (!graph || flags != 0)
        return simt_report(graph ? cudaErrorNotSupported : cudaErrorInvalidValue);
    *exec = new CUgraphExec_st{std::make_shared<graph_launches>()};
    (*exec)->launches->work = graph->work;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    if (!exec)
        return simt_report(cudaErrorInvalidValue);
    return simt_report(stream_give(stream, [launches = exec->launches] {
        std::lock_guard<std::mutex> guard(launches->running);
        for (const simt_work &work : launches->work)
            work();
    }));
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return simt_report(graph ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return simt_report(exec ? cudaSuccess : cudaErrorInvalidValue);
}

/* ----------------------------------------------------------------------------------------------------------- events */

namespace
{

struct event_state {
    std::mutex lock;
    int under_way = 0; /* records that their streams have not come to */
    int64_t ns = 0; /* of the last one; 0: none */
};

int64_t clock_now_ns()
{
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

/* `awaited`: whether event_expect() told of it; a node of a graph is not awaited. */
void event_pass(event_state &event, bool awaited)
{
    std::lock_guard<std::mutex> guard(event.lock);
    event.ns = clock_now_ns();
    event.under_way -= awaited;
}

void event_expect(event_state &event)
{
    std::lock_guard<std::mutex> guard(event.lock);
    event.under_way++;
}

cudaError_t event_time(event_state &event, int64_t *ns)
{
    std::lock_guard<std::mutex> guard(event.lock);
    *ns = event.ns;
    if (event.under_way > 0)
        return cudaErrorNotReady;
    return event.ns == 0 ? cudaErrorInvalidResourceHandle : cudaSuccess;
}

} // namespace

struct CUevent_st {
    const int device;
    std::shared_ptr<event_state> state; /* records that are under way hold it too */
};

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    cudaError_t error = check_device(current_device);
    if (error == cudaSuccess)
        *event = new CUevent_st{current_device, std::make_shared<event_state>()};
    return simt_report(error);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return simt_report(event ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

/* Events that order the nodes of a capture are not simulated: only those that are nodes themselves. */
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned flags)
{
    CUstream_st *stream = stream_of(handle);
    if (!event || !stream || stream->device != event->device)
        return simt_report(cudaErrorInvalidResourceHandle);
    bool external = flags == cudaEventRecordExternal, captured = stream_is_captured(stream);
    if (external != captured)
        return simt_report(external ? cudaErrorInvalidValue : cudaErrorNotSupported);
    if (!captured)
        event_expect(*event->state);
    return simt_report(stream_give(stream, [state = event->state, captured] { event_pass(*state, !captured); }));
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    int64_t start_ns, end_ns;
    if (!start || !end)
        return simt_report(cudaErrorInvalidResourceHandle);
    cudaError_t error = event_time(*start->state, &start_ns);
    if (error == cudaSuccess)
        error = event_time(*end->state, &end_ns);
    if (error == cudaSuccess)
        *ms = static_cast<float>(end_ns - start_ns) / 1e6f;
    return simt_report(error);
}
