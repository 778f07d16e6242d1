// SPDX-License-Identifier: Apache-2.0
#include <argp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/runtime.h"
#include "muster/ep.h"
#include "perf.h"
#include "perf_library.h"
#include "tool.h"

enum {
    KEY_NO_BASELINE = 256,
    KEY_QUANTISE_RETURN,
    KEY_NO_CHECK,
    KEY_CHECK,
    KEY_SPOIL,
    KEY_FLUSH,
    KEY_NO_FAULT_TOLERANCE,
    KEY_COMPARE_FAULT_TOLERANCE,
    MOST_TOKENS = 65536,
    MOST_ITERATIONS = 1000000,
    FEW_TOKENS = 256, /* cuda: with more of them there are fewer iterations, */
    LEAST_ITERATIONS = 3 /* down to this */
};

/* Of each rank on a device: its context, kernels, and the memory that --flush overwrites. */
#define RESERVED_BYTES UINT64_C(1500000000)

static const struct argp_option option_table[] = {
    {0, 0, 0, 0, "What is exchanged:", 1},
    {"backend", 'B', "NAME", 0, "cpu, or cuda: rank r on GPU r (default cpu)", 0},
    {"ranks", 'n', "N", 0, "Ranks, each a process, 1 to 128 (default 2; with cuda, as many as there are GPUs)", 0},
    {"tokens", 't', "LIST", 0,
     "Tokens of each rank: one or more counts, one after the other (default 1,16,128; with cuda "
     "1,8,32,64,128,256,1024,4096, "
     "but those that the GPUs have no memory for)",
     0},
    {"hidden", 'H', "N", 0, "Values of a token (default 2048; with cuda 7168)", 0},
    {"topk", 'k', "K", 0, "Experts of a token, 1 to 32 (default 8)", 0},
    {"experts", 'e', "N", 0, "Experts in all (default 64; with cuda 256)", 0},
    {"dtype", 'd', "TYPE", 0, "bf16, fp16 or fp32 (default bf16)", 0},
    {"quantise", 'q', "HOW", 0, "On the way to the experts: none, fp8, or fp8p2 with scales that are powers of two", 0},
    {"quantise-return", KEY_QUANTISE_RETURN, "HOW", 0, "On the way home: likewise", 0},
    {"layout", 'l', "LAYOUT", 0,
     "rank: a row for each token and rank; flat: the same without gaps; expert: for each token and expert (default "
     "rank; "
     "with cuda expert)",
     0},
    {"combine", 'c', "MODE", 0, "reduced: a sum on each rank; exact: every row comes home (default reduced)", 0},
    {"seed", 's', "S", 0, "Chooses tokens and routes (default 1)", 0},
    {0, 0, 0, 0, "How it is measured:", 2},
    {"iterations", 'i', "N", 0,
     "Timed iterations of a block (default 500; with cuda 30, each a graph of 20 pairs, "
     "and above 256 tokens as many fewer as there are more tokens, at least 3: a block takes about a quarter of a "
     "second)",
     0},
    {"warmup", 'w', "N", 0, "Iterations before them (default 50; with cuda 5)", 0},
    {"flush", KEY_FLUSH, NULL, 0, "With cuda: empty the second-level cache between pairs, outside of their time", 0},
    {"no-fault-tolerance", KEY_NO_FAULT_TOLERANCE, NULL, 0, "With cuda: kernels that check nothing while they wait", 0},
    {"compare-fault-tolerance", KEY_COMPARE_FAULT_TOLERANCE, NULL, 0,
     "With cuda: both, in turns, by ranks of their own, and what the checks cost a pair: the median of the differences "
     "between blocks, and in brackets where that lies with 95 % (from six blocks on; with fewer, all of them)",
     0},
    {"blocks", 'b', "N", 0, "Blocks of each row of the table, taken in turns (default 7)", 0},
    {"experts-do", 'x', "WHAT", 0,
     "What lies between dispatch and combine. nothing: the results were written before the clock started; copy: each "
     "rank copies what it received to where its results belong (default nothing)",
     0},
    {"check", KEY_CHECK, NULL, 0, "Compare all values before and after the timed iterations (this is the default)", 0},
    {"no-check", KEY_NO_CHECK, NULL, 0, "Do not", 0},
    {"no-baseline", KEY_NO_BASELINE, NULL, 0, "Leave out the same exchange over MPI, or NCCL", 0},
    {0, 0, 0, 0, "What is printed:", 3},
    {"json", 'j', NULL, 0, "One JSON object for each row, and nothing else", 0},
    {"spoil", KEY_SPOIL, NULL, OPTION_HIDDEN, "Get one value wrong: the check must see it", 0},
    {0},
};

static const char text[] =
    "Measures dispatch and combine of tokens that are routed uniformly at random, and beside it, in the same run, what "
    "one would do without the library: permute the rows, exchange them with MPI_Alltoallv, permute back and add up. "
    "That needs Open MPI, and muster_perf_mpi beside this tool; without it only the library is measured. With cuda it "
    "is "
    "permute, grouped ncclSend and ncclRecv, and back, of a row for each token and rank (with --layout expert: and "
    "expert); that needs libnccl.so.2. Counts and routes are known to it beforehand, which favours it.\v"
    "On the host all ranks begin each iteration together, after a barrier in shared memory that is not timed. A pair "
    "is a dispatch "
    "and the combine after it, back to back; each pair is a step of its own, and reading its verdict is part of its "
    "time. With cuda an iteration is a graph of 20 pairs, after one in which the ranks come together, and its time is "
    "the "
    "average pair's; dispatch and combine are timed apart, in a graph with an event between them, and therefore make "
    "more than the pair. "
    "The time of an iteration is that of the slowest rank. Printed: the median over the blocks of the median "
    "over "
    "a block's iterations, and the 90th percentile of all iterations. The blocks of the rows of a table take turns.\n\n"
    "  rows    in-place: received rows are used, and results written, where they lie in the library's memory; caller: "
    "both are copied from and to arrays of the caller's, which is the only way with --quantise-return and --layout "
    "expert\n"
    "  ft      with cuda: fault tolerance\n"
    "  GB/s    bytes of rows that cross from rank to rank, there and back, each rank's share, by the pair's time. What "
    "comes back to one rank leaves another: so this is also the rate at which bytes leave a rank\n"
    "  link    with cuda: that rate by the measured one, at which all GPUs copy to all others at once; dispatch and "
    "combine use a link in the same direction one after the other, so it is about 1 at most\n"
    "  MB      memory of a rank for the exchange\n"
    "  wrong   values that were not what they should be\n"
    "  ratio   the pair's time by that of MPI, or NCCL\n\n"
    "Exit status: 0; 1 if a value was wrong or a rank failed; 2 for usage.\n\n"
    "Examples:\n"
    "  muster perf ep\n"
    "  muster perf ep --ranks 4 --tokens 1,128,1024 --layout expert --combine exact --json";

/* ---- single options ---- */

/* The index of the word among `words`, which end with NULL. */
static int32_t choose(struct argp_state *state, const char *option, const char *word, const char *const *words)
{
    char all[80] = "";
    for (int32_t i = 0; words[i]; i++) {
        if (strcmp(word, words[i]) == 0)
            return i;
        strncat(all, i ? ", " : "", sizeof all - strlen(all) - 1);
        strncat(all, words[i], sizeof all - strlen(all) - 1);
    }
    argp_error(state, "--%s is \"%s\"; it must be one of %s", option, word, all);
    return 0;
}

static void set_tokens(struct argp_state *state, struct perf_shape *shape, const char *list)
{
    char copy[256], *rest = copy, *one;
    if (snprintf(copy, sizeof copy, "%s", list) >= (int)sizeof copy)
        argp_error(state, "--tokens is longer than %zu characters", sizeof copy - 1);
    shape->token_counts = 0;
    while ((one = strsep(&rest, ","))) {
        if (shape->token_counts == PERF_MAX_TOKEN_COUNTS)
            argp_error(state, "--tokens has more than %d counts", PERF_MAX_TOKEN_COUNTS);
        shape->tokens[shape->token_counts++] = tool_number32(state, "tokens", one, 1, MOST_TOKENS);
    }
}

static error_t parse_shape(int key, char *value, struct argp_state *state, struct perf_shape *s)
{
    static const char *const types[] = {"bf16", "fp16", "fp32", NULL}, *const layouts[] = {"expert", "rank", "flat",
                                                                                           NULL};
    static const char *const modes[] = {"exact", "reduced", NULL}, *const quantise[] = {"none", "fp8", "fp8p2", NULL};
    static const char *const fillings[] = {"nothing", "copy", NULL};
    static const char *const backends[] = {"cpu", "cuda", NULL};
    switch (key) {
    case 'n': s->ranks = tool_number32(state, "ranks", value, 1, MUSTER_MAX_RANKS); return 0;
    case 't': set_tokens(state, s, value); return 0;
    case 'H': s->hidden = tool_number32(state, "hidden", value, 4, PERF_MAX_HIDDEN); return 0;
    case 'k': s->topk = tool_number32(state, "topk", value, 1, MUSTER_EP_MAX_TOPK); return 0;
    case 'e': s->experts = tool_number32(state, "experts", value, 1, 65536); return 0;
    case 'B': s->cuda = choose(state, "backend", value, backends); return 0;
    case KEY_FLUSH: s->flush = true; return 0;
    case KEY_NO_FAULT_TOLERANCE: s->no_fault_tolerance = true; return 0;
    case 'd': s->type = (enum perf_type)choose(state, "dtype", value, types); return 0;
    case 'q': s->quantise = choose(state, "quantise", value, quantise); return 0;
    case KEY_QUANTISE_RETURN: s->quantise_return = choose(state, "quantise-return", value, quantise); return 0;
    case 'l': s->layout = choose(state, "layout", value, layouts); return 0;
    case 'c': s->combine = choose(state, "combine", value, modes); return 0;
    case 's': s->seed = tool_number(state, "seed", value, 0, INT64_MAX); return 0;
    case 'x': s->copy = choose(state, "experts-do", value, fillings); return 0;
    case KEY_CHECK: s->check = true; return 0;
    case KEY_NO_CHECK: s->check = false; return 0;
    case KEY_SPOIL: s->spoil = true; return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* ---- all of them together ---- */

/* What the library would refuse is refused here, in its words, before any rank is started. */
static void check_configs(struct argp_state *state, const struct perf_shape *s)
{
    for (int32_t i = 0; i < s->token_counts; i++) {
        muster_ep_config config = perf_library_config(s, i);
        uint64_t bytes;
        if (muster_ep_memory_bytes(&config, s->ranks, &bytes) != MUSTER_OK)
            argp_error(state, "%s", muster_last_error());
    }
}

static int32_t or_else(int32_t given, int32_t otherwise)
{
    return given ? given : otherwise;
}

static void set_default_tokens(struct perf_shape *s)
{
    static const int32_t host[] = {1, 16, 128}, cuda[] = {1, 8, 32, 64, 128, 256, 1024, 4096};
    if (s->token_counts)
        return;
    s->token_counts = s->cuda ? sizeof cuda / sizeof *cuda : sizeof host / sizeof *host;
    memcpy(s->tokens, s->cuda ? cuda : host, (size_t)s->token_counts * sizeof *s->tokens);
}

/* What was not given is what one would measure on such a machine. */
static void set_defaults(struct argp_state *state, struct perf_options *o, int32_t devices)
{
    struct perf_shape *s = &o->shape;
    s->ranks = or_else(s->ranks, s->cuda ? devices : 2);
    s->hidden = or_else(s->hidden, s->cuda ? 7168 : 2048);
    s->experts = or_else(s->experts, s->cuda ? 256 : 64);
    s->layout = s->layout < 0 ? (s->cuda ? MUSTER_EP_EXPERT_MAJOR : MUSTER_EP_RANK_MAJOR) : s->layout;
    set_default_tokens(s);
    o->scaled = s->cuda && !o->iterations;
    o->iterations = or_else(o->iterations, s->cuda ? 30 : 500);
    o->warmup = o->warmup < 0 ? (s->cuda ? 5 : 50) : o->warmup;
    if (s->cuda && s->ranks > devices)
        argp_error(state, "--ranks is %d; with cuda it must be at most the number of GPUs here, %d", s->ranks, devices);
}

/* Of this process, and what the first of them has; none without the CUDA backend, and then the reason is given. */
static int32_t count_devices(struct argp_state *state, const struct perf_shape *s, uint64_t *memory_bytes)
{
    const struct runtime *runtime;
    struct runtime_device device;
    if (!s->cuda)
        return 0;
    if (runtime_load(&runtime) != MUSTER_OK)
        argp_failure(state, EXIT_FAILURE, 0, "%s", muster_last_error());
    int32_t devices = runtime->count();
    if (devices == 0)
        argp_failure(state, EXIT_FAILURE, 0, "--backend cuda: there is no GPU");
    if (runtime->describe(&device) != MUSTER_OK)
        argp_failure(state, EXIT_FAILURE, 0, "%s", muster_last_error());
    *memory_bytes = device.memory_bytes;
    return devices;
}

/* What the ranks of the library on one device need for a count: the exchange stays for the whole run, arrays do not. */
static void needed_bytes(const struct perf_options *o, int32_t count, uint64_t *stays, uint64_t *passes)
{
    uint64_t crews = o->both ? 2 : 1, exchange_bytes = 0;
    muster_ep_config config = perf_library_config(&o->shape, count);
    muster_ep_memory_bytes(&config, o->shape.ranks, &exchange_bytes);
    *stays = crews * exchange_bytes;
    *passes = crews * perf_library_array_bytes(&o->shape, count);
}

static void note_left_out(struct perf_options *o, int32_t tokens, uint64_t bytes, uint64_t memory_bytes)
{
    size_t used = strlen(o->left_out);
    snprintf(o->left_out + used, sizeof o->left_out - used, "%s%d tokens need %.1f GB of a GPU's %.1f",
             used ? "; " : "", tokens, (double)bytes / 1e9, (double)memory_bytes / 1e9);
}

/* The counts that do not fit beside those before them. */
static void leave_out_too_large(struct argp_state *state, struct perf_options *o, uint64_t memory_bytes)
{
    uint64_t taken = (uint64_t)(o->both ? 2 : 1) * RESERVED_BYTES, stays, passes;
    int32_t kept = 0;
    for (int32_t i = 0; i < o->shape.token_counts; i++) {
        needed_bytes(o, i, &stays, &passes);
        if (taken + stays + passes > memory_bytes) {
            note_left_out(o, o->shape.tokens[i], taken + stays + passes, memory_bytes);
            continue;
        }
        taken += stays;
        o->shape.tokens[kept++] = o->shape.tokens[i];
    }
    o->shape.token_counts = kept;
    if (kept == 0)
        argp_failure(state, EXIT_FAILURE, 0, "%s", o->left_out);
}

static void check_backend(struct argp_state *state, const struct perf_options *o)
{
    const struct perf_shape *s = &o->shape;
    if (s->cuda && s->copy)
        argp_error(state, "--experts-do copy is for --backend cpu");
    if (!s->cuda && (s->flush || s->no_fault_tolerance))
        argp_error(state, "--flush and --no-fault-tolerance are for --backend cuda");
    if (!s->cuda && o->both)
        argp_error(state, "--compare-fault-tolerance is for --backend cuda");
    if (s->no_fault_tolerance && o->both)
        argp_error(state, "--no-fault-tolerance and --compare-fault-tolerance cannot be had together");
}

static void complete(struct argp_state *state, struct perf_options *o)
{
    struct perf_shape *s = &o->shape;
    cpu_set_t cores;
    s->cores = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
    check_backend(state, o);
    uint64_t memory_bytes = 0;
    set_defaults(state, o, count_devices(state, s, &memory_bytes));
    s->slots = (s->experts + s->ranks - 1) / s->ranks;
    if (s->topk > s->experts)
        argp_error(state, "--topk is %d; with %d experts it must be 1 to %d", s->topk, s->experts, s->experts);
    if (s->copy && s->quantise)
        argp_error(state,
                   "--experts-do copy cannot be had with --quantise: the rows that come are not of the type that "
                   "goes back");
    if ((int64_t)o->iterations * o->blocks > MOST_ITERATIONS)
        argp_error(state, "--iterations times --blocks is %lld; it must be at most %d",
                   (long long)o->iterations * o->blocks, MOST_ITERATIONS);
    check_configs(state, s);
    if (s->cuda)
        leave_out_too_large(state, o, memory_bytes);
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct perf_options *o = state->input;
    switch (key) {
    case 'i': o->iterations = tool_number32(state, "iterations", value, 1, MOST_ITERATIONS); return 0;
    case 'w': o->warmup = tool_number32(state, "warmup", value, 0, MOST_ITERATIONS); return 0;
    case 'b': o->blocks = tool_number32(state, "blocks", value, 1, PERF_MAX_BLOCKS); return 0;
    case 'j': o->json = true; return 0;
    case KEY_NO_BASELINE: o->baseline = false; return 0;
    case KEY_COMPARE_FAULT_TOLERANCE: o->both = true; return 0;
    case ARGP_KEY_END: complete(state, o); return 0;
    default: return parse_shape(key, value, state, &o->shape);
    }
}

/* Not given: as many fewer as there are more tokens than a few. */
static int32_t scaled(const struct perf_options *o, int32_t iterations, int32_t count, int32_t least)
{
    int32_t tokens = o->shape.tokens[count];
    if (!o->scaled || tokens <= FEW_TOKENS || iterations <= least)
        return iterations;
    int32_t fewer = (int32_t)((int64_t)iterations * FEW_TOKENS / tokens);
    return fewer > least ? fewer : least;
}

int32_t perf_iterations(const struct perf_options *options, int32_t count)
{
    return scaled(options, options->iterations, count, LEAST_ITERATIONS);
}

int32_t perf_warmup(const struct perf_options *options, int32_t count)
{
    return scaled(options, options->warmup, count, 1);
}

void perf_parse(int argc, char **argv, struct perf_options *options)
{
    static const struct argp parser = {.options = option_table, .parser = parse_option, .doc = text};
    *options = (struct perf_options){
        .shape = {.topk = 8, .layout = -1, .combine = MUSTER_EP_REDUCED, .seed = 1, .check = true},
        .blocks = 7,
        .warmup = -1,
        .baseline = true,
    };
    argp_parse(&parser, argc, argv, 0, NULL, options);
}
