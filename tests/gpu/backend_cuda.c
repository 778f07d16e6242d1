// SPDX-License-Identifier: Apache-2.0
/*
 * Ranks as threads, each with a stream and an arena on a device; several share one where there are fewer devices. The
 * arena is taken before any group exists: taking memory from a device may wait for its kernels, and those for a rank
 * that takes memory.
 */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/backend.h"

enum { MAX_RANKS = 8, ARENA_BYTES = 192 << 20, ALIGNMENT = 256 };

struct gpu_rank {
    int ordinal;
    cudaStream_t stream;
    unsigned char *arena;
    size_t used;
    int outstanding; /* allocations; the arena begins afresh when there are none */
};

static struct gpu_rank ranks[MAX_RANKS];
static _Thread_local struct gpu_rank *current;

static void must(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    abort();
}

static int devices(void)
{
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

static void share_multiprocessors(int count)
{
    int multiprocessors;
    char text[16];
    must(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "multiprocessors");
    int sharing = (MAX_RANKS + count - 1) / count;
    snprintf(text, sizeof text, "%d", multiprocessors / sharing);
    setenv("MUSTER_MULTIPROCESSORS", text, 0);
}

static void make_ranks(void)
{
    int count = devices();
    if (count == 0) {
        printf("[  SKIPPED ] there is no CUDA device\n");
        exit(77);
    }
    share_multiprocessors(count);
    for (int r = 0; r < MAX_RANKS; r++) {
        ranks[r].ordinal = r % count;
        must(cudaSetDevice(ranks[r].ordinal), "cudaSetDevice");
        must(cudaStreamCreateWithFlags(&ranks[r].stream, cudaStreamNonBlocking), "a stream");
        must(cudaMalloc((void **)&ranks[r].arena, ARENA_BYTES), "an arena");
    }
}

static void rank_begin(int rank)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); /* streams that share a queue would wait for each other */
    pthread_once(&once, make_ranks);
    current = &ranks[rank];
    must(cudaSetDevice(current->ordinal), "cudaSetDevice");
}

static muster_device device(void)
{
    return (muster_device){MUSTER_DEVICE_CUDA, current->ordinal};
}

static void *stream(void)
{
    return current->stream;
}

static void *allocate(size_t bytes)
{
    unsigned char *memory = current->arena + current->used;
    current->used += (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    current->outstanding++;
    if (current->used <= ARENA_BYTES)
        return memory;
    fprintf(stderr, "the arena of a rank is full\n");
    abort();
}

static void release(void *memory)
{
    if (memory && --current->outstanding == 0)
        current->used = 0;
}

static void copy(void *to, const void *from, size_t bytes)
{
    must(cudaStreamSynchronize(current->stream), "the stream"); /* a copy that waits for kernels may hold up others */
    if (bytes)
        must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, current->stream), "a copy");
    must(cudaStreamSynchronize(current->stream), "the stream");
}

static const struct test_backend cuda = {
    .backend = MUSTER_BACKEND_CUDA,
    .max_ranks = MAX_RANKS,
    .rank_begin = rank_begin,
    .device = device,
    .stream = stream,
    .allocate = allocate,
    .release = release,
    .copy = copy,
};

const struct test_backend *const test_backend = &cuda;
