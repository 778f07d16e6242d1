// SPDX-License-Identifier: Apache-2.0
/*
 * Runs a program in which a system call is refused, as an old container's profile refuses those that it does not know.
 * without_call CALL EPERM|ENOSYS|EAGAIN PROGRAM [ARGUMENT...]
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { USAGE = 2, UNAVAILABLE = 77, NOT_STARTED = 126 };

/* By name, since numbers differ from machine to machine. */
static long call_number(const char *name)
{
    if (strcmp(name, "pidfd_open") == 0)
        return SYS_pidfd_open;
    if (strcmp(name, "pidfd_send_signal") == 0)
        return SYS_pidfd_send_signal;
    if (strcmp(name, "clone3") == 0)
        return SYS_clone3;
    return -1;
}

static int error_number(const char *name)
{
    static const int known[] = {EPERM, ENOSYS, EAGAIN};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, strerrorname_np(known[i])) == 0)
            return known[i];
    return 0;
}

static int refuse_call(unsigned int number, unsigned int error)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

int main(int argc, char **argv)
{
    long number = argc > 3 ? call_number(argv[1]) : -1;
    int error = argc > 3 ? error_number(argv[2]) : 0;
    if (number < 0 || !error)
        return fprintf(stderr, "usage: without_call CALL EPERM|ENOSYS|EAGAIN PROGRAM...\n"), USAGE;
    if (refuse_call((unsigned int)number, (unsigned int)error) != 0) {
        perror("without_call: seccomp");
        return UNAVAILABLE;
    }
    execvp(argv[3], &argv[3]);
    perror(argv[3]);
    return NOT_STARTED;
}
