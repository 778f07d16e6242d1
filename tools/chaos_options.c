// SPDX-License-Identifier: Apache-2.0
#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chaos.h"
#include "chaos_step.h"
#include "tool.h"

enum {
    KEY_TIMEOUT = 256,
    KEY_SPOIL,
    LEAST_RANKS = 2,
    CPU_RANKS = 4, /* by default */
    MOST_TOKENS = 4096,
    MOST_HIDDEN = 65536,
    MOST_EXPERTS = 1024,
    LEAST_TIMEOUT_MS = 10,
    MOST_TIMEOUT_MS = 60000,
};

static const struct argp_option option_table[] = {
    {0, 0, 0, 0, "What is done to them:", 1},
    {"trials", 'T', "N", 0, "Faults, one after the other (default 200)", 0},
    {"kinds", 'K', "LIST", 0, "Kinds of faults, taken in turn (default kill,stop,hang,between)", 0},
    {"seed", 's', "S", 0, "Chooses victims, moments, tokens and routes (default 1)", 0},
    {0, 0, 0, 0, "Who exchanges what:", 2},
    {"ranks", 'n', "N", 0,
     "Ranks, each a process, 2 to 128 (default: one for each GPU, at least 2; on the CPU 4). Where there are fewer "
     "GPUs "
     "several ranks share one",
     0},
    {"tokens", 't', "N", 0, "Tokens of each rank (default 32)", 0},
    {"hidden", 'H', "N", 0, "Values of a token, bf16 (default 2048)", 0},
    {"topk", 'k', "K", 0, "Experts of a token, 1 to 32 (default 8)", 0},
    {"experts", 'e', "N", 0, "Experts of each rank (default 8)", 0},
    {"timeout-ms", KEY_TIMEOUT, "MS", 0,
     "How long an operation may wait for a peer that has begun its step (default 200)", 0},
    {0, 0, 0, 0, "What is printed:", 3},
    {"json", 'j', NULL, 0, "One JSON object for each kind and one for all, and nothing else", 0},
    {"spoil", KEY_SPOIL, NULL, OPTION_HIDDEN, "Get a byte wrong now and then: the check must see it", 0},
    {0},
};

static const char text[] =
    "Ranks exchange tokens in steps, as fast as they can, and compare every byte that comes with what should. Again "
    "and "
    "again one of them gets a fault. The others must lose no more than the step that was under way: agree on a view "
    "without it, and finish an exact step there. Then its number is started again as a new process, which must have a "
    "part in an exact step before the next fault. So all faults happen to one group.\v"
    "Kinds of faults:\n"
    "  kill     SIGKILL at any moment\n"
    "  stop     SIGSTOP at any moment; the rank must be suspected and fenced\n"
    "  hang     a kernel that never ends lies before one of its dispatches\n"
    "           (on the CPU: it sleeps for ever)\n"
    "  between  SIGKILL between one of its dispatches and the combine\n\n"
    "On GPUs the steps of every other round of kinds are replays of a graph.\n\n"
    "What is counted:\n"
    "  errors       trials in which a survivor saw an error: of the device, or\n"
    "               a status that a peer's death does not excuse\n"
    "  hangs        trials that did not come to an end within all deadlines;\n"
    "               a fresh group goes on with the rest\n"
    "  wrong bytes  of steps that counted as good\n"
    "  good steps, void steps\n"
    "               of ranks that lived until the victim's successor was back\n"
    "  expelled     ranks that were taken for hanging but were only slow:\n"
    "               allowed, and counted\n\n"
    "Exit status: 0 if there were no errors, no hangs and no wrong bytes; 1 otherwise; 2 for usage; 3 if it cannot be "
    "done on this machine, for example without a GPU.\n\n"
    "Examples:\n"
    "  muster chaos gpu\n"
    "  muster chaos cpu --ranks 8 --trials 1000 --kinds kill,stop --json";

/* ---- single options ---- */

static enum chaos_kind kind_named(struct argp_state *state, const char *name)
{
    for (int kind = 0; kind < CHAOS_KINDS; kind++)
        if (strcmp(name, chaos_kind_name((enum chaos_kind)kind)) == 0)
            return (enum chaos_kind)kind;
    argp_error(state, "--kinds has \"%s\"; it must be a list of kill, stop, hang, between", name);
    return CHAOS_KINDS;
}

static void set_kinds(struct argp_state *state, struct chaos_options *o, const char *list)
{
    char copy[256], *rest = copy, *one;
    if (snprintf(copy, sizeof copy, "%s", list) >= (int)sizeof copy)
        argp_error(state, "--kinds is longer than %zu characters", sizeof copy - 1);
    o->kind_count = 0;
    while ((one = strsep(&rest, ","))) {
        if (o->kind_count == CHAOS_KINDS)
            argp_error(state, "--kinds has more than %d kinds", CHAOS_KINDS);
        o->kind[o->kind_count++] = kind_named(state, one);
    }
}

/* What the library would refuse is refused here, in its words, before any rank is started. */
static void check_configs(struct argp_state *state, const struct chaos_shape *s)
{
    for (int32_t i = 0; i < CHAOS_EXCHANGES; i++) {
        muster_ep_config config = chaos_step_config(s, i);
        uint64_t bytes;
        if (muster_ep_memory_bytes(&config, s->ranks ? s->ranks : LEAST_RANKS, &bytes) != MUSTER_OK)
            argp_error(state, "%s", muster_last_error());
    }
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct chaos_options *o = state->input;
    struct chaos_shape *s = &o->shape;
    switch (key) {
    case 'T': o->trials = tool_number32(state, "trials", value, 1, CHAOS_MAX_TRIALS); return 0;
    case 'K': set_kinds(state, o, value); return 0;
    case 's': s->seed = tool_number(state, "seed", value, 0, INT64_MAX); return 0;
    case 'n': s->ranks = tool_number32(state, "ranks", value, LEAST_RANKS, MUSTER_MAX_RANKS); return 0;
    case 't': s->tokens = tool_number32(state, "tokens", value, 1, MOST_TOKENS); return 0;
    case 'H': s->hidden = tool_number32(state, "hidden", value, 8, MOST_HIDDEN); return 0;
    case 'k': s->topk = tool_number32(state, "topk", value, 1, MUSTER_EP_MAX_TOPK); return 0;
    case 'e': s->slots = tool_number32(state, "experts", value, 1, MOST_EXPERTS); return 0;
    case KEY_TIMEOUT:
        s->timeout_ms = tool_number32(state, "timeout-ms", value, LEAST_TIMEOUT_MS, MOST_TIMEOUT_MS);
        return 0;
    case 'j': o->json = true; return 0;
    case KEY_SPOIL: s->spoil = true; return 0;
    case ARGP_KEY_END: check_configs(state, s); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

void chaos_parse(int argc, char **argv, bool gpu, struct chaos_options *options)
{
    static const struct argp parser = {.options = option_table, .parser = parse_option, .doc = text};
    *options = (struct chaos_options){
        .shape = {.gpu = gpu,
                  .ranks = CPU_RANKS,
                  .tokens = 32,
                  .hidden = 2048,
                  .topk = 8,
                  .slots = 8,
                  .timeout_ms = 200,
                  .seed = 1},
        .trials = 200,
        .kind_count = CHAOS_KINDS,
        .kind = {CHAOS_KILL, CHAOS_STOP, CHAOS_HANG, CHAOS_BETWEEN},
    };
    if (gpu)
        options->shape.ranks = 0; /* as many as there are devices */
    argp_parse(&parser, argc, argv, 0, NULL, options);
}
