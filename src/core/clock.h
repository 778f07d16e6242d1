// SPDX-License-Identifier: Apache-2.0
/* The one clock: monotonic nanoseconds. Nothing in src/control/member.c may use it. */
#ifndef CORE_CLOCK_H
#define CORE_CLOCK_H

#include <stdint.h>
#include <time.h>

/*
 * The longest length of time there is: 36 years. A caller may ask for any deadline, and what is longer becomes this, which
 * never passes. So several lengths can be added to each other, and to what the clock shows, without a wrap.
 */
#define CLOCK_LONGEST_NS (UINT64_C(1) << 60)

static inline uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A length of time that somebody has given, in nanoseconds. */
static inline uint64_t clock_ns_of_us(uint64_t us)
{
    return us < CLOCK_LONGEST_NS / 1000 ? us * 1000 : CLOCK_LONGEST_NS;
}

/* When a length of time that begins now is over. */
static inline uint64_t clock_ns_after_us(uint64_t us)
{
    return clock_ns() + clock_ns_of_us(us);
}

static inline struct timespec clock_timespec(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}

#endif
