// SPDX-License-Identifier: Apache-2.0
#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/clock.h"
#include "demo.h"
#include "tool.h"

enum { KEY_NO_VIEW = 256, MAX_TOKENS = 512 };

static const struct argp_option option_table[] = {
    {"model", 'm', "DIR", 0, "The model (default: the one that comes with Muster)", 0},
    {"prompts", 'p', "FILE", 0, "Prompts, one per line, 64 at most (default: prompts.txt beside the model)", 0},
    {"ranks", 'n', "N", 0, "Ranks, 2 to 16 (default 4)", 0},
    {"tokens", 't', "N", 0, "Tokens to generate for each prompt (default 64)", 0},
    {"kill", 'k', "RANK@STEP", 0, "SIGKILL that rank in its STEP-th forward pass (repeatable)", 0},
    {"stop", 's', "RANK@STEP", 0, "SIGSTOP it there (repeatable)", 0},
    {"seed", 'S', "S", 0,
     "Chooses the layer, and without --kill and --stop also who is killed when (default: from the clock; it is "
     "printed)",
     0},
    {"json", 'j', NULL, 0, "Print the summary as one JSON object, and nothing else", 0},
    {"trace", 'T', "FILE", 0, "Write Chrome trace events of the launcher and of all ranks that reach the end", 0},
    {"no-view", KEY_NO_VIEW, NULL, 0, "Print events as lines, also on a terminal", 0},
    {0},
};

static const char doc[] =
    "Several ranks answer prompts with a small model; one is killed in the middle of a forward pass, between the first "
    "store of a dispatch and its last flag. The answers must be those of a run without a fault, which comes first.\v"
    "Times, of several faults the longest:\n"
    "detection: from the signal until the store saw the rank dead; for a stopped rank, until it was asked to kill it\n"
    "agreement: from there until the last survivor had installed a view without the rank\n"
    "weights: what the slowest rank took to load the experts that it lacked\n"
    "resume: from the signal until the last survivor had finished a good step in such a view\n\n"
    "Identical: every answer is that of the run without a fault, byte for byte.\n\n"
    "Exit status: 0 only if no token was lost, the output is identical, all faults happened, and the other ranks left "
    "in good order; 1 otherwise; 2 for usage.";

static void add_fault(struct argp_state *state, const char *text, int signal)
{
    struct demo_options *o = state->input;
    char *at, *end;
    errno = 0;
    long rank = strtol(text, &at, 10);
    bool numbers = isdigit((unsigned char)*text) && *at == '@' && isdigit((unsigned char)at[1]);
    unsigned long long step = strtoull(numbers ? at + 1 : "0", &end, 10);
    if (errno || !numbers || *end || step < 1 || rank >= ROUTER_MAX_RANKS)
        argp_error(state, "\"%s\": must be RANK@STEP, a rank from 0 and a step from 1", text);
    if (o->faults == JOB_MAX_FAULTS)
        argp_error(state, "more than %d faults", JOB_MAX_FAULTS);
    o->fault[o->faults++] = (struct job_fault){.rank = (int32_t)rank, .step = step, .layer = -1, .signal = signal};
}

static void set_path(struct argp_state *state, const char *text, const char *tail, char path[PATH_MAX])
{
    if (snprintf(path, PATH_MAX, "%s%s", text, tail) >= PATH_MAX)
        argp_error(state, "a path is longer than %d bytes", PATH_MAX - 1);
}

static void check_faults(struct argp_state *state, const struct demo_options *o)
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

/* The model in the source tree that this was built from, otherwise the installed one. */
static void set_defaults(struct argp_state *state, struct demo_options *o)
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
    struct demo_options *o = state->input;
    switch (key) {
    case 'm': set_path(state, text, "", o->model); return 0;
    case 'p': set_path(state, text, "", o->prompts); return 0;
    case 'n': o->ranks = (int32_t)tool_number(state, "ranks", text, 2, ROUTER_MAX_RANKS); return 0;
    case 't': o->tokens = (int32_t)tool_number(state, "tokens", text, 1, MAX_TOKENS); return 0;
    case 'k': add_fault(state, text, SIGKILL); return 0;
    case 's': add_fault(state, text, SIGSTOP); return 0;
    case 'S': o->seed = tool_number(state, "seed", text, 0, INT64_MAX); return 0;
    case 'j': o->json = true; return 0;
    case 'T': o->trace = text; return 0;
    case KEY_NO_VIEW: o->no_view = true; return 0;
    case ARGP_KEY_END: set_defaults(state, o); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

void demo_parse(int argc, char **argv, struct demo_options *options)
{
    static const struct argp parser = {.options = option_table, .parser = parse_option, .doc = doc};
    *options = (struct demo_options){.ranks = 4, .tokens = 64, .seed = clock_ns() % 1000000};
    argp_parse(&parser, argc, argv, 0, NULL, options);
}
