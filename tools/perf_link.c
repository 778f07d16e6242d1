// SPDX-License-Identifier: Apache-2.0
#include "perf_link.h"

#include <stdio.h>
#include <stdlib.h>

/* Long enough that neither a launch nor the barrier's slack counts for more than a percent. */
#define CHUNK_BYTES (UINT64_C(64) << 20)
#define LEAST_ROUND_BYTES (UINT64_C(512) << 20)

_Static_assert((int)PERF_HANDLE_BYTES >= (int)RUNTIME_HANDLE_BYTES, "a handle fits on the board");

struct link {
    struct perf_board *board;
    const struct perf_device *device;
    int32_t rank, ranks;
    unsigned char *memory; /* a chunk from each rank, and last the one that goes out */
    void *peer[MUSTER_MAX_RANKS]; /* the same of others, NULL where it is not mapped */
};

/* How often a rank copies a chunk to each other one in a round. */
static uint64_t copies_each(int32_t ranks)
{
    uint64_t once = CHUNK_BYTES * (uint64_t)(ranks - 1);
    return (LEAST_ROUND_BYTES + once - 1) / once;
}

/* The first reason is kept. All ranks go on to the end, since they wait for each other. */
static void refuse(const struct link *l, const char *what)
{
    if (!atomic_exchange(&l->board->link.refused, true))
        snprintf(l->board->link.why, sizeof l->board->link.why, "rank %d: %s: %s", l->rank, what, muster_last_error());
}

static bool refused(const struct link *l)
{
    return atomic_load(&l->board->link.refused);
}

static void take_memory(struct link *l)
{
    l->memory = perf_device_allocate(l->device, CHUNK_BYTES * (uint64_t)(l->ranks + 1));
    if (!l->memory || l->device->runtime->export_memory(l->memory, l->board->link.handle[l->rank]) != MUSTER_OK)
        refuse(l, "memory for others to copy into");
}

static void map_peers(struct link *l)
{
    for (int32_t r = 0; r < l->ranks && !refused(l); r++)
        if (r != l->rank && l->device->runtime->import_memory(l->board->link.handle[r], &l->peer[r]) != MUSTER_OK)
            refuse(l, "memory of another rank");
}

static void unmap_peers(struct link *l)
{
    for (int32_t r = 0; r < l->ranks; r++)
        if (l->peer[r])
            l->device->runtime->unmap_memory(l->peer[r]);
}

/* The next rank first, then the one after that: at no time do two ranks send to the same. */
static bool enqueue_copies(const struct link *l)
{
    const unsigned char *from = l->memory + CHUNK_BYTES * (uint64_t)l->ranks;
    for (int32_t step = 1; step < l->ranks; step++) {
        unsigned char *to = l->peer[(l->rank + step) % l->ranks];
        if (l->device->runtime->enqueue_copy(to + CHUNK_BYTES * (uint64_t)l->rank, from, CHUNK_BYTES,
                                             l->device->stream) != MUSTER_OK)
            return false;
    }
    return true;
}

static void copy_round(const struct link *l, int32_t round)
{
    const struct runtime *run = l->device->runtime;
    void *begin = l->device->event[0], *end = l->device->event[1];
    double us = 0;
    bool good = run->event_record(begin, l->device->stream) == MUSTER_OK;
    for (uint64_t i = 0; i < copies_each(l->ranks) && good; i++)
        good = enqueue_copies(l);
    good = good && run->event_record(end, l->device->stream) == MUSTER_OK && perf_device_wait(l->device) &&
           run->event_elapsed_us(begin, end, &us) == MUSTER_OK;
    if (good)
        l->board->link.round_ns[l->rank][round] = (uint32_t)(us * 1000.0);
    else
        refuse(l, "copying to other ranks");
}

bool perf_link_measure(struct perf_board *board, const struct perf_device *device, int32_t rank, uint32_t *round)
{
    struct link l = {.board = board, .device = device, .rank = rank, .ranks = board->shape.ranks};
    take_memory(&l);
    bool together = perf_board_align(board, PERF_LIBRARY, round);
    if (together)
        map_peers(&l);
    for (int32_t i = 0; i < PERF_LINK_ROUNDS && together; i++) {
        together = perf_board_align(board, PERF_LIBRARY, round);
        if (together && !refused(&l))
            copy_round(&l, i);
    }
    unmap_peers(&l);
    together = together && perf_board_align(board, PERF_LIBRARY, round); /* nobody has it mapped any more */
    perf_device_release(device, l.memory);
    return together;
}

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

double perf_link_rate_gbs(const struct perf_board *board)
{
    uint32_t slowest[PERF_LINK_ROUNDS - 1] = {0};
    int32_t ranks = board->shape.ranks;
    for (int32_t i = 1; i < PERF_LINK_ROUNDS; i++)
        for (int32_t r = 0; r < ranks; r++)
            if (board->link.round_ns[r][i] > slowest[i - 1])
                slowest[i - 1] = board->link.round_ns[r][i];
    qsort(slowest, PERF_LINK_ROUNDS - 1, sizeof *slowest, by_size);
    uint32_t median = slowest[(PERF_LINK_ROUNDS - 1) / 2];
    if (ranks < 2 || atomic_load(&board->link.refused) || median == 0)
        return 0;
    return (double)(CHUNK_BYTES * (uint64_t)(ranks - 1) * copies_each(ranks)) / median;
}
