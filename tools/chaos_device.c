// SPDX-License-Identifier: Apache-2.0
#include "chaos_device.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"

enum { ALIGNMENT = 64 };

static muster_status load(const struct runtime **runtime)
{
    muster_status status = runtime_load(runtime);
    if (status == MUSTER_OK && (*runtime)->count() == 0)
        return error_set(MUSTER_ERR_UNSUPPORTED, "there is no CUDA device, or no driver for it");
    return status;
}

muster_status chaos_device_look(int32_t *devices, int32_t *multiprocessors)
{
    const struct runtime *runtime;
    struct runtime_device first;
    muster_status status = load(&runtime);
    if (status == MUSTER_OK)
        status = runtime->describe(&first);
    if (status != MUSTER_OK)
        return status;
    *devices = runtime->count();
    *multiprocessors = first.multiprocessors;
    return MUSTER_OK;
}

muster_status chaos_device_open(struct chaos_device *device, bool gpu, int32_t rank)
{
    *device = (struct chaos_device){.where = {MUSTER_DEVICE_CPU, 0}};
    if (!gpu)
        return MUSTER_OK;
    muster_status status = load(&device->runtime);
    if (status != MUSTER_OK)
        return status;
    device->where = (muster_device){MUSTER_DEVICE_CUDA, rank % device->runtime->count()};
    status = device->runtime->use(device->where.index);
    return status == MUSTER_OK ? device->runtime->stream_create(&device->stream) : status;
}

muster_status chaos_device_allocate(const struct chaos_device *device, void **memory, size_t bytes)
{
    if (device->runtime)
        return device->runtime->allocate(memory, bytes);
    size_t whole = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    *memory = aligned_alloc(ALIGNMENT, whole);
    if (!*memory)
        return error_set(MUSTER_ERR_MEMORY, "no memory for %zu bytes", bytes);
    memset(*memory, 0, whole);
    return MUSTER_OK;
}

muster_status chaos_device_copy(const struct chaos_device *device, void *to, const void *from, size_t bytes)
{
    if (device->runtime)
        return device->runtime->copy(to, from, bytes, device->stream);
    memcpy(to, from, bytes);
    return MUSTER_OK;
}

muster_status chaos_device_wait(const struct chaos_device *device, int32_t timeout_ms)
{
    return device->runtime ? device->runtime->stream_wait(device->stream, timeout_ms) : MUSTER_OK;
}

muster_status chaos_device_hang(const struct chaos_device *device)
{
    if (device->runtime)
        return device->runtime->spin(device->stream, UINT64_MAX);
    for (;;)
        pause();
}

const char *chaos_device_broken(const struct chaos_device *device)
{
    return device->runtime ? device->runtime->broken() : NULL;
}
