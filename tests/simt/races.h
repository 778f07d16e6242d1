// SPDX-License-Identifier: Apache-2.0
/*
 * How the thread sanitizer sees the engine's fibers, in a library that is built for it (SIMT_RACES): each as a thread of its
 * own, and ordered only by what orders threads of a GPU. Here nothing happens otherwise.
 */
#ifndef SIMT_RACES_H
#define SIMT_RACES_H

#ifdef SIMT_RACES

#include <atomic>

extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *place);
void __tsan_release(void *place);
}

/* The thread that calls. */
inline void *races_self()
{
    return __tsan_get_current_fiber();
}

/*
 * Fibers take long to make, so they are used again. The lock is one that the sanitizer does not know, since this file's
 * users are compiled without it: a mutex would put blocks in an order.
 */
struct races_idle {
    std::atomic_flag locked = ATOMIC_FLAG_INIT;
    unsigned count = 0;
    void *fiber[8192]; /* the sanitizer takes no more threads */
};

inline races_idle &races_lock()
{
    static races_idle idle;
    while (idle.locked.test_and_set(std::memory_order_acquire))
        continue;
    return idle;
}

inline void races_unlock(races_idle &idle)
{
    idle.locked.clear(std::memory_order_release);
}

inline void *races_open()
{
    races_idle &idle = races_lock();
    void *fiber = idle.count > 0 ? idle.fiber[--idle.count] : nullptr;
    races_unlock(idle);
    return fiber ? fiber : __tsan_create_fiber(0);
}

inline void races_close(void *fiber)
{
    races_idle &idle = races_lock();
    idle.fiber[idle.count++] = fiber;
    races_unlock(idle);
}

/* What runs from here on is that fiber; the switch orders nothing. */
inline void races_switch(void *fiber)
{
    __tsan_switch_to_fiber(fiber, 1);
}

/* Whoever comes to a place later by races_after() sees what was written before races_before(). */
inline void races_before(void *place)
{
    __tsan_release(place);
}

inline void races_after(void *place)
{
    __tsan_acquire(place);
}

#else

inline void *races_self()
{
    return nullptr;
}

inline void *races_open()
{
    return nullptr;
}

inline void races_close(void *)
{
}

inline void races_switch(void *)
{
}

inline void races_before(void *)
{
}

inline void races_after(void *)
{
}

#endif

#endif
