// SPDX-License-Identifier: Apache-2.0
/* All trials, one after the other, as far as possible in one group. */
#include <stdio.h>
#include <stdlib.h>

#include "chaos.h"
#include "chaos_load.h"
#include "chaos_step.h"

#define MS_NS UINT64_C(1000000)

enum { MOST_DELAY_MS = 20 };

struct campaign {
    const struct chaos_options *options;
    struct chaos_crew crew;
    bool running; /* the crew is well */
    struct chaos_tally tally[CHAOS_KINDS], all;
};

/* ---- tallies ---- */

static bool tally_open(struct chaos_tally *t, int32_t trials)
{
    size_t count = (size_t)trials;
    t->detect_ms = calloc(count, sizeof *t->detect_ms);
    t->agree_ms = calloc(count, sizeof *t->agree_ms);
    t->resume_ms = calloc(count, sizeof *t->resume_ms);
    return t->detect_ms && t->agree_ms && t->resume_ms;
}

static void tally_close(struct chaos_tally *t)
{
    free(t->detect_ms);
    free(t->agree_ms);
    free(t->resume_ms);
}

static void tally_add(struct chaos_tally *t, const struct chaos_outcome *outcome)
{
    t->trials++;
    t->errors += outcome->end == CHAOS_ERRED;
    t->hangs += outcome->end == CHAOS_HANGS;
    t->expelled += outcome->expelled;
    t->wrong += outcome->wrong;
    t->steps += outcome->steps;
    t->voids += outcome->voids;
    if (outcome->end != CHAOS_GOOD)
        return;
    t->detect_ms[t->times] = outcome->detect_ms;
    t->agree_ms[t->times] = outcome->agree_ms;
    t->resume_ms[t->times++] = outcome->resume_ms;
}

/* ---- trials ---- */

/* Kinds in turn, and graphs in every other round of them. */
static struct chaos_plan make_plan(const struct chaos_options *o, int32_t number)
{
    uint64_t state = o->shape.seed ^ (uint64_t)number << 32;
    chaos_random(&state);
    return (struct chaos_plan){
        .number = number,
        .kind = o->kind[number % o->kind_count],
        .victim = (int32_t)(chaos_random(&state) % (uint64_t)o->shape.ranks),
        .graph = o->shape.gpu && number / o->kind_count % 2 == 1,
        .pair = (int32_t)(chaos_random(&state) % CHAOS_PAIRS),
        .delay_ns = chaos_random(&state) % (MOST_DELAY_MS * MS_NS),
    };
}

/* A group for the trials to come. False, said on stderr: there is no use in going on. */
static bool start_crew(struct campaign *c)
{
    c->running = chaos_crew_open(&c->crew, c->options) && chaos_trial_gather(&c->crew);
    if (c->running)
        return true;
    chaos_print_progress(c->options, NULL, NULL);
    fprintf(stderr, "muster chaos: %s\n", c->crew.why);
    chaos_crew_close(&c->crew, false);
    return false;
}

/* False, said on stderr: a rank should have left in good order and did not. */
static bool stop_crew(struct campaign *c, bool in_order)
{
    c->running = false;
    if (chaos_crew_close(&c->crew, in_order))
        return true;
    chaos_print_progress(c->options, NULL, NULL);
    fprintf(stderr, "muster chaos: at the end: %s\n", c->crew.why);
    return false;
}

static void say_failure(const struct campaign *c, const struct chaos_plan *plan, const struct chaos_outcome *outcome)
{
    chaos_print_progress(c->options, NULL, NULL);
    fprintf(stderr, "muster chaos: trial %d (%s, rank %d, pair %d%s): %s: %s\n", plan->number,
            chaos_kind_name(plan->kind), plan->victim, plan->pair, plan->graph ? ", graph" : "",
            outcome->end == CHAOS_HANGS ? "hang" : "error", outcome->why);
}

static void run_trial(struct campaign *c, const struct chaos_plan *plan)
{
    struct chaos_outcome outcome;
    chaos_print_progress(c->options, plan, &c->all);
    chaos_trial_run(&c->crew, plan, &outcome);
    tally_add(&c->tally[plan->kind], &outcome);
    tally_add(&c->all, &outcome);
    if (outcome.end == CHAOS_GOOD)
        return;
    say_failure(c, plan, &outcome);
    stop_crew(c, false);
}

static bool run_trials(struct campaign *c)
{
    for (int32_t i = 0; i < c->options->trials; i++) {
        struct chaos_plan plan = make_plan(c->options, i);
        if (!c->running && !start_crew(c))
            return false;
        run_trial(c, &plan);
    }
    return !c->running || stop_crew(c, true);
}

/* ---- the whole ---- */

static bool open_tallies(struct campaign *c)
{
    bool good = tally_open(&c->all, c->options->trials);
    for (int kind = 0; kind < CHAOS_KINDS; kind++)
        good = tally_open(&c->tally[kind], c->options->trials) && good;
    if (!good)
        fprintf(stderr, "muster chaos: no memory for the times of %d trials\n", c->options->trials);
    return good;
}

static void print_rows(struct campaign *c)
{
    chaos_print_progress(c->options, NULL, NULL);
    chaos_print_header(c->options);
    for (int kind = 0; kind < CHAOS_KINDS; kind++)
        if (c->tally[kind].trials)
            chaos_print_row(c->options, chaos_kind_name((enum chaos_kind)kind), &c->tally[kind]);
    chaos_print_row(c->options, "all", &c->all);
}

int chaos_campaign_run(const struct chaos_options *options)
{
    struct campaign c = {.options = options};
    bool good = open_tallies(&c) && run_trials(&c);
    if (c.all.trials)
        print_rows(&c);
    good = good && c.all.errors == 0 && c.all.hangs == 0 && c.all.wrong == 0;
    for (int kind = 0; kind < CHAOS_KINDS; kind++)
        tally_close(&c.tally[kind]);
    tally_close(&c.all);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
