// SPDX-License-Identifier: Apache-2.0
/* The library's own threads, and why a process or a thread could not be started. */
#ifndef CORE_THREAD_H
#define CORE_THREAD_H

#include <pthread.h>

#include "muster/status.h"

enum { THREAD_TEXT_BYTES = 320 };

/*
 * With a stack that is large enough, whatever the limit of stacks (ulimit -s) says. `whose` begins the error: "the agent's
 * thread".
 */
muster_status thread_start(pthread_t *thread, void *(*run)(void *), void *argument, const char *whose);

/* The error of a fork or of pthread_create(), with the limits that may be behind it. Returns the text. */
const char *thread_explain(int error, char text[THREAD_TEXT_BYTES]);

#endif
