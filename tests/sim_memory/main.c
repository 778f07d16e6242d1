// SPDX-License-Identifier: Apache-2.0
/* muster_sim_memory: runs the data plane in simulated memories by seed; a seed that fails is printed and replays. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "sim_memory/sim.h"

struct options {
    uint64_t first, count;
    bool one, verbose;
};

struct totals {
    uint64_t good, voids, views, deaths, stores;
};

static const char usage[] = "Usage: muster_sim_memory [options]\n"
                            "Runs dispatch and combine over memories that delay each store on its own, and checks "
                            "every byte of every good step.\n"
                            "  --seed S     replay one world; the last line is its trace hash\n"
                            "  --first S    first seed of several (default 1)\n"
                            "  --count N    how many seeds (default 1000)\n"
                            "  --verbose    print what happens\n"
                            "  --help\n"
                            "Exit status: 0 all held, 1 a check failed, 2 wrong usage.\n";

static uint64_t main_number(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 0);
    if (*text != '\0' && *end == '\0')
        return value;
    fprintf(stderr, "muster_sim_memory: %s is not a number\n", text);
    exit(2);
}

static struct options main_options(int argc, char **argv)
{
    static const struct option longs[] = {
        {"seed", required_argument, NULL, 's'},  {"first", required_argument, NULL, 'f'},
        {"count", required_argument, NULL, 'n'}, {"verbose", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},        {NULL, 0, NULL, 0},
    };
    struct options options = {.first = 1, .count = 1000};
    for (int c; (c = getopt_long(argc, argv, "s:f:n:vh", longs, NULL)) != -1;) {
        switch (c) {
        case 's':
            options.first = main_number(optarg);
            options.count = 1;
            options.one = true;
            break;
        case 'f': options.first = main_number(optarg); break;
        case 'n': options.count = main_number(optarg); break;
        case 'v': options.verbose = true; break;
        case 'h': fputs(usage, stdout); exit(0);
        default: fputs(usage, stderr); exit(2);
        }
    }
    return options;
}

/* False: a check failed, which is printed. Now and then a seed runs twice: what is not the same again cannot replay. */
static bool main_run_seed(uint64_t seed, const struct options *options)
{
    sim_run(seed, options->verbose);
    uint64_t hash = sim.hash;
    if (!sim.failure[0] && seed % 499 == 0) {
        sim_run(seed, false);
        if (hash != sim.hash)
            sim_fail("the second run has another trace hash");
    }
    if (!sim.failure[0])
        return true;
    printf("seed %" PRIu64 ": %s, at %.3f us with %d ranks; replay with --seed %" PRIu64 "\n", seed, sim.failure,
           (double)sim.now_ns / 1e3, sim.ranks, seed);
    return false;
}

int main(int argc, char **argv)
{
    struct options options = main_options(argc, argv);
    struct totals sum = {0};
    bool held = true;
    for (uint64_t i = 0; i < options.count && held; i++) {
        held = main_run_seed(options.first + i, &options);
        sum.good += (uint64_t)sim.good_steps;
        sum.voids += (uint64_t)sim.void_steps;
        sum.views += (uint64_t)sim.views;
        sum.deaths += (uint64_t)sim.deaths;
        sum.stores += sim.orders;
    }
    if (held)
        printf("%" PRIu64 " worlds: %" PRIu64 " good and %" PRIu64 " void steps, %" PRIu64 " view changes, %" PRIu64
               " deaths, %" PRIu64 " stores\n",
               options.count, sum.good, sum.voids, sum.views, sum.deaths, sum.stores);
    if (options.one)
        printf("trace hash: %016" PRIx64 "\n", sim.hash);
    return held ? 0 : 1;
}
