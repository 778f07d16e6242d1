// SPDX-License-Identifier: Apache-2.0
/* See links.h. A block that sends has one that receives on the other device, which tells it when the next row may come. */
#include "gpu/links.h"

#include <cuda_runtime.h>

#include "kernels/cuda/post.cuh"

enum { PAIRS = 64, THREADS = 256, ROW_BYTES = 14336, PIECES = ROW_BYTES / 16, PEER = 1, DEVICES = 2 };
static constexpr uint64_t LATE_NS = 5000000000;

/* What lies in each device's memory, for what comes to it. */
struct links_region {
    unsigned char row[PAIRS][ROW_BYTES];
    uint64_t flag[PAIRS]; /* the round whose row has come */
    uint64_t taken[PAIRS]; /* the round whose row the other device has read */
};

struct links_work {
    struct links_region *own, *peer;
    struct links_found *found;
    enum links_way way;
    uint32_t rounds;
    int pairs;
};

/* Every word is another one in every round. */
static __device__ __forceinline__ uint4 links_piece(uint32_t round, int pair, int piece)
{
    uint32_t word = round * 0x9e3779b1u + (uint32_t)(pair * PIECES + piece) * 4u;
    return make_uint4(word, word + 1, word + 2, word + 3);
}

static __device__ __forceinline__ unsigned links_differing(uint4 a, uint4 b)
{
    return (a.x != b.x) + (a.y != b.y) + (a.z != b.z) + (a.w != b.w);
}

/* All threads of the block. False: it is late. */
static __device__ bool links_await(const struct links_work &w, const uint64_t *flag, uint64_t round)
{
    bool come = true;
    uint64_t begun_ns = clock_ns();
    while (threadIdx.x == 0 && come && flag_read(flag) < round)
        come = clock_ns() - begun_ns < LATE_NS;
    if (__syncthreads_and(come))
        return true;
    if (threadIdx.x == 0)
        w.found->late = 1;
    return false;
}

/* ---------------------------------------------------------------------------------------------------------- sending */

static __device__ void links_store(const struct links_work &w, int pair, uint32_t round)
{
    for (int i = threadIdx.x; i < PIECES; i += THREADS)
        stream_store(w.peer->row[pair] + 16 * i, links_piece(round, pair, i));
    __syncthreads();
    if (threadIdx.x == 0)
        flag_raise(&w.peer->flag[pair], round);
}

/* By the first warp: the row leaves, and its flag is posted, or stored at once. */
static __device__ void links_engine(const struct links_work &w, struct post_office *office, struct bulk_stage *stage,
                                    int pair, uint32_t round)
{
    int lane = (int)threadIdx.x;
    uint32_t posted = 0;
    bulk_store(stage, 0, lane == 0 ? w.peer->row[pair] : NULL, ROW_BYTES);
    bulk_stored();
    if (w.way == LINKS_ENGINE)
        post_flags(office, &posted, lane == 0 ? post_flag(PEER, (size_t)pair) : ~0u);
    else if (lane == 0)
        word_store(&w.peer->flag[pair], round);
    bulk_close(stage);
    if (w.way == LINKS_ENGINE)
        post_close(office);
}

/* The row through shared memory, by two warps when all have filled it: one sends it, the other is its postman. */
static __device__ void links_send_by_engine(const struct links_work &w, unsigned char *memory, int pair, uint32_t round)
{
    __shared__ struct turn turn;
    __shared__ struct post_office office;
    __shared__ uint64_t barrier;
    struct bulk_stage stage;
    for (int i = threadIdx.x; i < PIECES; i += THREADS)
        *(uint4 *)(memory + 16 * i) = links_piece(round, pair, i);
    bulk_filled();
    post_open(&office, 1);
    if (threadIdx.x < 32)
        bulk_open(&stage, memory, ROW_BYTES, &barrier);
    if (threadIdx.x == 0) {
        turn.view.peers[PEER] = (unsigned char *)w.peer;
        turn.stamp = round;
    }
    __syncthreads();
    if (threadIdx.x < 32)
        links_engine(w, &office, &stage, pair, round);
    else if (threadIdx.x < 64 && w.way == LINKS_ENGINE)
        post_deliver(&turn, &office, offsetof(struct links_region, flag));
}

static __device__ void links_send(const struct links_work &w, unsigned char *memory, int pair)
{
    bool come = true;
    for (uint32_t round = 1; come && round <= w.rounds; round++) {
        if (w.way == LINKS_STORES)
            links_store(w, pair, round);
        else
            links_send_by_engine(w, memory, pair, round);
        come = links_await(w, &w.own->taken[pair], round);
    }
}

/* -------------------------------------------------------------------------------------------------------- receiving */

/* In one round by loads of all threads, in the next by the engine. */
static __device__ unsigned links_take(const struct links_work &w, struct bulk_stage *stage, int pair, uint32_t round)
{
    bool engine = round % 2 == 0;
    unsigned wrong = 0;
    if (engine && threadIdx.x < 32) {
        bulk_see();
        bulk_expect(stage, ROW_BYTES);
        bulk_load(stage, 0, w.own->row[pair], ROW_BYTES);
        bulk_wait(stage);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < PIECES; i += THREADS) {
        uint4 come = engine ? *(const uint4 *)(stage->memory + 16 * i) : stream_load(w.own->row[pair] + 16 * i);
        wrong += links_differing(come, links_piece(round, pair, i));
    }
    return wrong;
}

static __device__ void links_receive(const struct links_work &w, unsigned char *memory, int pair)
{
    __shared__ uint64_t barrier;
    struct bulk_stage stage = {memory, ROW_BYTES, &barrier, 0};
    unsigned long long wrong = 0;
    if (threadIdx.x < 32)
        bulk_open(&stage, memory, ROW_BYTES, &barrier);
    uint32_t round = 1;
    for (; round <= w.rounds && links_await(w, &w.own->flag[pair], round); round++) {
        wrong += links_take(w, &stage, pair, round);
        __syncthreads();
        if (threadIdx.x == 0)
            flag_raise(&w.peer->taken[pair], round);
    }
    atomicAdd(&w.found->wrong, wrong);
    if (threadIdx.x == 0)
        atomicAdd(&w.found->checked, (unsigned long long)(round - 1) * (ROW_BYTES / 4));
    if (threadIdx.x < 32)
        bulk_close(&stage);
}

static __global__ void __launch_bounds__(THREADS, 1) links_kernel(const struct links_work w)
{
    __shared__ __align__(128) unsigned char memory[ROW_BYTES];
    int block = (int)blockIdx.x;
    if (block < w.pairs)
        links_send(w, memory, block);
    else
        links_receive(w, memory, block - w.pairs);
}

/* ------------------------------------------------------------------------------------------------------------- host */

struct links_device {
    int ordinal;
    struct links_region *region;
    struct links_found *found;
    cudaStream_t stream;
};

/* What both need: memory that is 0, access to the other's, and a kernel that is loaded before anything waits. */
static cudaError_t links_open(struct links_device *device, int ordinal, int other)
{
    struct cudaFuncAttributes attributes;
    device->ordinal = ordinal;
    cudaError_t error = cudaSetDevice(ordinal);
    if (error == cudaSuccess && other != ordinal)
        error = cudaDeviceEnablePeerAccess(other, 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError(); /* so that nobody else hears of it */
        error = cudaSuccess;
    }
    if (error == cudaSuccess)
        error = cudaFuncGetAttributes(&attributes, links_kernel);
    if (error == cudaSuccess)
        error = cudaMalloc(&device->region, sizeof *device->region);
    if (error == cudaSuccess)
        error = cudaMalloc(&device->found, sizeof *device->found);
    if (error == cudaSuccess)
        error = cudaMemset(device->region, 0, sizeof *device->region);
    if (error == cudaSuccess)
        error = cudaMemset(device->found, 0, sizeof *device->found);
    if (error == cudaSuccess)
        error = cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking);
    return error == cudaSuccess ? cudaDeviceSynchronize() : error;
}

static void links_close(struct links_device *device)
{
    cudaSetDevice(device->ordinal);
    if (device->stream)
        cudaStreamDestroy(device->stream);
    cudaFree(device->found);
    cudaFree(device->region);
}

/* All blocks must have a place at the same time. */
static cudaError_t links_pairs(const struct links_device *device, int devices, int *pairs)
{
    cudaError_t error = cudaSuccess;
    *pairs = PAIRS;
    for (int d = 0; d < devices && error == cudaSuccess; d++) {
        int multiprocessors = 0;
        error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device[d].ordinal);
        *pairs = multiprocessors / 2 < *pairs ? multiprocessors / 2 : *pairs;
    }
    return error;
}

static cudaError_t links_launch(const struct links_device *own, const struct links_device *peer, struct links_work w)
{
    w.own = own->region;
    w.peer = peer->region;
    w.found = own->found;
    cudaError_t error = cudaSetDevice(own->ordinal);
    if (error != cudaSuccess)
        return error;
    links_kernel<<<2 * w.pairs, THREADS, 0, own->stream>>>(w);
    return cudaGetLastError();
}

static cudaError_t links_add(const struct links_device *device, struct links_found *all)
{
    struct links_found found;
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(device->stream);
    if (error == cudaSuccess)
        error = cudaMemcpy(&found, device->found, sizeof found, cudaMemcpyDeviceToHost);
    if (error != cudaSuccess)
        return error;
    all->checked += found.checked;
    all->wrong += found.wrong;
    all->late |= found.late;
    return cudaSuccess;
}

const char *links_try(int one, int other, enum links_way way, uint32_t rounds, struct links_found *found)
{
    struct links_device device[DEVICES] = {};
    struct links_work work = {};
    int devices = one == other ? 1 : DEVICES;
    work.way = way;
    work.rounds = rounds;
    *found = {};
    cudaError_t error = links_open(&device[0], one, other);
    if (error == cudaSuccess && devices > 1)
        error = links_open(&device[1], other, one);
    if (error == cudaSuccess)
        error = links_pairs(device, devices, &work.pairs);
    for (int d = 0; d < devices && error == cudaSuccess; d++)
        error = links_launch(&device[d], &device[devices - 1 - d], work);
    for (int d = 0; d < devices && error == cudaSuccess; d++)
        error = links_add(&device[d], found);
    for (int d = 0; d < devices; d++)
        links_close(&device[d]);
    return error == cudaSuccess ? NULL : cudaGetErrorString(error);
}

bool links_exist(int one, int other)
{
    int there = 0, back = 0;
    if (one == other)
        return true;
    return cudaDeviceCanAccessPeer(&there, one, other) == cudaSuccess &&
           cudaDeviceCanAccessPeer(&back, other, one) == cudaSuccess && there && back;
}
