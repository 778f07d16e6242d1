// SPDX-License-Identifier: Apache-2.0
/* The symmetric memory of a group: on the host, or on the device that the group's backend drives. */
#include <unistd.h>

#include "control/group_state.h"
#include "core/clock.h"
#include "core/config.h"
#include "core/error.h"
#include "core/size.h"

static uint64_t memory_region_bytes(uint64_t memory_bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return size_round_up(size_add(sizeof(struct region_header), memory_bytes), page);
}

static muster_status memory_open_device(struct muster_group *g)
{
    const struct device_config config = {
        .ordinal = g->config.device,
        .rank = g->config.rank,
        .ranks = g->config.ranks,
        .operation_timeout_ns = clock_ns_of_us(g->config.operation_timeout_us),
        .step_timeout_ns = clock_ns_of_us(g->config.step_timeout_us),
        .first_sequence = group_first_sequence(g),
        .fault_tolerance = !g->config.no_fault_tolerance,
        .multiprocessors = (int32_t)config_number(CONFIG_MULTIPROCESSORS),
        .plan = (int32_t)config_number(CONFIG_PLAN),
        .error = error_set,
    };
    muster_status status = device_load(&g->device_ops);
    return status == MUSTER_OK ? g->device_ops->open(&config, &g->device) : status;
}

muster_status group_memory_open(struct muster_group *g)
{
    uint64_t bytes = memory_region_bytes(g->config.memory_bytes);
    if (g->config.backend == MUSTER_BACKEND_CPU)
        return shm_create(bytes, g->config.ranks, &g->region);
    muster_status status = memory_open_device(g);
    if (status != MUSTER_OK)
        return status;
    g->region.bytes = bytes;
    status = g->device_ops->region_create(g->device, bytes, &g->region.base, &g->region.fd);
    if (status != MUSTER_OK)
        g->device_ops->close(g->device);
    return status;
}

void group_memory_close(struct muster_group *g)
{
    if (!g->device) {
        shm_destroy(&g->region);
        return;
    }
    close(g->region.fd);
    g->device_ops->close(g->device);
}

muster_status group_memory_map(struct muster_group *g, int fd, unsigned char **base)
{
    if (g->device)
        return g->device_ops->map(g->device, fd, g->region.bytes, base);
    return shm_map(fd, g->region.bytes, base);
}

void group_memory_unmap(struct muster_group *g, unsigned char *base)
{
    if (g->device)
        g->device_ops->unmap(g->device, base, g->region.bytes);
    else
        shm_unmap(base, g->region.bytes);
}
