// SPDX-License-Identifier: Apache-2.0
/* The tool `muster`: finds the subcommand. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "inherited.h"
#include "muster/status.h"
#include "tool.h"

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"demo", tool_demo, "serve a small model on several ranks, kill one, and lose nothing"},
    {"run", tool_run, "start the ranks of a program, host their store, watch over them"},
    {"store", tool_store, "serve a store to ranks that another launcher has started"},
    {"eval", tool_eval, "measure a model's bits per byte on a text"},
    {"info", tool_info, "say what this build is and can do, and list every setting"},
    {"perf", tool_perf, "measure dispatch and combine, beside MPI where that is installed"},
    {"chaos", tool_chaos,
     "kill, stop and hang ranks that exchange, again and again, and see what becomes of the others"},
    {"worker", tool_worker, "one rank of a served model; started by demo"},
};

static void print_usage(FILE *out)
{
    fprintf(out, "usage: muster COMMAND [OPTION...]\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\n`muster COMMAND --help` says more; `muster --version` tells the version.\n");
}

static void print_version(FILE *out, struct argp_state *state)
{
    (void)state;
    fprintf(out, "muster %s\n", muster_version());
}

static int run_command(const struct command *command, int argc, char **argv)
{
    char name[64];
    snprintf(name, sizeof name, "muster %s", command->name);
    argv[0] = name; /* what argp calls the program in its messages */
    return command->run(argc, argv);
}

/* What was printed must have arrived: a full disk shows only now, and who asked would take the rest for all of it. */
static void check_stdout(int status, void *unused)
{
    (void)unused;
    bool failed_before = ferror(stdout) != 0;
    errno = 0;
    if (fflush(stdout) == 0 && !failed_before)
        return;
    fprintf(stderr, "muster: stdout cannot be written%s%s\n", errno ? ": " : "", errno ? strerror(errno) : "");
    if (status == 0)
        _exit(EXIT_FAILURE);
}

int main(int argc, char **argv)
{
    inherited_repair();
    on_exit(check_stdout, NULL);
    argp_err_exit_status = TOOL_USAGE;
    argp_program_version_hook = print_version;
    if (argc < 2) {
        print_usage(stderr);
        return TOOL_USAGE;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return run_command(&commands[i], argc - 1, argv + 1);
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        print_version(stdout, NULL);
        return 0;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(stdout);
        return 0;
    }
    fprintf(stderr, "muster: there is no command \"%s\"\n\n", argv[1]);
    print_usage(stderr);
    return TOOL_USAGE;
}
