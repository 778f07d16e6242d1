// SPDX-License-Identifier: Apache-2.0
/*
 * `muster demo`: several ranks answer prompts with a small model; some are killed or stopped in the middle of a forward
 * pass; every answer must be, byte for byte, what the same ranks give without a fault.
 */
#include <argp.h>
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"
#include "engine.h"
#include "job.h"
#include "tool.h"
#include "view.h"

enum { PATH_BYTES = 4096, BATCH = 64, DEMO_MAX_PROMPTS = 64, KEY_NO_VIEW = 256, LIMIT_S = 300 };

struct options {
    char model[PATH_BYTES], prompts[PATH_BYTES];
    const char *trace;
    int32_t ranks, tokens;
    uint64_t seed;
    bool json, no_view;
    struct job_fault fault[JOB_MAX_FAULTS];
    int32_t faults;
};

struct demo {
    struct options options;
    char program[PATH_BYTES];
    char trace_dir[64];
    int32_t experts, survivors, slots_per_rank;
    struct job reference, run;
    bool identical, distinct;
};

/* ---- Options ---- */

static const struct argp_option option_table[] = {
    {"model", 'm', "DIR", 0, "The model (default: the one that comes with Muster)", 0},
    {"prompts", 'p', "FILE", 0, "Prompts, one per line (default: prompts.txt beside the model)", 0},
    {"ranks", 'n', "N", 0, "Ranks, 2 to 16 (default 4)", 0},
    {"tokens", 't', "N", 0, "Tokens to generate for each prompt (default 64)", 0},
    {"kill", 'k', "RANK@STEP", 0, "SIGKILL that rank in its STEP-th forward pass (repeatable)", 0},
    {"stop", 's', "RANK@STEP", 0, "SIGSTOP it there (repeatable)", 0},
    {"seed", 'S', "S", 0, "Chooses the layer, and without --kill and --stop also who is killed when", 0},
    {"json", 'j', NULL, 0, "Print the summary as one JSON object, and nothing else", 0},
    {"trace", 'T', "FILE", 0, "Write Chrome trace events of all ranks that reach the end (ui.perfetto.dev)", 0},
    {"no-view", KEY_NO_VIEW, NULL, 0, "Print events as lines, also on a terminal", 0},
    {0},
};

static const char doc[] =
    "Several ranks answer prompts with a small model; one is killed in the middle of a forward pass, between the first "
    "store of a dispatch and its last flag. The answers must be those of a run without a fault.\v"
    "Times, each the longest over the faults: detect = from the signal until the store knows, or for a stopped rank "
    "until it is suspected; agree = from there until the last survivor has installed a view without it; weights = the "
    "longest that a rank took to load the experts it lacked; resume = from the signal until every survivor has "
    "finished "
    "a step again.\n\nExit status: 0 only if no token was lost and the output is identical; 1 otherwise; 2 for usage.";

static void add_fault(struct argp_state *state, const char *text, int signal)
{
    struct options *o = state->input;
    char *end;
    errno = 0;
    long rank = strtol(text, &end, 10);
    unsigned long long step = *end == '@' ? strtoull(end + 1, &end, 10) : 0;
    if (errno || *end || rank < 0 || rank >= ROUTER_MAX_RANKS || step < 1)
        argp_error(state, "\"%s\": must be RANK@STEP, a rank from 0 and a step from 1", text);
    if (o->faults == JOB_MAX_FAULTS)
        argp_error(state, "more than %d faults", JOB_MAX_FAULTS);
    o->fault[o->faults++] = (struct job_fault){.rank = (int32_t)rank, .step = step, .layer = -1, .signal = signal};
}

static void set_path(struct argp_state *state, const char *text, const char *tail, char path[PATH_BYTES])
{
    if (snprintf(path, PATH_BYTES, "%s%s", text, tail) >= PATH_BYTES)
        argp_error(state, "a path is longer than %d bytes", PATH_BYTES - 1);
}

static void check_faults(struct argp_state *state, const struct options *o)
{
    for (int32_t i = 0; i < o->faults; i++) {
        if (o->fault[i].rank >= o->ranks)
            argp_error(state, "rank %d: there are ranks 0 to %d", o->fault[i].rank, o->ranks - 1);
        for (int32_t j = 0; j < i; j++)
            if (o->fault[j].rank == o->fault[i].rank)
                argp_error(state, "rank %d is to fail twice; it does not come back", o->fault[i].rank);
    }
    if (o->faults >= o->ranks)
        argp_error(state, "at least one of %d ranks has to survive", o->ranks);
}

static void set_defaults(struct argp_state *state, struct options *o)
{
    bool in_tree = access(MUSTER_SOURCE_DIR "/models/kjv-moe/config.json", R_OK) == 0;
    if (!*o->model)
        set_path(state, in_tree ? MUSTER_SOURCE_DIR "/models" : MUSTER_MODEL_DIR, "/kjv-moe", o->model);
    if (!*o->prompts)
        set_path(state, o->model, "/prompts.txt", o->prompts);
    check_faults(state, o);
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case 'm': set_path(state, text, "", o->model); return 0;
    case 'p': set_path(state, text, "", o->prompts); return 0;
    case 'n': o->ranks = (int32_t)tool_number(state, "ranks", text, 2, ROUTER_MAX_RANKS); return 0;
    case 't': o->tokens = (int32_t)tool_number(state, "tokens", text, 1, 512); return 0;
    case 'k': add_fault(state, text, SIGKILL); return 0;
    case 's': add_fault(state, text, SIGSTOP); return 0;
    case 'S': o->seed = tool_number(state, "seed", text, 0, UINT64_MAX); return 0;
    case 'j': o->json = true; return 0;
    case 'T': o->trace = text; return 0;
    case KEY_NO_VIEW: o->no_view = true; return 0;
    case ARGP_KEY_END: set_defaults(state, o); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* ---- What the seed chooses ---- */

/* splitmix64 (Steele, Lea and Flood, 2014): every seed, also a small one, gives a well-mixed sequence. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static void choose_faults(struct options *o, int32_t layers)
{
    uint64_t state = o->seed;
    if (o->faults == 0) {
        uint64_t step = 4 + next_random(&state) % (uint64_t)(o->tokens > 8 ? o->tokens - 4 : 4);
        int32_t rank = (int32_t)(next_random(&state) % (uint64_t)o->ranks);
        o->fault[o->faults++] = (struct job_fault){.rank = rank, .step = step, .layer = -1, .signal = SIGKILL};
    }
    for (int32_t i = 0; i < o->faults; i++)
        o->fault[i].layer = (int32_t)(next_random(&state) % (uint64_t)layers);
}

/* ---- The runs ---- */

static bool add_prompts(const struct options *o, struct router *router)
{
    char line[CHANNEL_MAX_TEXT];
    FILE *in = fopen(o->prompts, "r");
    if (!in) {
        fprintf(stderr, "muster demo: %s: %s\n", o->prompts, strerror(errno));
        return false;
    }
    while (router->requests < DEMO_MAX_PROMPTS && fgets(line, sizeof line, in)) {
        line[strcspn(line, "\n")] = 0;
        if (*line && !router_add(router, (unsigned char *)line, (int32_t)strlen(line), o->tokens)) {
            fprintf(stderr, "muster demo: %s: a prompt and its answer are longer than %d bytes\n", o->prompts,
                    CHANNEL_MAX_TEXT);
            break;
        }
    }
    fclose(in);
    return router->requests > 0;
}

static bool serve(struct demo *d, struct job *job, const char *title, bool faulty)
{
    const struct options *o = &d->options;
    bool terminal = isatty(STDOUT_FILENO) && !o->no_view;
    struct view_screen screen = {.job = job, .title = title, .terminal = terminal};
    struct job_plan plan = {.program = d->program,
                            .model_dir = o->model,
                            .ranks = o->ranks,
                            .slots_per_rank = d->slots_per_rank,
                            .batch = BATCH,
                            .limit_ns = LIMIT_S * UINT64_C(1000000000),
                            .trace_dir = faulty && o->trace ? d->trace_dir : NULL};
    if (!o->json) {
        plan.show = view_show;
        plan.context = &screen;
        printf(terminal ? "\033[2J" : "%s\n", title);
    }
    job_init(job, &plan);
    job->fault = d->options.fault;
    job->faults = faulty ? o->faults : 0;
    return add_prompts(o, &job->router) && job_run(job);
}

static bool same_text(const struct router_request *a, const struct router_request *b)
{
    return a->length == b->length && memcmp(a->text, b->text, (size_t)a->length) == 0;
}

static bool same_answer(const struct router_request *a, const struct router_request *b)
{
    return a->limit == b->limit && memcmp(a->text + a->prompt, b->text + b->prompt, (size_t)a->limit) == 0;
}

static void compare(struct demo *d)
{
    d->identical = d->distinct = true;
    for (int32_t i = 0; i < d->run.router.requests; i++) {
        d->identical = d->identical && same_text(&d->run.router.request[i], &d->reference.router.request[i]);
        for (int32_t j = 0; j < i; j++)
            d->distinct = d->distinct && !same_answer(&d->run.router.request[i], &d->run.router.request[j]);
    }
}

/* ---- The trace ---- */

/* The elements of a rank's array, without its brackets. */
static void append_trace(FILE *out, const char *path)
{
    char line[1024];
    FILE *in = fopen(path, "r");
    while (in && fgets(line, sizeof line, in)) {
        size_t end = strcspn(line, "\n");
        line[end] = 0;
        if (*line != '{')
            continue;
        bool comma = end && line[end - 1] == ',';
        fprintf(out, "%s%s\n", line, comma ? "" : ",");
    }
    if (in)
        fclose(in);
}

static void write_faults(FILE *out, const struct demo *d)
{
    for (int32_t i = 0; i < d->options.faults; i++) {
        const struct job_fault *f = &d->options.fault[i];
        const char *name = f->signal == SIGKILL ? "SIGKILL" : "SIGSTOP";
        if (f->fired_ns)
            fprintf(out, "{\"name\":\"%s\",\"ph\":\"i\",\"s\":\"g\",\"pid\":%d,\"tid\":0,\"ts\":%.3f},\n", name,
                    f->rank, (double)f->fired_ns / 1e3);
    }
}

static bool write_trace(const struct demo *d)
{
    char path[PATH_BYTES];
    FILE *out = fopen(d->options.trace, "w");
    if (!out) {
        fprintf(stderr, "muster demo: %s: %s\n", d->options.trace, strerror(errno));
        return false;
    }
    fputs("[\n", out);
    for (int32_t r = 0; r < d->options.ranks; r++) {
        snprintf(path, sizeof path, "%s/%d.json", d->trace_dir, r);
        append_trace(out, path);
        unlink(path);
    }
    write_faults(out, d);
    fputs("{\"name\":\"process_labels\",\"ph\":\"M\",\"pid\":0,\"args\":{\"labels\":\"muster demo\"}}\n]\n", out);
    return fclose(out) == 0;
}

/* ---- The summary ---- */

struct times {
    double detect_ms, agree_ms, weights_ms, resume_ms;
    int32_t fired;
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
        t.fired += f->fired_ns != 0;
        longest(&t.detect_ms, f->fired_ns, f->detected_ns);
        longest(&t.agree_ms, f->detected_ns, f->agreed_ns);
        longest(&t.resume_ms, f->fired_ns, f->resumed_ns);
    }
    return t;
}

static double tokens_per_s(const struct job *job)
{
    double seconds = (double)(job->ended_ns - job->started_ns) / 1e9;
    return seconds > 0 ? (double)job->router.accepted / seconds : 0;
}

static json_t *faults_as_json(const struct options *o)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < o->faults; i++) {
        const struct job_fault *f = &o->fault[i];
        json_array_append_new(list, json_pack("{s:i, s:s, s:I, s:i, s:b}", "rank", f->rank, "signal",
                                              f->signal == SIGKILL ? "KILL" : "STOP", "step", (json_int_t)f->step,
                                              "layer", f->layer, "happened", f->fired_ns != 0));
    }
    return list;
}

static void print_json(const struct demo *d)
{
    struct times t = measure(d);
    const struct job *job = &d->run;
    json_t *object =
        json_pack("{s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:I, s:I, s:f, s:b, s:I, s:I, s:I, s:o}", "ranks",
                  d->options.ranks, "alive", job_alive(job), "epoch", (int)job->served_epoch, "detect_ms", t.detect_ms,
                  "agree_ms", t.agree_ms, "weights_ms", t.weights_ms, "resume_ms", t.resume_ms, "tokens",
                  (json_int_t)job->router.accepted, "tokens_lost", (json_int_t)router_missing(&job->router),
                  "tokens_per_s", tokens_per_s(job), "identical", d->identical && d->distinct, "remote_routes",
                  (json_int_t)job_remote_routes(job), "experts_loaded", (json_int_t)job_experts_loaded(job), "seed",
                  (json_int_t)d->options.seed, "faults", faults_as_json(&d->options));
    json_dumpf(object, stdout, JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(object);
}

static void print_summary(const struct demo *d)
{
    struct times t = measure(d);
    const struct job *job = &d->run;
    printf("\n  %d of %d ranks are alive, in epoch %u (seed %llu)\n\n", job_alive(job), d->options.ranks,
           job->served_epoch, (unsigned long long)d->options.seed);
    printf("  detection        %9.2f ms   signal to the store's knowing it\n", t.detect_ms);
    printf("  agreement        %9.2f ms   until the last survivor had the new view\n", t.agree_ms);
    printf("  weights          %9.2f ms   %llu experts loaded from disk\n", t.weights_ms,
           (unsigned long long)job_experts_loaded(job));
    printf("  resume           %9.2f ms   signal to a good step on every survivor\n\n", t.resume_ms);
    printf("  tokens           %9llu      %.0f per second, %llu expert rows from other ranks\n",
           (unsigned long long)job->router.accepted, tokens_per_s(job), (unsigned long long)job_remote_routes(job));
    printf("  tokens lost      %9llu\n", (unsigned long long)router_missing(&job->router));
    printf("  identical        %9s      to a run without a fault\n", d->identical ? "yes" : "NO");
    if (!d->distinct)
        printf("  two answers are the same: the comparison says little\n");
    if (t.fired < d->options.faults)
        printf("  %d of %d faults did not happen: the run was over before\n", d->options.faults - t.fired,
               d->options.faults);
}

/* ---- The command ---- */

static void interrupt(int signal)
{
    (void)signal;
    job_interrupted = 1;
}

static bool prepare(struct demo *d)
{
    ssize_t length = readlink("/proc/self/exe", d->program, sizeof d->program - 1);
    int32_t layers;
    if (length < 0 || engine_experts(d->options.model, &d->experts) != MUSTER_OK ||
        engine_layers(d->options.model, &layers) != MUSTER_OK) {
        fprintf(stderr, "muster demo: %s\n", length < 0 ? strerror(errno) : muster_last_error());
        return false;
    }
    choose_faults(&d->options, layers);
    d->survivors = d->options.ranks - d->options.faults;
    d->slots_per_rank = (d->experts + d->survivors - 1) / d->survivors;
    snprintf(d->trace_dir, sizeof d->trace_dir, "/tmp/muster-trace-XXXXXX");
    if (d->options.trace && !mkdtemp(d->trace_dir)) {
        fprintf(stderr, "muster demo: %s: %s\n", d->trace_dir, strerror(errno));
        return false;
    }
    struct sigaction action = {.sa_handler = interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return true;
}

static bool run_both(struct demo *d)
{
    if (!serve(d, &d->reference, "muster demo: the same prompts without a fault, for comparison", false)) {
        fprintf(stderr, "muster demo: the run without a fault did not end well\n");
        return false;
    }
    serve(d, &d->run, "muster demo: the same again, with a fault", true);
    compare(d);
    return true;
}

int tool_demo(int argc, char **argv)
{
    static const struct argp parser = {.options = option_table, .parser = parse_option, .doc = doc};
    struct demo *d = calloc(1, sizeof *d);
    if (!d)
        return EXIT_FAILURE;
    d->options = (struct options){.ranks = 4, .tokens = 64, .seed = clock_ns() % 1000000};
    argp_parse(&parser, argc, argv, 0, NULL, &d->options);
    bool good = prepare(d) && run_both(d);
    if (good && d->options.json)
        print_json(d);
    else if (good)
        print_summary(d);
    if (d->options.trace && *d->trace_dir) {
        good = good && write_trace(d);
        rmdir(d->trace_dir);
    }
    good = good && router_done(&d->run.router) && d->identical && d->distinct && measure(d).fired == d->options.faults;
    free(d);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
