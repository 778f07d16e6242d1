// SPDX-License-Identifier: Apache-2.0
/*
 * Runs a program whose signals are ignored or blocked from the start: a shell cannot block any. with_signals
 * ignore|block SIGNAL... -- PROGRAM [ARGUMENT...], signals as in "TERM"
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { USAGE = 2, NOT_STARTED = 126 };

static int signal_number(const char *name)
{
    for (int number = 1; number < NSIG; number++) {
        const char *known = sigabbrev_np(number);
        if (known && strcmp(known, name) == 0)
            return number;
    }
    return 0;
}

int main(int argc, char **argv)
{
    sigset_t blocked;
    sigemptyset(&blocked);
    int at = 2;
    for (; at < argc && strcmp(argv[at], "--") != 0; at++) {
        int number = signal_number(argv[at]);
        if (!number)
            return fprintf(stderr, "with_signals: no signal %s\n", argv[at]), USAGE;
        if (strcmp(argv[1], "ignore") == 0)
            signal(number, SIG_IGN);
        else
            sigaddset(&blocked, number);
    }
    if (at + 1 >= argc)
        return fprintf(stderr, "with_signals: a program is needed\n"), USAGE;
    sigprocmask(SIG_SETMASK, &blocked, NULL);
    execvp(argv[at + 1], &argv[at + 1]);
    perror(argv[at + 1]);
    return NOT_STARTED;
}
