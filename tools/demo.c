// SPDX-License-Identifier: Apache-2.0
/*
 * `muster demo`: several ranks answer prompts with a small model; some are killed or stopped in the middle of a forward
 * pass; every answer must be, byte for byte, what the same ranks give without a fault.
 */
#include "demo.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"
#include "process.h"
#include "tool.h"
#include "view.h"

enum { BATCH = 64, LIMIT_S = 300 };

/* ---- What the seed chooses ---- */

/* splitmix64 (Steele, Lea and Flood, 2014): every seed, also a small one, gives a well-mixed sequence. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* Each token takes a step, so a step in the middle three quarters of them is sure to come. */
static uint64_t choose_step(uint64_t *state, int32_t tokens)
{
    uint64_t margin = (uint64_t)tokens / 8;
    return 1 + margin + next_random(state) % ((uint64_t)tokens - 2 * margin);
}

static void choose_faults(struct demo_options *o, int32_t layers)
{
    uint64_t state = o->seed;
    if (o->faults == 0) {
        uint64_t step = choose_step(&state, o->tokens);
        int32_t rank = (int32_t)(next_random(&state) % (uint64_t)o->ranks);
        o->fault[o->faults++] = (struct job_fault){.rank = rank, .step = step, .layer = -1, .signal = SIGKILL};
    }
    for (int32_t i = 0; i < o->faults; i++)
        o->fault[i].layer = (int32_t)(next_random(&state) % (uint64_t)layers);
}

/* ---- Prompts ---- */

static bool add_prompt(const struct demo *d, struct router *router, char *line)
{
    const struct demo_options *o = &d->options;
    size_t bytes = strcspn(line, "\n");
    int32_t most = d->model.max_position_embeddings - o->tokens;
    if (router->requests == DEMO_MAX_PROMPTS) {
        fprintf(stderr, "muster demo: %s: more than %d prompts\n", o->prompts, DEMO_MAX_PROMPTS);
        return false;
    }
    if ((int64_t)bytes > most || !router_add(router, (unsigned char *)line, (int32_t)bytes, o->tokens)) {
        fprintf(stderr, "muster demo: %s: prompt %d and %d tokens are more than the model's %d positions, or than %d\n",
                o->prompts, router->requests + 1, o->tokens, d->model.max_position_embeddings, CHANNEL_MAX_TEXT);
        return false;
    }
    return true;
}

static bool add_prompts(const struct demo *d, struct router *router)
{
    char line[CHANNEL_MAX_TEXT + 2]; /* a prompt that is too long is seen to be */
    FILE *in = fopen(d->options.prompts, "re");
    if (!in) {
        fprintf(stderr, "muster demo: %s: %s\n", d->options.prompts, strerror(errno));
        return false;
    }
    bool good = true;
    while (good && fgets(line, sizeof line, in))
        good = *line == '\n' || add_prompt(d, router, line);
    fclose(in);
    if (good && router->requests == 0)
        fprintf(stderr, "muster demo: %s: there are no prompts in it\n", d->options.prompts);
    return good && router->requests > 0;
}

/* ---- The runs ---- */

static bool serve(struct demo *d, struct job *job, const char *title, bool faulty)
{
    const struct demo_options *o = &d->options;
    struct view view;
    struct job_plan plan = {.program = d->program,
                            .model_dir = o->model,
                            .ranks = o->ranks,
                            .slots_per_rank = d->slots_per_rank,
                            .batch = BATCH,
                            .limit_ns = LIMIT_S * UINT64_C(1000000000),
                            .trace = faulty && o->trace,
                            .show = o->json ? NULL : view_show,
                            .context = &view};
    job_init(job, &plan);
    job->fault = d->options.fault;
    job->faults = faulty ? o->faults : 0;
    if (!add_prompts(d, &job->router))
        return false;
    if (!o->json)
        view_open(&view, job, title, isatty(STDOUT_FILENO) && !o->no_view);
    bool done = job_run(job);
    if (!o->json)
        view_close(&view);
    return done;
}

/* The run with the fault is judged by what has come of it; without the other there is nothing to judge it by. */
static bool run_both(struct demo *d)
{
    bool done = serve(d, &d->reference, "The same prompts without a fault, to compare with", false);
    if (done)
        serve(d, &d->run, "The prompts again, this time with a fault", true);
    if (job_interrupted)
        fprintf(stderr, "muster demo: interrupted\n");
    else if (!done)
        fprintf(stderr, "muster demo: the run without a fault did not end well\n");
    return done && !job_interrupted;
}

/* ---- The command ---- */

static void interrupt(int signal)
{
    (void)signal;
    job_interrupted = 1;
}

/* A hang-up that we were told to ignore (nohup) stays ignored; an interrupt ends the run wherever it comes from. */
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = interrupt}, before;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGQUIT, &action, NULL);
    if (sigaction(SIGHUP, NULL, &before) == 0 && before.sa_handler != SIG_IGN)
        sigaction(SIGHUP, &action, NULL);
}

static muster_status read_model(struct demo *d)
{
    muster_status status = model_config_read(d->options.model, &d->model);
    if (status == MUSTER_OK && d->model.vocab_size > UINT8_MAX + 1)
        return error_set(MUSTER_ERR_UNSUPPORTED, "%s: vocab_size = %d; the demo's tokens are bytes, so 256 at most",
                         d->options.model, d->model.vocab_size);
    return status;
}

static bool prepare(struct demo *d)
{
    bool found = process_self(d->program);
    if (!found || read_model(d) != MUSTER_OK) {
        fprintf(stderr, "muster demo: %s%s\n", found ? "" : "/proc/self/exe, to start ranks of this tool: ",
                found ? muster_last_error() : strerror(errno));
        return false;
    }
    choose_faults(&d->options, d->model.num_hidden_layers);
    int32_t survivors = d->options.ranks - d->options.faults;
    d->slots_per_rank = (d->model.num_experts + survivors - 1) / survivors;
    catch_signals();
    return true;
}

static bool report(struct demo *d)
{
    demo_compare(d);
    if (d->options.json)
        demo_print_json(d);
    else
        demo_print_summary(d);
    bool written = !d->options.trace || demo_write_trace(d);
    return demo_all_well(d) && written;
}

int tool_demo(int argc, char **argv)
{
    struct demo *d = calloc(1, sizeof *d);
    if (!d)
        return EXIT_FAILURE;
    demo_parse(argc, argv, &d->options);
    bool good = prepare(d) && run_both(d) && report(d);
    job_close(&d->run);
    free(d);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
