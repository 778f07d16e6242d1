// SPDX-License-Identifier: Apache-2.0
/*
 * All that differs between a campaign on GPUs and one on the CPU: how memory is had and copied, how a step is waited for,
 * and how a rank hangs. Functions return MUSTER_OK, or an error whose text is set.
 */
#ifndef TOOLS_CHAOS_DEVICE_H
#define TOOLS_CHAOS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/runtime.h"
#include "muster/memory.h"

struct chaos_device {
    const struct runtime *runtime; /* NULL: the CPU */
    void *stream; /* NULL on the CPU */
    muster_device where; /* of tensors */
};

/*
 * For the supervisor: how many devices there are, and multiprocessors of the first. UNSUPPORTED, with the reason, if
 * there is none.
 */
muster_status chaos_device_look(int32_t *devices, int32_t *multiprocessors);

/* For a rank; several share a device where there are fewer devices than ranks. */
muster_status chaos_device_open(struct chaos_device *device, bool gpu, int32_t rank);

/* Zeroed, until the process ends. Before a group exists: see runtime.allocate. */
muster_status chaos_device_allocate(const struct chaos_device *device, void **memory, size_t bytes);

/* In either direction. Waits for the stream. */
muster_status chaos_device_copy(const struct chaos_device *device, void *to, const void *from, size_t bytes);

/* Waits until all that was enqueued is done; AGAIN when the time is up. */
muster_status chaos_device_wait(const struct chaos_device *device, int32_t timeout_ms);

/* What this rank does next never comes: enqueues a kernel that never ends, or, on the CPU, does not return. */
muster_status chaos_device_hang(const struct chaos_device *device);

/* The name of the error that the device is in and cannot leave, or NULL. */
const char *chaos_device_broken(const struct chaos_device *device);

#endif
