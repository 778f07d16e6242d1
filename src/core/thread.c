// SPDX-License-Identifier: Apache-2.0
#include "core/thread.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/error.h"

/* The agent needs 24 KiB; a program's callbacks run on its stack, too. Of what is not used no memory is taken. */
enum { STACK_BYTES = 1 << 20 };

/* A thread's stack is as large as the main one may become, which may be next to nothing. */
static int thread_set_stack(pthread_attr_t *attributes)
{
    size_t bytes = 0;
    int error = pthread_attr_getstacksize(attributes, &bytes);
    return error || bytes >= STACK_BYTES ? error : pthread_attr_setstacksize(attributes, STACK_BYTES);
}

static int thread_create(pthread_t *thread, void *(*run)(void *), void *argument)
{
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error)
        return error;
    error = thread_set_stack(&attributes);
    if (!error)
        error = pthread_create(thread, &attributes, run, argument);
    pthread_attr_destroy(&attributes);
    return error;
}

static size_t thread_add_limit(char text[THREAD_TEXT_BYTES], size_t used, int which, const char *name)
{
    struct rlimit limit;
    if (getrlimit(which, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || used >= THREAD_TEXT_BYTES)
        return used;
    int more =
        snprintf(text + used, THREAD_TEXT_BYTES - used, "%s is %llu, ", name, (unsigned long long)limit.rlim_cur);
    return used + (size_t)more;
}

/* The kernel does not say which one it was. */
const char *thread_explain(int error, char text[THREAD_TEXT_BYTES])
{
    size_t used = (size_t)snprintf(text, THREAD_TEXT_BYTES, "%s", strerror(error));
    if ((error != EAGAIN && error != ENOMEM) || used >= THREAD_TEXT_BYTES)
        return text;
    char processes[80];
    snprintf(processes, sizeof processes, "RLIMIT_NPROC (ulimit -u) for all threads of user %u", getuid());
    used += (size_t)snprintf(text + used, THREAD_TEXT_BYTES - used, "; these limits may be too low: ");
    used = thread_add_limit(text, used, RLIMIT_NPROC, processes);
    used = thread_add_limit(text, used, RLIMIT_AS, "RLIMIT_AS (ulimit -v)");
    if (used < THREAD_TEXT_BYTES)
        snprintf(text + used, THREAD_TEXT_BYTES - used, "pids.max of a cgroup");
    return text;
}

muster_status thread_start(pthread_t *thread, void *(*run)(void *), void *argument, const char *whose)
{
    char why[THREAD_TEXT_BYTES];
    int error = thread_create(thread, run, argument);
    if (!error)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_SYSTEM, "%s cannot be started: %s", whose, thread_explain(error, why));
}
