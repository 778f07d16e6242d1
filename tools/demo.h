// SPDX-License-Identifier: Apache-2.0
/* What the parts of `muster demo` share: what was asked for, and the two runs. */
#ifndef TOOLS_DEMO_H
#define TOOLS_DEMO_H

#include <limits.h>

#include "config.h"
#include "job.h"

enum { DEMO_MAX_PROMPTS = 64 };

struct demo_options {
    char model[PATH_MAX], prompts[PATH_MAX];
    const char *trace; /* NULL: none */
    int32_t ranks, tokens;
    uint64_t seed;
    bool json, no_view;
    struct job_fault fault[JOB_MAX_FAULTS];
    int32_t faults;
};

struct demo {
    struct demo_options options;
    struct model_config model;
    char program[PATH_MAX];
    int32_t slots_per_rank;
    struct job reference, run; /* without a fault, and with */
    bool same; /* each answer is, byte for byte, that of the run without a fault */
    bool distinct; /* no two prompts have the same answer; says how sharp the comparison is, not how it ended */
};

/* demo_options.c: what was asked for; ends the program if it makes no sense. */
void demo_parse(int argc, char **argv, struct demo_options *options);

/* demo_summary.c */
void demo_compare(struct demo *d);
bool demo_all_well(const struct demo *d);
void demo_print_json(const struct demo *d);
void demo_print_summary(const struct demo *d);

/* demo_trace.c: Chrome trace events of the run with the faults, of the launcher and the ranks. False: says why. */
bool demo_write_trace(const struct demo *d);

#endif
