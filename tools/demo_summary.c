// SPDX-License-Identifier: Apache-2.0
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "demo.h"

/* ---- Judging ---- */

static bool same_text(const struct router_request *a, const struct router_request *b)
{
    return a->length == b->length && memcmp(a->text, b->text, (size_t)a->length) == 0;
}

static bool same_answer(const struct router_request *a, const struct router_request *b)
{
    int32_t length = a->length - a->prompt;
    return length == b->length - b->prompt && memcmp(a->text + a->prompt, b->text + b->prompt, (size_t)length) == 0;
}

void demo_compare(struct demo *d)
{
    const struct router *run = &d->run.router, *reference = &d->reference.router;
    d->same = run->requests == reference->requests;
    d->distinct = true;
    for (int32_t i = 0; i < run->requests; i++) {
        d->same = d->same && same_text(&run->request[i], &reference->request[i]);
        for (int32_t j = 0; j < i; j++)
            d->distinct = d->distinct && !same_answer(&run->request[i], &run->request[j]);
    }
}

static int32_t fired(const struct demo_options *o)
{
    int32_t count = 0;
    for (int32_t i = 0; i < o->faults; i++)
        count += o->fault[i].fired_ns != 0;
    return count;
}

bool demo_all_well(const struct demo *d)
{
    return router_done(&d->run.router) && d->same && fired(&d->options) == d->options.faults && d->run.disorderly == 0;
}

/* ---- Figures ---- */

struct times {
    double detect_ms, agree_ms, weights_ms, resume_ms;
};

static void longest(double *most, uint64_t from_ns, uint64_t to_ns)
{
    double ms = from_ns && to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
    if (ms > *most)
        *most = ms;
}

static struct times measure(const struct demo *d)
{
    struct times t = {.weights_ms = job_weights_ms(&d->run)};
    for (int32_t i = 0; i < d->options.faults; i++) {
        const struct job_fault *f = &d->options.fault[i];
        longest(&t.detect_ms, f->fired_ns, f->detected_ns);
        longest(&t.agree_ms, f->detected_ns, f->agreed_ns);
        longest(&t.resume_ms, f->fired_ns, f->resumed_ns);
    }
    return t;
}

/* From the first token to the last, the time of the faults included. */
static double tokens_per_s(const struct job *job)
{
    double seconds = job->last_token_ns ? (double)(job->last_token_ns - job->first_token_ns) / 1e9 : 0;
    return seconds > 0 ? (double)job->router.accepted / seconds : 0;
}

/* FNV-1a over all answers: one number to compare runs by. */
static uint64_t answers_hash(const struct router *router)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (int32_t i = 0; i < router->requests; i++) {
        const struct router_request *q = &router->request[i];
        for (int32_t byte = q->prompt; byte < q->length; byte++)
            hash = (hash ^ q->text[byte]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

/* ---- JSON ---- */

static void set_ms(json_t *object, const char *name, double ms)
{
    json_object_set_new(object, name, json_real(ms));
}

static void set_count(json_t *object, const char *name, uint64_t count)
{
    json_object_set_new(object, name, json_integer((json_int_t)count));
}

static json_t *fault_as_json(const struct job_fault *f)
{
    json_t *object = json_object();
    double detect_ms = 0, resume_ms = 0;
    longest(&detect_ms, f->fired_ns, f->detected_ns);
    longest(&resume_ms, f->fired_ns, f->resumed_ns);
    set_count(object, "rank", (uint64_t)f->rank);
    json_object_set_new(object, "signal", json_string(f->signal == SIGKILL ? "KILL" : "STOP"));
    set_count(object, "step", f->step);
    set_count(object, "layer", (uint64_t)f->layer);
    json_object_set_new(object, "happened", json_boolean(f->fired_ns != 0));
    set_ms(object, "detect_ms", detect_ms);
    set_ms(object, "resume_ms", resume_ms);
    return object;
}

static void set_times(json_t *object, const struct times *t)
{
    set_ms(object, "detect_ms", t->detect_ms);
    set_ms(object, "agree_ms", t->agree_ms);
    set_ms(object, "weights_ms", t->weights_ms);
    set_ms(object, "resume_ms", t->resume_ms);
}

void demo_print_json(const struct demo *d)
{
    const struct job *job = &d->run;
    struct times t = measure(d);
    char hash[20];
    json_t *object = json_object(), *faults = json_array();
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)answers_hash(&job->router));
    for (int32_t i = 0; i < d->options.faults; i++)
        json_array_append_new(faults, fault_as_json(&d->options.fault[i]));
    set_count(object, "ranks", (uint64_t)d->options.ranks);
    set_count(object, "alive", (uint64_t)job->served_alive);
    set_count(object, "epoch", job->served_epoch);
    set_times(object, &t);
    set_count(object, "tokens", job->router.accepted);
    set_count(object, "tokens_lost", router_missing(&job->router));
    set_ms(object, "tokens_per_s", tokens_per_s(job));
    json_object_set_new(object, "identical", json_boolean(d->same));
    json_object_set_new(object, "distinct", json_boolean(d->distinct));
    set_count(object, "remote_routes", job_remote_routes(job));
    set_count(object, "experts_loaded", job_experts_loaded(job));
    json_object_set_new(object, "answers", json_string(hash));
    set_count(object, "seed", d->options.seed);
    json_object_set_new(object, "faults", faults);
    json_dumpf(object, stdout, JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(object);
}

/* ---- Text ---- */

static void print_times(const struct demo *d)
{
    struct times t = measure(d);
    printf("  detection        %9.2f ms   signal to the store's knowing\n", t.detect_ms);
    printf("  agreement        %9.2f ms   from there to the last survivor's new view\n", t.agree_ms);
    printf("  weights          %9.2f ms   on the slowest rank; %llu experts loaded in all\n", t.weights_ms,
           (unsigned long long)job_experts_loaded(&d->run));
    printf("  resume           %9.2f ms   signal to a good step on every survivor\n\n", t.resume_ms);
}

/* Prompts may well have equal answers, short ones above all; then nobody could tell if they were exchanged. */
static void print_doubts(const struct demo *d)
{
    const struct demo_options *o = &d->options;
    if (!d->distinct)
        printf("  Some prompts have the same answer: the comparison would not notice if those were exchanged.\n");
    if (fired(o) < o->faults)
        printf("  %d of %d faults did not happen: the run was over before.\n", o->faults - fired(o), o->faults);
    if (d->run.disorderly)
        printf("  %d ranks that no fault had hit did not leave in good order.\n", d->run.disorderly);
}

void demo_print_summary(const struct demo *d)
{
    const struct job *job = &d->run;
    printf("\n  %d of %d ranks are alive, in epoch %u; seed %llu\n\n", job->served_alive, d->options.ranks,
           job->served_epoch, (unsigned long long)d->options.seed);
    print_times(d);
    printf("  tokens           %9llu      %.0f per second; %llu routes to other ranks\n",
           (unsigned long long)job->router.accepted, tokens_per_s(job), (unsigned long long)job_remote_routes(job));
    printf("  tokens lost      %9llu      counted by position\n", (unsigned long long)router_missing(&job->router));
    printf("  identical        %9s      to the run without a fault\n", d->same ? "yes" : "NO");
    print_doubts(d);
}
