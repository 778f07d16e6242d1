// SPDX-License-Identifier: Apache-2.0
/*
 * The seam between the kernels and the memory that ranks share. Every store that a peer may read, and every load of
 * something a peer writes, goes through these functions; so does every look at the clock and every pause of a wait.
 * Compiled as usual they are plain loads, stores and system calls. With MUSTER_SIMULATED_MEMORY a simulator stands
 * behind them and delays each store on its own.
 */
#ifndef CPU_MEMORY_H
#define CPU_MEMORY_H

#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "core/clock.h"

#ifdef MUSTER_SIMULATED_MEMORY

void remote_copy(void *to, const void *from, size_t bytes);
void remote_read(void *to, const void *from, size_t bytes);
void *remote_open(void *to, void *scratch);
void remote_close(void *to, const void *opened, size_t bytes);
const void *remote_view(const void *from, void *scratch, size_t bytes);
void flag_raise(_Atomic uint64_t *flag, uint64_t stamp);
uint64_t flag_read(const _Atomic uint64_t *flag);
void store_fence(void);
void load_fence(void);
void wait_poll(void);
void wait_yield(void);
void wait_sleep(uint64_t ns);
uint64_t wait_clock_ns(void);

#else

/* Stores bytes that a peer will read. Unordered until the next flag_raise(). */
static inline void remote_copy(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

/* Loads bytes that a peer has written; a flag of that peer must have been read before. */
static inline void remote_read(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

/* Where to write a row that a peer will read: the place itself, or scratch that remote_close() stores. */
static inline void *remote_open(void *to, void *scratch)
{
    (void)scratch;
    return to;
}

static inline void remote_close(void *to, const void *opened, size_t bytes)
{
    (void)to;
    (void)opened;
    (void)bytes;
}

/* Where to read a row that a peer has written: the place itself, or scratch that it was loaded into. */
static inline const void *remote_view(const void *from, void *scratch, size_t bytes)
{
    (void)scratch;
    (void)bytes;
    return from;
}

/* Release: whoever reads this stamp also sees everything this rank has stored or read before. */
static inline void flag_raise(_Atomic uint64_t *flag, uint64_t stamp)
{
    atomic_store_explicit(flag, stamp, memory_order_release);
}

/* Acquire: the other half. */
static inline uint64_t flag_read(const _Atomic uint64_t *flag)
{
    return atomic_load_explicit(flag, memory_order_acquire);
}

/* Whoever sees a store that comes after this also sees those that came before: a flag raised among them too. */
static inline void store_fence(void)
{
    atomic_thread_fence(memory_order_release);
}

/* The other half: what is loaded before this is not loaded later than what comes after. */
static inline void load_fence(void)
{
    atomic_thread_fence(memory_order_acquire);
}

/* Between two polls: lets the other thread of this core run, and the flag's line arrive. */
static inline void wait_poll(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline void wait_yield(void)
{
    sched_yield();
}

static inline void wait_sleep(uint64_t ns)
{
    struct timespec time = {.tv_nsec = (long)ns};
    nanosleep(&time, NULL);
}

static inline uint64_t wait_clock_ns(void)
{
    return clock_ns();
}

#endif
#endif
