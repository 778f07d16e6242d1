// SPDX-License-Identifier: Apache-2.0
/* Starts one process of a rank, and makes sure that it cannot outlive the launcher. */
#ifndef TOOLS_PROCESS_H
#define TOOLS_PROCESS_H

#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct process_plan {
    char **arguments; /* program and arguments, NULL at the end */
    int32_t rank, ranks;
    int store; /* its end of the store's socket pair: it inherits this descriptor and no other of ours; -1: it has none */
    const char *store_name; /* the abstract socket at which it finds the store otherwise; NULL: it has none */
    int in; /* what becomes its stdin; 0: /dev/null */
    int out, err; /* what becomes its stdout and stderr; -1: ours */
    sigset_t mask; /* the signal mask that we were started with */
};

/* The process, in a process group of its own with the same number; -1 with errno. */
pid_t process_start(const struct process_plan *plan);

/* The file that this process runs. False with errno. */
bool process_self(char path[PATH_MAX]);

struct store_server;

/* This tool once more, as one rank of what it measures or tortures: `TOOL COMMAND ROLE BOARD`. */
struct process_rank {
    const char *command, *role;
    int board; /* descriptor of the memory that it shares with us: BOARD is a path to it */
    struct store_server *server; /* gets a connection to the rank; NULL: it needs no store */
    int32_t rank, ranks;
    int err; /* as in process_plan */
};

/* As process_start(), with the signal mask that we have. */
pid_t process_start_rank(const struct process_rank *rank);

/* A signal to the process and all that share its group. */
void process_signal(pid_t pid, int signal);

/*
 * What the ranks have left behind comes to us, who asked to inherit it: kills it all. Blocks until it has exited, at
 * most timeout_ns. Returns how many there were; -1: there are some, but the kernel does not tell which.
 */
int process_sweep(uint64_t timeout_ns);

#endif
