// SPDX-License-Identifier: Apache-2.0
/*
 * How long this machine takes. Tests share it with others: a thread that could run waits for a core, one that sleeps wakes
 * up late, and the whole machine may stand still for a while. No test may fail for that. So
 *
 * - what must come at all is waited for by a condition, with a bound that only ends a hang: PACE_PATIENCE_MS;
 * - what must come *soon* is measured by a pace, which leaves out the time for which the machine kept the test waiting;
 * - what hangs on a deadline of the library's (a rank is judged by it) is tried again with a longer one if it fails while
 *   the machine kept the test waiting for a good part of the deadline: pace_again(). On a machine that keeps up it fails
 *   at once.
 */
#ifndef LIB_PACE_H
#define LIB_PACE_H

#include <stdbool.h>
#include <stdint.h>

/* Long for any machine, and short of the time limit that ctest sets. */
enum { PACE_PATIENCE_MS = 100000, PACE_MOST = 16 };

/* A stopwatch. */
struct pace {
    uint64_t begin_ns, kept_ns;
};

/* Begins now. The first call starts a thread that sleeps and looks how late it wakes up. */
struct pace pace_begin(void);

/*
 * For how long the machine has kept this process and its children waiting since then: what their threads spent waiting
 * for a core, all taken together, and what a sleeping thread was late.
 */
int pace_kept_ms(const struct pace *pace);

/* The time since then without that; never below 0. For "soon" alone: it may be less than what has passed. */
int pace_ms(const struct pace *pace);

/* All the time since then. */
int pace_wall_ms(const struct pace *pace);

/* Whether what must come within limit_ms is overdue, without what the machine took; after ten times as long in any case. */
bool pace_over(const struct pace *pace, int limit_ms);

/*
 * Whether an attempt that failed may be made again, with deadlines that are 4 times as long: the machine has kept it
 * waiting for at least half of `deadline_ms`, the shortest deadline in it, and *stretch is below PACE_MOST. Raises
 * *stretch, which was 1 at first, and says so on stderr. Wrong data must never be tried again.
 */
bool pace_again(int kept_ms, int deadline_ms, int *stretch);

/* Sleeps for that long at least. */
void pace_sleep_ms(int ms);

#endif
