// SPDX-License-Identifier: Apache-2.0
/* What a campaign prints: progress, a table, or JSON. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "chaos.h"
#include "muster/status.h"

/* ---- progress ---- */

static const char clear_line[] = "\r\033[K";

void chaos_print_progress(const struct chaos_options *options, const struct chaos_plan *plan,
                          const struct chaos_tally *all)
{
    if (!isatty(STDERR_FILENO))
        return;
    fputs(clear_line, stderr);
    if (plan)
        fprintf(stderr, "trial %d of %d: %s rank %d; so far %d errors, %d hangs, %llu wrong bytes", plan->number + 1,
                options->trials, chaos_kind_name(plan->kind), plan->victim, all->errors, all->hangs,
                (unsigned long long)all->wrong);
    fflush(stderr);
}

/* ---- figures ---- */

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void sort_times(struct chaos_tally *t)
{
    size_t count = (size_t)t->times;
    qsort(t->detect_ms, count, sizeof *t->detect_ms, by_size);
    qsort(t->agree_ms, count, sizeof *t->agree_ms, by_size);
    qsort(t->resume_ms, count, sizeof *t->resume_ms, by_size);
}

/* The smallest time that at least this part of the trials did not exceed. */
static double quantile(const double *sorted, int32_t count, int32_t percent)
{
    int32_t rank = (int32_t)(((int64_t)count * percent + 99) / 100);
    return sorted[rank > 0 ? rank - 1 : 0];
}

/* ---- text ---- */

void chaos_print_header(const struct chaos_options *o)
{
    const struct chaos_shape *s = &o->shape;
    if (o->json)
        return;
    printf("# muster %s: %d faults in a group of %d ranks on ", muster_version(), o->trials, s->ranks);
    if (s->gpu)
        printf("%d GPU%s\n", o->devices, o->devices == 1 ? "" : "s");
    else
        printf("the CPU\n");
    printf("# %d tokens of %d bf16, top-%d, %d experts a rank; operation timeout %d ms; seed %llu\n", s->tokens,
           s->hidden, s->topk, s->slots, s->timeout_ms, (unsigned long long)s->seed);
    printf("# from the fault, in ms, p50 and p99: to its first sign, to the new view on all, to a good step on all\n");
    printf("#\n# %-8s %6s %6s %6s %11s %10s %10s %8s %19s %19s %19s\n", "kind", "trials", "errors", "hangs",
           "wrong bytes", "good steps", "void steps", "expelled", "detect", "agree", "resume");
}

static void print_times(const double *sorted, int32_t count)
{
    if (count)
        printf(" %9.2f %9.2f", quantile(sorted, count, 50), quantile(sorted, count, 99));
    else
        printf(" %9s %9s", "-", "-");
}

static void print_text(const char *name, const struct chaos_tally *t)
{
    printf("  %-8s %6d %6d %6d %11llu %10llu %10llu %8d", name, t->trials, t->errors, t->hangs,
           (unsigned long long)t->wrong, (unsigned long long)t->steps, (unsigned long long)t->voids, t->expelled);
    print_times(t->detect_ms, t->times);
    print_times(t->agree_ms, t->times);
    print_times(t->resume_ms, t->times);
    putchar('\n');
}

/* ---- JSON ---- */

static void set_count(json_t *object, const char *name, uint64_t count)
{
    json_object_set_new(object, name, json_integer((json_int_t)count));
}

static void set_times(json_t *object, const char *name, const double *sorted, int32_t count)
{
    static const int32_t percents[] = {50, 99};
    char key[32];
    for (size_t i = 0; i < sizeof percents / sizeof *percents; i++) {
        snprintf(key, sizeof key, "%s_p%d_ms", name, percents[i]);
        json_object_set_new(object, key, count ? json_real(quantile(sorted, count, percents[i])) : json_null());
    }
}

static void set_shape(json_t *object, const struct chaos_options *o)
{
    json_object_set_new(object, "backend", json_string(o->shape.gpu ? "gpu" : "cpu"));
    set_count(object, "devices", (uint64_t)o->devices);
    set_count(object, "ranks", (uint64_t)o->shape.ranks);
    set_count(object, "tokens", (uint64_t)o->shape.tokens);
    set_count(object, "hidden", (uint64_t)o->shape.hidden);
    set_count(object, "topk", (uint64_t)o->shape.topk);
    set_count(object, "experts_per_rank", (uint64_t)o->shape.slots);
    set_count(object, "timeout_ms", (uint64_t)o->shape.timeout_ms);
    set_count(object, "seed", o->shape.seed);
}

static void print_json(const struct chaos_options *o, const char *name, const struct chaos_tally *t)
{
    json_t *object = json_object();
    json_object_set_new(object, "kind", json_string(name));
    set_count(object, "trials", (uint64_t)t->trials);
    set_count(object, "errors", (uint64_t)t->errors);
    set_count(object, "hangs", (uint64_t)t->hangs);
    set_count(object, "wrong_bytes", t->wrong);
    set_count(object, "good_steps", t->steps);
    set_count(object, "void_steps", t->voids);
    set_count(object, "expelled", (uint64_t)t->expelled);
    set_times(object, "detect", t->detect_ms, t->times);
    set_times(object, "agree", t->agree_ms, t->times);
    set_times(object, "resume", t->resume_ms, t->times);
    set_shape(object, o);
    json_dumpf(object, stdout, JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(object);
}

void chaos_print_row(const struct chaos_options *options, const char *name, struct chaos_tally *tally)
{
    sort_times(tally);
    if (options->json)
        print_json(options, name, tally);
    else
        print_text(name, tally);
    fflush(stdout);
}
