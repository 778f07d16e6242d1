// SPDX-License-Identifier: Apache-2.0
#include "inherited.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "control/store_server.h"

enum { SPARE = 12 /* for what is open only for a moment: the ends of pipes that a rank gets, files that are read */ };

static struct rlimit limit_before; /* of open files, as we got it */
static bool limit_raised;

/* A descriptor of ours must not become stdin, stdout or stderr because those were closed here. */
static void open_standard_streams(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

/*
 * While SIGCHLD is ignored the kernel reaps children by itself, and nobody learns how they ended. A full file is an
 * error of the write, to be told, and not a reason to die.
 */
static void set_dispositions(void)
{
    signal(SIGCHLD, SIG_DFL);
    signal(SIGXFSZ, SIG_IGN);
}

/* What ends us must reach us, and what we pass on must have effect on those we start. */
static void unblock_signals(void)
{
    static const int wanted[] = {SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGCHLD};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        sigaddset(&set, wanted[i]);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

void inherited_repair(void)
{
    open_standard_streams();
    set_dispositions();
    unblock_signals();
}

static uint64_t count_open(void)
{
    uint64_t count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (folder && readdir(folder))
        count++;
    if (folder)
        closedir(folder);
    return count;
}

static bool raise_limit(int32_t ranks, uint64_t needed, char *text, size_t bytes)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= needed)
        return true; /* a limit that cannot be read shows when a file cannot be opened */
    if (limit.rlim_max < needed) {
        snprintf(
            text, bytes,
            "%d ranks need %llu open files here, and the hard limit is %llu: raise it (ulimit -Hn), or start fewer",
            ranks, (unsigned long long)needed, (unsigned long long)limit.rlim_max);
        return false;
    }
    struct rlimit raised = {.rlim_cur = needed, .rlim_max = limit.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &raised) != 0) {
        snprintf(text, bytes, "%d ranks need %llu open files here, and the limit of %llu cannot be raised: %s", ranks,
                 (unsigned long long)needed, (unsigned long long)limit.rlim_cur, strerror(errno));
        return false;
    }
    if (!limit_raised)
        limit_before = limit;
    limit_raised = true;
    return true;
}

bool inherited_make_room(int32_t ranks, int32_t more, char *text, size_t bytes)
{
    uint64_t needed = count_open() + store_server_descriptors(ranks) + (uint64_t)ranks * (uint64_t)more + SPARE;
    return raise_limit(ranks, needed, text, bytes);
}

void inherited_give_back_descriptors(void)
{
    if (limit_raised)
        setrlimit(RLIMIT_NOFILE, &limit_before);
}
