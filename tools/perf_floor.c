// SPDX-License-Identifier: Apache-2.0
/*
 * `muster perf floor`: what the machine itself takes to bring a flag, and rows, from one core to another. No exchange
 * between two ranks can be faster than this; docs/performance.md holds `perf ep` against it.
 */
#include <argp.h>
#include <jansson.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "perf.h"
#include "tool.h"

enum { CORES = 2, SIZES = 3, ROUND_TRIPS = 20000, REPEATS = 201, MOST_BYTES = 512 * 1024, LINE = 64, FLAG_REPEATS = 9 };

static const size_t sizes[SIZES] = {4 * 1024, 64 * 1024, MOST_BYTES}; /* 1, 16 and 128 rows of 2048 bf16 */

struct flag {
    _Alignas(LINE) _Atomic uint64_t value;
};

struct figures {
    double round_trip_ns;
    double local_us[SIZES], push_us[SIZES], pull_us[SIZES];
};

/* Each core writes its own flag and its own times, and copies between its own memory and the other's. */
struct floor {
    struct flag flag[CORES];
    int core[CORES];
    unsigned char *own[CORES], *shared[CORES];
    double time_us[CORES][REPEATS];
    struct figures figures;
};

struct worker {
    struct floor *floor;
    int self;
    uint64_t round;
    pthread_t thread;
};

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, by_size);
    return values[count / 2];
}

/* ---- on each core ---- */

static void pin(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)core, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void raise_flag(struct worker *w)
{
    atomic_store_explicit(&w->floor->flag[w->self].value, ++w->round, memory_order_release);
}

/* The other core's flag; both cores are in this process, so it comes unless the process is at its end. */
static void await_flag(const struct worker *w, uint64_t round)
{
    while (atomic_load_explicit(&w->floor->flag[!w->self].value, memory_order_acquire) < round)
        ;
}

static void meet(struct worker *w)
{
    raise_flag(w);
    await_flag(w, w->round);
}

static double round_trip_ns(struct worker *w)
{
    double times[FLAG_REPEATS];
    for (int i = 0; i < FLAG_REPEATS; i++) {
        uint64_t begun_ns = clock_ns();
        for (int n = 0; n < ROUND_TRIPS; n++) {
            if (w->self)
                await_flag(w, w->round + 1);
            raise_flag(w);
            if (!w->self)
                await_flag(w, w->round);
        }
        times[i] = (double)(clock_ns() - begun_ns) / ROUND_TRIPS;
    }
    return median(times, FLAG_REPEATS);
}

static void read_all(const unsigned char *from, size_t bytes)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i += sizeof sum)
        sum += *(const volatile uint64_t *)(const volatile void *)(from + i);
    (void)sum;
}

/* From own memory into own memory. */
static void copy_local(struct worker *w, size_t bytes)
{
    memcpy(w->floor->own[w->self] + MOST_BYTES, w->floor->own[w->self], bytes);
}

/* Into memory that the other core read last, as dispatch stores rows. */
static void copy_push(struct worker *w, size_t bytes)
{
    memcpy(w->floor->shared[!w->self], w->floor->own[w->self], bytes);
}

static void after_push(struct worker *w, size_t bytes)
{
    read_all(w->floor->shared[w->self], bytes);
}

/* From memory that the other core wrote last, as combine loads results. */
static void copy_pull(struct worker *w, size_t bytes)
{
    memcpy(w->floor->own[w->self], w->floor->shared[!w->self], bytes);
}

static void after_pull(struct worker *w, size_t bytes)
{
    memset(w->floor->shared[w->self], (int)w->round, bytes);
}

static void no_more(struct worker *w, size_t bytes)
{
    (void)w;
    (void)bytes;
}

/* Both cores copy at the same time; the slower one counts. */
static double time_us(struct worker *w, size_t bytes, void (*copy)(struct worker *, size_t),
                      void (*after)(struct worker *, size_t))
{
    struct floor *f = w->floor;
    for (int i = 0; i < REPEATS; i++) {
        meet(w);
        uint64_t begun_ns = clock_ns();
        copy(w, bytes);
        f->time_us[w->self][i] = (double)(clock_ns() - begun_ns) / 1000.0;
        meet(w);
        after(w, bytes);
    }
    meet(w);
    if (w->self)
        return 0;
    for (int i = 0; i < REPEATS; i++)
        if (f->time_us[1][i] > f->time_us[0][i])
            f->time_us[0][i] = f->time_us[1][i];
    return median(f->time_us[0], REPEATS);
}

static void *work(void *argument)
{
    struct worker *w = argument;
    struct figures f;
    pin(w->floor->core[w->self]);
    meet(w);
    f.round_trip_ns = round_trip_ns(w);
    for (int s = 0; s < SIZES; s++) {
        f.local_us[s] = time_us(w, sizes[s], copy_local, no_more);
        f.push_us[s] = time_us(w, sizes[s], copy_push, after_push);
        f.pull_us[s] = time_us(w, sizes[s], copy_pull, after_pull);
    }
    if (!w->self)
        w->floor->figures = f;
    return NULL;
}

/* ---- both together ---- */

static bool choose_cores(struct floor *f)
{
    cpu_set_t allowed;
    int found = 0;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return false;
    for (int core = 0; core < CPU_SETSIZE && found < CORES; core++)
        if (CPU_ISSET((size_t)core, &allowed))
            f->core[found++] = core;
    return found == CORES;
}

/* Own memory twice: a source and a destination. */
static bool allocate(struct floor *f)
{
    for (int i = 0; i < CORES; i++) {
        f->own[i] = aligned_alloc(LINE, 2 * (size_t)MOST_BYTES);
        f->shared[i] = aligned_alloc(LINE, MOST_BYTES);
        if (!f->own[i] || !f->shared[i])
            return false;
        memset(f->own[i], 1, 2 * (size_t)MOST_BYTES);
        memset(f->shared[i], 1, MOST_BYTES);
    }
    return true;
}

static void release(struct floor *f)
{
    for (int i = 0; i < CORES; i++) {
        free(f->own[i]);
        free(f->shared[i]);
    }
}

static bool measure(struct floor *f)
{
    struct worker worker[CORES] = {{.floor = f, .self = 0}, {.floor = f, .self = 1}};
    if (pthread_create(&worker[1].thread, NULL, work, &worker[1]) != 0)
        return false;
    cpu_set_t before;
    sched_getaffinity(0, sizeof before, &before);
    work(&worker[0]);
    sched_setaffinity(0, sizeof before, &before);
    pthread_join(worker[1].thread, NULL);
    return true;
}

/* ---- printing ---- */

static double gbs(size_t bytes, double us)
{
    return us > 0 ? (double)bytes / us / 1000.0 : 0;
}

static void print_text(const struct floor *f)
{
    const struct figures *g = &f->figures;
    printf("# muster %s: cores %d and %d, both at the same time; medians of %d\n", muster_version(), f->core[0],
           f->core[1], REPEATS);
    printf("# flag there and back: %.0f ns\n#\n", g->round_trip_ns);
    printf("# local: within own memory; push: into what the other core has read; pull: from what it has written\n");
    printf("# %8s %10s %8s %10s %8s %10s %8s\n", "bytes", "local us", "GB/s", "push us", "GB/s", "pull us", "GB/s");
    for (int s = 0; s < SIZES; s++)
        printf("  %8zu %10.2f %8.2f %10.2f %8.2f %10.2f %8.2f\n", sizes[s], g->local_us[s],
               gbs(sizes[s], g->local_us[s]), g->push_us[s], gbs(sizes[s], g->push_us[s]), g->pull_us[s],
               gbs(sizes[s], g->pull_us[s]));
}

static void print_json(const struct floor *f)
{
    const struct figures *g = &f->figures;
    for (int s = 0; s < SIZES; s++) {
        json_t *object =
            json_pack("{s:s, s:I, s:f, s:f, s:f, s:f}", "op", "floor", "bytes", (json_int_t)sizes[s], "round_trip_ns",
                      g->round_trip_ns, "local_us", g->local_us[s], "push_us", g->push_us[s], "pull_us", g->pull_us[s]);
        json_dumpf(object, stdout, JSON_REAL_PRECISION(6));
        putchar('\n');
        json_decref(object);
    }
}

/* ---- the command ---- */

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    (void)text;
    bool *json = state->input;
    if (key != 'j')
        return ARGP_ERR_UNKNOWN;
    *json = true;
    return 0;
}

int perf_floor(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"json", 'j', NULL, 0, "One JSON object for each size, and nothing else", 0},
        {0},
    };
    static const struct argp parser = {
        .options = options,
        .parser = parse_option,
        .doc =
            "Measures what any exchange between two ranks is made of: a flag that goes to another core and back, and "
            "copies of as many bytes as 1, 16 and 128 tokens of 2048 values in bf16 have. Needs two cores.",
    };
    bool json = false;
    struct floor f = {.core = {0}};
    argp_parse(&parser, argc, argv, 0, NULL, &json);
    if (!choose_cores(&f)) {
        fprintf(stderr, "muster perf floor: needs two cores\n");
        return EXIT_FAILURE;
    }
    bool good = allocate(&f) && measure(&f);
    if (!good)
        perror("muster perf floor");
    else if (json)
        print_json(&f);
    else
        print_text(&f);
    release(&f);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
