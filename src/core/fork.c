// SPDX-License-Identifier: Apache-2.0
#include "core/fork.h"

#include <pthread.h>
#include <stdatomic.h>

static _Atomic uint32_t forks;

static void count(void)
{
    atomic_fetch_add_explicit(&forks, 1, memory_order_relaxed);
}

static void watch(void)
{
    pthread_atfork(NULL, NULL, count);
}

void fork_watch(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch);
}

uint32_t fork_count(void)
{
    return atomic_load_explicit(&forks, memory_order_relaxed);
}
