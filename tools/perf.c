// SPDX-License-Identifier: Apache-2.0
/* `muster perf`: finds what is to be measured. */
#include <stdio.h>
#include <string.h>

#include "perf.h"
#include "perf_library.h"
#include "perf_nccl.h"
#include "tool.h"

static const char usage[] = "usage: muster perf ep|floor [OPTION...]\n\n"
                            "  ep       dispatch and combine, beside the same over MPI, or over NCCL on GPUs\n"
                            "  floor    what the machine takes to bring flags and rows to another core\n\n"
                            "`muster perf ep --help` says more.\n";

static int perf_ep(int argc, char **argv)
{
    struct perf_options options;
    perf_parse(argc, argv, &options);
    return perf_ep_run(&options);
}

static const struct measurement {
    const char *name;
    int (*run)(int argc, char **argv);
} measurements[] = {{"ep", perf_ep}, {"floor", perf_floor}};

static int run_measurement(const struct measurement *m, int argc, char **argv)
{
    char name[64];
    snprintf(name, sizeof name, "muster perf %s", m->name);
    argv[0] = name; /* what argp calls the program in its messages */
    return m->run(argc, argv);
}

int tool_perf(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    for (size_t i = 0; i < sizeof measurements / sizeof *measurements; i++)
        if (strcmp(what, measurements[i].name) == 0)
            return run_measurement(&measurements[i], argc - 1, argv + 1);
    if (strcmp(what, "rank") == 0 && argc == 3) /* how `perf ep` starts its ranks: see perf_crew.c */
        return perf_library_rank(argv[2], PERF_LIBRARY);
    if (strcmp(what, "unchecked") == 0 && argc == 3)
        return perf_library_rank(argv[2], PERF_UNCHECKED);
    if (strcmp(what, "nccl") == 0 && argc == 3)
        return perf_nccl_rank(argv[2]);
    if (strcmp(what, "--help") == 0 || strcmp(what, "-?") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    if (*what)
        fprintf(stderr, "muster perf: there is no measurement \"%s\"\n\n", what);
    fputs(usage, stderr);
    return TOOL_USAGE;
}
