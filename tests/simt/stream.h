// SPDX-License-Identifier: Apache-2.0
/* The simulated CUDA runtime, for what runs kernels on it and for its own parts. Programs use the CUDA headers. */
#ifndef SIMT_STREAM_H
#define SIMT_STREAM_H

#include <cstddef>
#include <functional>

#include <cuda_runtime_api.h>

constexpr int simt_most_devices = 16;
constexpr size_t simt_memory_bytes = size_t{8} << 30; /* of each device */

/*
 * In stream order on the stream's own host thread, or recorded if the stream is being captured. As for a kernel, the
 * stream must be of the thread's current device. An error is also the thread's last one.
 */
cudaError_t simt_enqueue(cudaStream_t stream, std::function<void()> work);

/* By so much the last block of a kernel is late: MUSTER_SIMT_LATE_MS. */
unsigned simt_late_ms();

/* Keeps an error as the thread's last one, as every call of the runtime does, and returns it. */
cudaError_t simt_report(cudaError_t error);

/* Of calls that a capture does not allow: an error, and the capture is spoiled, if one is under way. */
cudaError_t simt_refuse_while_capturing();

/* Waits for all that its streams were given so far. */
void simt_wait_for_device(int ordinal);

#endif
