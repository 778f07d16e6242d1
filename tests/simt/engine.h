// SPDX-License-Identifier: Apache-2.0
/*
 * Kernels on the host: each block is a thread of the operating system, each thread of a block a fiber of it. A fiber runs
 * until it waits: at a barrier, for the other lanes of its warp, or for a word of memory that it looks at. Which fiber
 * comes next changes from run to run, so that what holds only while lanes keep step does not hold here. When nobody in a
 * block can go on, the engine says who waits where, and aborts.
 *
 * What is not simulated: caches, the order of stores to memory beyond the host's own, the bulk copy engine (kernels are
 * compiled as for sm_80, which has none).
 */
#ifndef SIMT_ENGINE_H
#define SIMT_ENGINE_H

#include <cstdint>
#include <cstring>
#include <functional>

struct simt_index {
    unsigned x, y, z;
};

/* Where the fiber that asks is. */
const simt_index &simt_thread_index();
const simt_index &simt_block_index();
const simt_index &simt_block_size();
const simt_index &simt_grid_size();

/* Called by each block before it begins: see shared.cpp. */
void simt_begin_block();

/* Runs so many blocks of so many threads, and returns when all are over. The last of several begins so much later. */
void simt_run(unsigned blocks, unsigned threads, unsigned late_ms, const std::function<void()> &kernel);

/* Lets others go on: what this fiber waits for is somebody else's doing. */
void simt_look();

/*
 * A fence; whether this fiber has come to one since it joined others; that it has, at a barrier or by a word of the block that
 * it acquired, and so has what they stored; and that it has looked at a word that orders nothing. The sanitizer knows no
 * fences: so what is stored behind one releases, and a fence acquires what was looked at before. That is more than a fence
 * does: that a second one is missing, behind which a fiber that joined nobody stores again, is not seen.
 */
void simt_fence();
bool simt_fenced();
void simt_joined();
void simt_looked(const void *word);

/* Waits for `threads` threads of the block; 0: for all that have not ended. Barriers 0 to 15. */
void simt_barrier(unsigned barrier, unsigned threads);

/* Counts the threads that say so, at the barrier of all. */
unsigned simt_barrier_count(bool yes);

enum simt_operation { SIMT_SYNC, SIMT_SHUFFLE, SIMT_BALLOT, SIMT_MATCH };

/*
 * Gives a value to all lanes of the warp, and returns theirs, by lane; valid until the warp's next operation. All lanes
 * must come, for the same operation.
 */
const uint64_t *simt_exchange(simt_operation operation, uint64_t value);
unsigned simt_lanes(); /* of this warp: 32, or fewer in a small block */

template <typename T> uint64_t simt_bits(T value)
{
    static_assert(sizeof(T) <= sizeof(uint64_t), "no more fits into a lane");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}

template <typename T> T simt_value(uint64_t bits)
{
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif
