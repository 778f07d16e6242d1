// SPDX-License-Identifier: Apache-2.0
/*
 * How much memory there is room for, and what stands in its way. The kernel promises memory that it does not have, and ends
 * processes when it is asked for it; so the limits are looked at before memory is taken.
 */
#ifndef MEMORY_ROOM_H
#define MEMORY_ROOM_H

#include <stdint.h>

#include "muster/status.h"

enum { ROOM_TEXT_BYTES = 320 };

struct room {
    uint64_t bytes; /* that can be taken without another process being ended for it; UINT64_MAX: not known */
    char limit[ROOM_TEXT_BYTES]; /* which limit that is: "MemAvailable of the host", or that of a cgroup */
};

/*
 * The least of what the host has available and of what is left in each memory cgroup, of either version, up to the root.
 * `proc`: "/proc", or what a test has in its place.
 */
void room_find(const char *proc, struct room *room);

/* MEMORY, with both numbers and the limit, if there is no room for `bytes`, which are wanted for `what`. */
muster_status room_check(uint64_t bytes, const char *what, struct room *room);

/* Words why memory could not be taken though there was room for it: strict accounting, or else the error. */
void room_explain_take(const char *proc, int error, char text[ROOM_TEXT_BYTES]);

/* Words why `bytes` could not be mapped: the limit that is in the way, or else the error. */
void room_explain_map(int error, uint64_t bytes, char text[ROOM_TEXT_BYTES]);

#endif
