// SPDX-License-Identifier: Apache-2.0
/*
 * A write may raise a signal that ends the process: SIGPIPE where nobody reads, SIGXFSZ beyond RLIMIT_FSIZE. What the library
 * writes for people is not worth that, and how signals are handled is the program's business. So they are held back in this
 * thread for as long as it writes, and what has come of it is taken away.
 */
#ifndef CORE_SIGNALS_H
#define CORE_SIGNALS_H

#include <signal.h>
#include <time.h>

struct signals_held {
    sigset_t before; /* the thread's mask */
    sigset_t own; /* those that only this thread's writes can have raised meanwhile */
};

static inline void signals_hold(struct signals_held *held)
{
    sigset_t pending;
    sigemptyset(&held->own);
    sigaddset(&held->own, SIGPIPE);
    sigaddset(&held->own, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &held->own, &held->before);
    sigpending(&pending); /* of the program's own, which it has blocked: they stay */
    if (sigismember(&pending, SIGPIPE))
        sigdelset(&held->own, SIGPIPE);
    if (sigismember(&pending, SIGXFSZ))
        sigdelset(&held->own, SIGXFSZ);
}

static inline void signals_let_go(const struct signals_held *held)
{
    const struct timespec at_once = {0, 0};
    while (sigtimedwait(&held->own, NULL, &at_once) > 0) {
    }
    pthread_sigmask(SIG_SETMASK, &held->before, NULL);
}

#endif
