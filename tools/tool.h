// SPDX-License-Identifier: Apache-2.0
/* The subcommands of `muster`, one file each. argv[0] is "muster COMMAND"; the result is the exit status. */
#ifndef TOOLS_TOOL_H
#define TOOLS_TOOL_H

#include <argp.h>
#include <stdint.h>

/* Exit statuses that mean the same in every subcommand. */
enum {
    TOOL_USAGE = 2, /* arguments that make no sense */
    TOOL_UNAVAILABLE = 3, /* cannot be done on this machine, for example without a GPU: the message says why */
};

int tool_run(int argc, char **argv);
int tool_store(int argc, char **argv);
int tool_eval(int argc, char **argv);
int tool_demo(int argc, char **argv);
int tool_info(int argc, char **argv);
int tool_perf(int argc, char **argv);
int tool_chaos(int argc, char **argv);
int tool_worker(int argc, char **argv);

/* The number that was given for an option; a bad one ends the program with a message that names option and range. */
uint64_t tool_number(struct argp_state *state, const char *option, const char *text, uint64_t minimum,
                     uint64_t maximum);

/* The same, where neither is negative. */
int32_t tool_number32(struct argp_state *state, const char *option, const char *text, int32_t minimum, int32_t maximum);

#endif
