// SPDX-License-Identifier: Apache-2.0
/* Tells a process from its forked children without a system call. */
#ifndef CORE_FORK_H
#define CORE_FORK_H

#include <stdint.h>

/* From now on, forks are counted. Any thread; never fails: without memory, children are not told apart. */
void fork_watch(void);

/* How many of this process's ancestors, and it itself, came from fork() since one of them first called fork_watch(). */
uint32_t fork_count(void);

#endif
