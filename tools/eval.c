// SPDX-License-Identifier: Apache-2.0
/*
 * `muster eval`: how well a byte-level model predicts a text, in bits per byte. The ranks are threads of this process,
 * each with windows of its own; the figure is the same, to the last bit, for any number of them.
 */
#include <argp.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control/store_server.h"
#include "core/clock.h"
#include "engine.h"
#include "tool.h"

enum { BYTE_VALUES = 256, MAX_RANKS = 16, MAX_TEXT_BYTES = 1 << 28, PATH_BYTES = 4096 };

#define LEASE_US UINT64_C(30000000)
#define OPERATION_TIMEOUT_US UINT64_C(60000000) /* ranks that share cores wait for each other's computing */

struct options {
    char model[PATH_BYTES];
    char text[PATH_BYTES];
    int32_t ranks;
    int32_t window;
};

struct eval {
    const struct options *options;
    struct store_server *store;
    int32_t *token;
    size_t bytes;
    size_t windows;
    double *bits; /* [windows] */
};

struct rank {
    struct eval *eval;
    int32_t rank;
    pthread_t thread;
    muster_group *group;
    struct engine *engine;
    struct engine_sequence *sequence;
    float *logits; /* [window][vocabulary] */
    char error[512];
};

/* ---- Options ---- */

static const struct argp_option option_table[] = {
    {"model", 'm', "DIR", 0,
     "The model: config.json and its safetensors, one file or several (default: the one that comes with Muster)", 0},
    {"text", 't', "FILE", 0, "The text (default: heldout.txt beside the model)", 0},
    {"ranks", 'n', "N", 0, "Spread the experts over N ranks, threads of this process (1 to 16; default 1)", 0},
    {"window", 'w', "BYTES", 0, "Predict each byte from at most this many before it (default 512)", 0},
    {0},
};

static void set_path(struct argp_state *state, const char *option, const char *text, char path[PATH_BYTES])
{
    if (snprintf(path, PATH_BYTES, "%s", text) >= PATH_BYTES)
        argp_error(state, "--%s: longer than %d bytes", option, PATH_BYTES - 1);
}

static void set_defaults(struct argp_state *state, struct options *o)
{
    bool in_tree = access(MUSTER_SOURCE_DIR "/models/kjv-moe/config.json", R_OK) == 0;
    if (!*o->model)
        set_path(state, "model", in_tree ? MUSTER_SOURCE_DIR "/models/kjv-moe" : MUSTER_MODEL_DIR "/kjv-moe", o->model);
    if (!*o->text && snprintf(o->text, PATH_BYTES, "%s/heldout.txt", o->model) >= PATH_BYTES)
        argp_error(state, "--model: longer than %d bytes", PATH_BYTES - 13);
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case 'm': set_path(state, "model", text, o->model); return 0;
    case 't': set_path(state, "text", text, o->text); return 0;
    case 'n': o->ranks = (int32_t)tool_number(state, "ranks", text, 1, MAX_RANKS); return 0;
    case 'w': o->window = (int32_t)tool_number(state, "window", text, 1, 65536); return 0;
    case ARGP_KEY_END: set_defaults(state, o); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = option_table,
    .parser = parse_option,
    .args_doc = "",
    .doc =
        "Measures how well a byte-level model predicts a text, in bits per byte.\v"
        "Windows begin at byte 0, W, 2W, ... of the text; each feeds its W bytes and predicts the byte after each of "
        "them. So every byte but the first is predicted once. The figure does not depend on the number of ranks.",
};

/* ---- The text ---- */

static bool read_text(struct eval *e)
{
    FILE *in = fopen(e->options->text, "rb");
    unsigned char *text = in ? malloc(MAX_TEXT_BYTES + 1) : NULL;
    e->bytes = text ? fread(text, 1, MAX_TEXT_BYTES + 1, in) : 0;
    bool read = text && !ferror(in) && e->bytes >= 2 && e->bytes <= MAX_TEXT_BYTES;
    if (!read)
        fprintf(stderr, "muster eval: %s: %s\n", e->options->text,
                !in || !text || ferror(in) ? strerror(errno) : "must have 2 bytes to 256 MiB");
    e->token = read ? malloc(e->bytes * sizeof(*e->token)) : NULL;
    for (size_t i = 0; i < e->bytes && e->token; i++)
        e->token[i] = text[i];
    free(text);
    if (in)
        fclose(in);
    return e->token != NULL;
}

/* ---- One rank ---- */

static muster_status join(struct rank *r, struct engine_config *config)
{
    char store[32];
    muster_group_config group = MUSTER_GROUP_CONFIG_INIT;
    snprintf(store, sizeof(store), "fd:%d", store_server_connect(r->eval->store));
    group.rank = r->rank;
    group.ranks = r->eval->options->ranks;
    group.store = store;
    group.operation_timeout_us = OPERATION_TIMEOUT_US;
    muster_status status = engine_group_config(config, group.ranks, &group);
    group.min_ranks = 1; /* at the end they leave one by one */
    if (status == MUSTER_OK)
        status = muster_group_create(&group, &r->group);
    config->group = r->group;
    return status == MUSTER_OK ? engine_open(config, &r->engine) : status;
}

static bool open_rank(struct rank *r, int32_t slots_per_rank)
{
    const struct options *o = r->eval->options;
    struct engine_config config = {.model_dir = o->model, .slots_per_rank = slots_per_rank, .max_tokens = o->window};
    muster_status status = join(r, &config);
    if (status == MUSTER_OK)
        status = engine_wait_ready(r->engine, OPERATION_TIMEOUT_US);
    if (status == MUSTER_OK)
        status = engine_sequence_new(r->engine, o->window, &r->sequence);
    if (status != MUSTER_OK) {
        snprintf(r->error, sizeof(r->error), "%s", muster_last_error());
        return false;
    }
    if (engine_vocabulary(r->engine) < BYTE_VALUES) {
        snprintf(r->error, sizeof(r->error), "vocab_size = %d: a byte-level model has a token for each of 256 bytes",
                 engine_vocabulary(r->engine));
        return false;
    }
    r->logits = malloc((size_t)o->window * (size_t)engine_vocabulary(r->engine) * sizeof(*r->logits));
    if (!r->logits)
        snprintf(r->error, sizeof(r->error), "no memory for %d rows of logits", o->window);
    return r->logits != NULL;
}

static double window_bits(const struct rank *r, const int32_t *next, int32_t count)
{
    int32_t vocabulary = engine_vocabulary(r->engine);
    double bits = 0;
    for (int32_t i = 0; i < count; i++)
        bits += engine_surprise_bits(r->logits + (size_t)i * (size_t)vocabulary, vocabulary, next[i]);
    return bits;
}

/* One step; past the last window this rank takes part without tokens. */
static muster_status run_window(struct rank *r, size_t window)
{
    struct eval *e = r->eval;
    size_t width = (size_t)e->options->window, first = window * width;
    if (window >= e->windows)
        return engine_step(r->engine, NULL, 0, NULL);
    size_t left = e->bytes - 1 - first;
    int32_t count = (int32_t)(left < width ? left : width);
    struct engine_item item = {.sequence = r->sequence,
                               .tokens = e->token + first,
                               .count = count,
                               .want = ENGINE_LOGITS_ALL,
                               .logits = r->logits};
    engine_sequence_cut(r->sequence, 0);
    muster_status status = engine_step(r->engine, &item, 1, NULL);
    if (status == MUSTER_OK)
        e->bits[window] = window_bits(r, e->token + first + 1, count);
    return status;
}

static void close_rank(struct rank *r)
{
    engine_sequence_free(r->sequence);
    engine_close(r->engine);
    muster_group_destroy(r->group);
    free(r->logits);
    r->sequence = NULL;
    r->engine = NULL;
    r->group = NULL;
    r->logits = NULL;
}

/* All ranks run the same number of steps. Ranks of one process do not die, so a void step ends the measurement. */
static void *rank_main(void *argument)
{
    struct rank *r = argument;
    size_t ranks = (size_t)r->eval->options->ranks;
    int32_t experts = 0;
    muster_status status = engine_experts(r->eval->options->model, &experts);
    if (status != MUSTER_OK)
        snprintf(r->error, sizeof(r->error), "%s", muster_last_error());
    bool open = status == MUSTER_OK && open_rank(r, (experts + (int32_t)ranks - 1) / (int32_t)ranks);
    for (size_t window = (size_t)r->rank; open && window < r->eval->windows + (size_t)r->rank; window += ranks)
        if (run_window(r, window) != MUSTER_OK) {
            snprintf(r->error, sizeof(r->error), "%s", muster_last_error());
            break;
        }
    if (*r->error)
        close_rank(r); /* the others learn of it by this leave; otherwise nobody leaves before all have ended */
    return NULL;
}

/* ---- All of them ---- */

static bool run_ranks(struct eval *e)
{
    struct rank *ranks = calloc((size_t)e->options->ranks, sizeof(*ranks));
    bool good = ranks != NULL;
    int32_t started = 0;
    for (; good && started < e->options->ranks; started++) {
        ranks[started] = (struct rank){.eval = e, .rank = started};
        good = pthread_create(&ranks[started].thread, NULL, rank_main, &ranks[started]) == 0;
        if (!good)
            break;
    }
    for (int32_t i = 0; i < started; i++)
        pthread_join(ranks[i].thread, NULL);
    for (int32_t i = 0; i < started; i++) {
        if (*ranks[i].error)
            fprintf(stderr, "muster eval: rank %d: %s\n", i, ranks[i].error);
        good = good && !*ranks[i].error;
        close_rank(&ranks[i]);
    }
    free(ranks);
    return good;
}

static bool run_with_store(struct eval *e)
{
    struct store_server_config config = {.ranks = e->options->ranks, .lease_us = LEASE_US, .inject_fences = 1};
    bool serves = store_server_create(&config, &e->store) == MUSTER_OK;
    bool good = serves && store_server_start_thread(e->store) == MUSTER_OK;
    if (!good)
        fprintf(stderr, "muster eval: %s\n", muster_last_error());
    good = good && run_ranks(e);
    if (serves)
        store_server_destroy(e->store);
    return good;
}

static void print_result(const struct eval *e, double seconds)
{
    double bits = 0;
    for (size_t i = 0; i < e->windows; i++)
        bits += e->bits[i];
    printf("%s: %.6f bits per byte (%zu bytes predicted, window %d, ranks %d, %.1f s, %.0f bytes/s)\n",
           e->options->text, bits / (double)(e->bytes - 1), e->bytes - 1, e->options->window, e->options->ranks,
           seconds, (double)(e->bytes - 1) / seconds);
}

int tool_eval(int argc, char **argv)
{
    static struct options options = {.ranks = 1, .window = 512};
    if (argp_parse(&parser, argc, argv, 0, NULL, &options) != 0)
        return TOOL_USAGE;
    struct eval e = {.options = &options};
    bool good = read_text(&e);
    e.windows = good ? (e.bytes - 2) / (size_t)options.window + 1 : 0;
    e.bits = good ? calloc(e.windows, sizeof(*e.bits)) : NULL;
    uint64_t started_ns = clock_ns();
    good = e.bits && run_with_store(&e);
    if (good)
        print_result(&e, (double)(clock_ns() - started_ns) * 1e-9);
    free(e.bits);
    free(e.token);
    return good ? 0 : 1;
}
