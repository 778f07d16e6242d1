// SPDX-License-Identifier: Apache-2.0
#include <jansson.h>
#include <stdio.h>

#include "muster/ep.h"
#include "perf.h"

static const char *dtype_name(const struct perf_shape *s)
{
    static const char *const names[] = {[PERF_BF16] = "bf16", [PERF_FP16] = "fp16", [PERF_FP32] = "fp32"};
    return names[s->type];
}

static const char *quantise_name(int32_t quantise)
{
    static const char *const names[] = {"none", "fp8", "fp8p2"};
    return names[quantise];
}

static const char *layout_name(const struct perf_shape *s)
{
    static const char *const names[] = {
        [MUSTER_EP_EXPERT_MAJOR] = "expert",
        [MUSTER_EP_RANK_MAJOR] = "rank",
        [MUSTER_EP_FLAT] = "flat",
    };
    return names[s->layout];
}

static const char *combine_name(const struct perf_shape *s)
{
    return s->combine == MUSTER_EP_EXACT ? "exact" : "reduced";
}

/* ---- text ---- */

static const char *baseline_name(const struct perf_run *run)
{
    return run->baseline.side == PERF_NCCL ? "nccl" : "mpi";
}

static void print_baseline(const struct perf_run *run)
{
    const char *name = baseline_name(run), *does = "permute, MPI_Alltoall of counts, MPI_Alltoallv of rows";
    if (run->baseline.side == PERF_NCCL)
        does = "permute, grouped ncclSend and ncclRecv of rows";
    if (run->baseline.running)
        printf("# %s: %s; %s, permute back and add up\n#      %s\n", name, run->board->mailbox[run->baseline.side].name,
               does, run->baseline.command);
    else
        printf("# no %s: %s\n", name, run->baseline.reason);
}

static void print_link(const struct perf_run *run)
{
    if (run->link_rate_gbs > 0)
        printf("# links carry %.1f GB/s from each GPU, and as much to it: all ranks copy to all others at once\n",
               run->link_rate_gbs);
    else
        printf("# link rate not measured: %s\n", run->link_reason);
}

static void print_columns(const struct perf_run *run)
{
    bool cuda = run->options.shape.cuda;
    printf("#\n# %-6s %-8s%s %5s %6s %6s %4s %7s %5s %-6s %-7s %11s %10s %8s %8s %7s%s %8s %7s %6s\n", "by", "rows",
           cuda ? "  ft" : "", "ranks", "tokens", "hidden", "topk", "experts", "dtype", "layout", "combine",
           "dispatch us", "combine us", "pair us", "p90 us", "GB/s", cuda ? "   link" : "", "MB", "wrong", "ratio");
}

static void print_place(const struct perf_run *run)
{
    const struct perf_shape *s = &run->options.shape;
    printf("# muster %s: dispatch and combine, ", muster_version());
    if (s->cuda)
        printf("%d ranks, a GPU each, %d multiprocessors at most, the cache %s between pairs", s->ranks,
               run->board->mailbox[PERF_LIBRARY].multiprocessors, s->flush ? "emptied" : "left alone");
    else
        printf("%d ranks on %d cores", s->ranks, s->cores);
    printf(", fault tolerance %s\n", run->options.both ? "on and off" : s->no_fault_tolerance ? "off" : "on");
}

/* Where JSON alone is on stdout. */
static void say_what_is_missing(const struct perf_run *run)
{
    const struct perf_options *o = &run->options;
    if (o->baseline && !run->baseline.running)
        fprintf(stderr, "muster perf ep: no %s: %s\n", baseline_name(run), run->baseline.reason);
    if (o->shape.cuda && run->link_rate_gbs <= 0)
        fprintf(stderr, "muster perf ep: link rate not measured: %s\n", run->link_reason);
    if (*o->left_out)
        fprintf(stderr, "muster perf ep: left out: %s\n", o->left_out);
}

void perf_print_header(const struct perf_run *run)
{
    const struct perf_options *o = &run->options;
    if (o->json) {
        say_what_is_missing(run);
        return;
    }
    print_place(run);
    printf("# seed %llu; quantise %s, on the way home %s; between dispatch and combine: %s\n",
           (unsigned long long)o->shape.seed, quantise_name(o->shape.quantise), quantise_name(o->shape.quantise_return),
           o->shape.copy ? "a copy of the received rows" : "nothing");
    printf("# medians of %d blocks in turns, each the median of %d iterations%s after %d to warm up, of the slowest "
           "rank\n",
           o->blocks, o->iterations, o->scaled ? " (of more than 256 tokens fewer)" : "", o->warmup);
    print_baseline(run);
    if (o->shape.cuda)
        print_link(run);
    if (*o->left_out)
        printf("# left out: %s\n", o->left_out);
    print_columns(run);
    fflush(stdout);
}

static bool is_checked(const struct perf_run *run, const struct perf_series *series)
{
    return series->side == PERF_LIBRARY && !run->options.shape.no_fault_tolerance;
}

static void print_cost(const struct perf_cost *cost)
{
    printf("# fault tolerance costs a pair %.2f us (%.2f to %.2f)\n", cost->us, cost->low_us, cost->high_us);
}

/* The two columns of GPUs only. */
static const char *ft_text(const struct perf_run *run, const struct perf_series *series)
{
    if (!run->options.shape.cuda)
        return "";
    if (series->side == PERF_NCCL)
        return "  - ";
    return is_checked(run, series) ? " yes" : " no ";
}

static const char *link_text(const struct perf_run *run, const struct perf_figures *f, char text[16])
{
    snprintf(text, 16, "%s", run->options.shape.cuda ? "      -" : "");
    if (f->link_fraction > 0)
        snprintf(text, 16, " %6.3f", f->link_fraction);
    return text;
}

static void print_text(const struct perf_run *run, const struct perf_series *series, int32_t count,
                       const struct perf_figures *f)
{
    const struct perf_shape *s = &run->options.shape;
    char wrong[24] = "-", ratio[16] = "-", link[16];
    if (s->check)
        snprintf(wrong, sizeof wrong, "%llu", (unsigned long long)f->wrong);
    if (f->ratio > 0)
        snprintf(ratio, sizeof ratio, "%.2f", f->ratio);
    printf("  %-6s %-8s%s %5d %6d %6d %4d %7d %5s %-6s %-7s", series->backend, series->rows, ft_text(run, series),
           s->ranks, s->tokens[count], s->hidden, s->topk, s->experts, dtype_name(s), layout_name(s), combine_name(s));
    printf(" %11.1f %10.1f %8.1f %8.1f %7.2f%s %8.2f %7s %6s\n", f->dispatch_us, f->combine_us, f->pair_us,
           f->pair_p90_us, f->link_gbs, link_text(run, f, link), f->exchange_mb, wrong, ratio);
    if (series->side == PERF_UNCHECKED)
        print_cost(&f->cost);
    fflush(stdout);
}

void perf_print_footer(const struct perf_run *run)
{
    bool dropped = !run->baseline.running && *run->baseline.command;
    if (run->wrong)
        fprintf(stderr, "muster perf ep: %llu values were wrong\n", (unsigned long long)run->wrong);
    if (!run->options.json && dropped)
        printf("# %s failed: %s\n", baseline_name(run), run->baseline.reason);
}

/* ---- JSON ---- */

static void set_text(json_t *object, const char *name, const char *text)
{
    json_object_set_new(object, name, json_string(text));
}

static void set_count(json_t *object, const char *name, int64_t count)
{
    json_object_set_new(object, name, json_integer((json_int_t)count));
}

static void set_real(json_t *object, const char *name, double value)
{
    json_object_set_new(object, name, json_real(value));
}

static void set_known(json_t *object, const char *name, double value)
{
    json_object_set_new(object, name, value > 0 ? json_real(value) : json_null());
}

static void set_known_count(json_t *object, const char *name, int64_t count)
{
    json_object_set_new(object, name, count > 0 ? json_integer((json_int_t)count) : json_null());
}

static void set_cost(json_t *object, const struct perf_cost *cost)
{
    if (!cost->known)
        return;
    set_real(object, "ft_cost_us", cost->us);
    set_real(object, "ft_cost_low_us", cost->low_us);
    set_real(object, "ft_cost_high_us", cost->high_us);
}

static void set_shape(json_t *object, const struct perf_shape *s, int32_t count)
{
    set_count(object, "ranks", s->ranks);
    set_count(object, "tokens", s->tokens[count]);
    set_count(object, "hidden", s->hidden);
    set_count(object, "topk", s->topk);
    set_count(object, "experts", s->experts);
    set_text(object, "dtype", dtype_name(s));
    set_text(object, "quantise", quantise_name(s->quantise));
    set_text(object, "quantise_return", quantise_name(s->quantise_return));
    set_text(object, "layout", layout_name(s));
    set_text(object, "combine", combine_name(s));
    set_text(object, "experts_do", s->copy ? "copy" : "nothing");
}

static void set_figures(json_t *object, const struct perf_shape *s, const struct perf_figures *f)
{
    set_real(object, "dispatch_us", f->dispatch_us);
    set_real(object, "combine_us", f->combine_us);
    set_real(object, s->cuda ? "pair_graph_us" : "pair_us", f->pair_us);
    set_real(object, "pair_p90_us", f->pair_p90_us);
    set_real(object, "link_gbs", f->link_gbs);
    set_real(object, "exchange_mb", f->exchange_mb);
    json_object_set_new(object, "wrong", s->check ? json_integer((json_int_t)f->wrong) : json_null());
    set_known(object, "ratio", f->ratio);
}

static void print_json(const struct perf_run *run, const struct perf_series *series, int32_t count,
                       const struct perf_figures *f)
{
    const struct perf_options *o = &run->options;
    json_t *object = json_object();
    set_text(object, "op", "ep");
    set_text(object, "backend", series->backend);
    set_text(object, "rows", series->rows);
    set_shape(object, &o->shape, count);
    json_object_set_new(object, "ft", json_boolean(is_checked(run, series)));
    set_figures(object, &o->shape, f);
    if (o->shape.cuda) {
        set_known(object, "link_rate_gbs", run->link_rate_gbs);
        set_known(object, "link_fraction", f->link_fraction);
        set_known_count(object, "sms", run->board->mailbox[series->side].multiprocessors);
        json_object_set_new(object, "flushed", json_boolean(o->shape.flush));
        set_cost(object, &f->cost);
    }
    set_count(object, "cores", o->shape.cores);
    set_count(object, "blocks", o->blocks);
    set_count(object, "iterations", perf_iterations(o, count));
    set_count(object, "seed", (int64_t)o->shape.seed);
    json_dumpf(object, stdout, JSON_REAL_PRECISION(6));
    putchar('\n');
    fflush(stdout);
    json_decref(object);
}

void perf_print_row(const struct perf_run *run, const struct perf_series *series, int32_t count,
                    const struct perf_figures *figures)
{
    if (run->options.json)
        print_json(run, series, count, figures);
    else
        print_text(run, series, count, figures);
}
