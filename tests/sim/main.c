// SPDX-License-Identifier: Apache-2.0
/* muster_sim: runs membership schedules by seed; a seed that fails is printed and replays. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "world.h"

struct options {
    uint64_t first, count;
    int ranks;
    bool one, verbose;
};

static const char usage[] =
    "Usage: muster_sim [options]\n"
    "Runs the membership protocol in simulated worlds and checks safety after every event, and liveness at the end.\n"
    "  --seed S     replay one schedule; the last line is its trace hash\n"
    "  --first S    first seed of several (default 1)\n"
    "  --count N    how many seeds (default 1000)\n"
    "  --ranks N    ranks of every group, 2..8 (default: drawn from the seed)\n"
    "  --verbose    print the plan and every event\n"
    "  --help\n"
    "Exit status: 0 all held, 1 a check failed, 2 wrong usage.\n";

static uint64_t main_number(const char *text, uint64_t least, uint64_t most)
{
    char *end;
    uint64_t value = strtoull(text, &end, 0);
    if (*text == '\0' || *end != '\0' || value < least || value > most) {
        fprintf(stderr, "muster_sim: %s is not a number from %" PRIu64 " to %" PRIu64 "\n", text, least, most);
        exit(2);
    }
    return value;
}

static struct options main_options(int argc, char **argv)
{
    static const struct option longs[] = {
        {"seed", required_argument, NULL, 's'},
        {"first", required_argument, NULL, 'f'},
        {"count", required_argument, NULL, 'n'},
        {"ranks", required_argument, NULL, 'r'},
        {"verbose", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct options options = {.first = 1, .count = 1000};
    for (int c; (c = getopt_long(argc, argv, "s:f:n:r:vh", longs, NULL)) != -1;) {
        switch (c) {
        case 's':
            options.first = main_number(optarg, 0, UINT64_MAX);
            options.count = 1;
            options.one = true;
            break;
        case 'f': options.first = main_number(optarg, 0, UINT64_MAX); break;
        case 'n': options.count = main_number(optarg, 1, UINT64_MAX); break;
        case 'r': options.ranks = (int)main_number(optarg, SIM_MIN_RANKS, SIM_MAX_RANKS); break;
        case 'v': options.verbose = true; break;
        case 'h': fputs(usage, stdout); exit(0);
        default: fputs(usage, stderr); exit(2);
        }
    }
    return options;
}

static void main_report(const struct world *w)
{
    const struct process *p = w->failed_process >= 0 ? &w->process[w->failed_process] : NULL;
    trace_print_last();
    plan_print(&w->plan);
    printf("seed %" PRIu64 ": %s", w->seed, w->failure);
    if (p)
        printf(" (rank %d, incarnation %u)", p->rank, p->incarnation);
    printf(" at %.6f ms; replay with --seed %" PRIu64 "\n", (double)w->now_ns / 1e6, w->seed);
}

static void main_progress(uint64_t done, uint64_t count, time_t started)
{
    static time_t last;
    time_t now = time(NULL);
    if (last == 0)
        last = started;
    if (now - last < 10)
        return;
    last = now;
    printf("%" PRIu64 " of %" PRIu64 " schedules, %.0f/s\n", done, count, (double)done / (double)(now - started));
    fflush(stdout);
}

/* Now and then a seed runs twice: a run that is not the same again could not be replayed. */
static bool main_run_seed(struct world *w, uint64_t seed, const struct options *options)
{
    bool twice = seed % 499 == 0 && !options->verbose;
    trace_reset(w, options->verbose);
    world_run(w, seed, options->ranks);
    uint64_t hash = w->hash;
    if (twice && !w->failure) {
        trace_reset(w, false);
        world_run(w, seed, options->ranks);
        if (w->hash != hash)
            check_fail(w, NULL, "the same seed has run differently");
    }
    return !w->failure;
}

static int main_run(struct world *w, const struct options *options)
{
    time_t started = time(NULL);
    for (uint64_t i = 0; i < options->count; i++) {
        if (!main_run_seed(w, options->first + i, options)) {
            main_report(w);
            return 1;
        }
        main_progress(i + 1, options->count, started);
    }
    if (options->count > 1 || options->verbose)
        tally_print();
    if (options->count >= 5000 && !tally_complete()) {
        puts("a kind of fault, or a reason to stop, has never occurred");
        return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct options options = main_options(argc, argv);
    struct world *w = malloc(sizeof *w);
    if (!w)
        return 2;
    world_create(w);
    if (options.one && options.verbose) {
        plan_draw(&w->plan, options.first, options.ranks);
        plan_print(&w->plan);
    }
    int status = main_run(w, &options);
    printf("trace hash: %016" PRIx64 "\n", w->hash);
    world_destroy(w);
    free(w);
    return status;
}
