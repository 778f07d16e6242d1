// SPDX-License-Identifier: Apache-2.0
#include "worker.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "channel.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/fault.h"
#include "engine.h"

enum {
    WORKER_MAX_JOBS = 256,
    WORKER_MAX_ARMS = 8,
    WORKER_READY_US = 20000,
    WORKER_FINISH_MS = 1000,
    WORKER_SEND_MS = 5000
};

/* A request that this rank works on. */
struct job {
    int32_t request;
    int32_t prompt, length, limit; /* tokens; length grows to prompt + limit */
    struct engine_sequence *sequence; /* as far as it has been fed */
    int32_t token[CHANNEL_MAX_TEXT];
    float *logits;
};

/* A fault to come: in the layer-th dispatch of the step. */
struct arm {
    uint64_t step;
    int32_t layer, signal;
};

struct worker {
    const struct worker_config *config;
    muster_group *group;
    struct engine *engine;
    struct job *job[WORKER_MAX_JOBS];
    int32_t jobs;
    struct arm arm[WORKER_MAX_ARMS];
    int32_t arms;
    uint64_t attempts; /* steps begun */
    uint32_t reported_epoch, resumed_epoch;
    bool finish;
};

static int worker_fired_channel = -1; /* a fault is about the process, so its observer is too */

static void worker_fired(enum fault_point point)
{
    struct channel_message m = {.type = CHANNEL_FIRED, .value = (int32_t)point, .ns = clock_ns()};
    channel_send(worker_fired_channel, &m);
}

static void worker_on_view(void *context, const muster_view *view)
{
    const struct worker *w = context;
    struct channel_message m = {
        .type = CHANNEL_VIEW, .epoch = view->epoch, .value = view->active, .mask = view->mask, .ns = clock_ns()};
    channel_send(w->config->channel, &m);
}

/* ---- Requests ---- */

static void worker_drop(struct worker *w, int32_t index)
{
    struct job *job = w->job[index];
    engine_sequence_free(job->sequence);
    free(job->logits);
    free(job);
    w->job[index] = w->job[--w->jobs];
}

static muster_status worker_accept(struct worker *w, const struct channel_message *m)
{
    int32_t given = (int32_t)m->text_bytes;
    if (w->jobs == WORKER_MAX_JOBS)
        return error_set(MUSTER_ERR_CAPACITY, "request %d: this rank works on %d already", m->request, w->jobs);
    if (m->position < 1 || m->value < 1 || m->value > CHANNEL_MAX_TEXT - m->position || given < m->position ||
        given >= m->position + m->value)
        return error_set(MUSTER_ERR_ARGUMENT, "request %d: %d bytes of prompt, %d to generate, %d given", m->request,
                         m->position, m->value, given);
    struct job *job = calloc(1, sizeof *job);
    float *logits = calloc((size_t)engine_vocabulary(w->engine), sizeof *logits);
    if (!job || !logits) {
        free(job);
        free(logits);
        return error_set(MUSTER_ERR_MEMORY, "request %d: no memory", m->request);
    }
    *job = (struct job){.request = m->request, .prompt = m->position, .limit = m->value, .logits = logits};
    for (; job->length < given; job->length++)
        job->token[job->length] = m->text[job->length];
    w->job[w->jobs++] = job;
    muster_status status = engine_sequence_new(w->engine, job->prompt + job->limit, &job->sequence);
    if (status != MUSTER_OK)
        worker_drop(w, w->jobs - 1);
    return status;
}

static muster_status worker_take(struct worker *w, const struct channel_message *m)
{
    switch (m->type) {
    case CHANNEL_REQUEST: return worker_accept(w, m);
    case CHANNEL_FINISH: w->finish = true; return MUSTER_OK;
    case CHANNEL_ARM:
        if (w->arms < WORKER_MAX_ARMS)
            w->arm[w->arms++] = (struct arm){.step = m->step, .layer = m->value, .signal = m->request};
        return MUSTER_OK;
    default: return MUSTER_OK;
    }
}

/* A router that has gone away has finished, too. */
static muster_status worker_read(struct worker *w)
{
    struct channel_message m;
    enum channel_result result;
    muster_status status = MUSTER_OK;
    while (status == MUSTER_OK && (result = channel_receive(w->config->channel, &m)) != CHANNEL_EMPTY) {
        if (result == CHANNEL_CLOSED) {
            w->finish = true;
            break;
        }
        status = worker_take(w, &m);
    }
    return status;
}

/* ---- Steps ---- */

/* Decodes first, since someone reads along; then prefill, as much as fits. */
static int32_t worker_batch(const struct worker *w, struct engine_item *item, struct job **of)
{
    int32_t room = w->config->max_tokens, items = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int32_t i = 0; i < w->jobs && room > 0; i++) {
            struct job *job = w->job[i];
            int32_t fed = engine_sequence_length(job->sequence), rest = job->length - fed;
            if ((rest == 1) != (pass == 0))
                continue;
            int32_t count = rest < room ? rest : room;
            item[items] = (struct engine_item){
                .sequence = job->sequence,
                .tokens = job->token + fed,
                .count = count,
                .want = count == rest ? ENGINE_LOGITS_LAST : ENGINE_LOGITS_NONE,
                .logits = job->logits,
            };
            of[items++] = job;
            room -= count;
        }
    return items;
}

/* A router that has gone away, or takes nothing for long, has no more use for this rank. */
static void worker_send(struct worker *w, struct channel_message *m)
{
    struct pollfd channel = {.fd = w->config->channel, .events = POLLOUT};
    while (!w->finish && !channel_send(w->config->channel, m))
        if (poll(&channel, 1, WORKER_SEND_MS) <= 0 || (channel.revents & (POLLERR | POLLHUP)))
            w->finish = true;
}

static void worker_sample(struct worker *w, const struct engine_item *item, struct job **of, int32_t items)
{
    for (int32_t i = 0; i < items; i++) {
        struct job *job = of[i];
        if (item[i].want != ENGINE_LOGITS_LAST)
            continue;
        int32_t token = engine_greedy(job->logits, engine_vocabulary(w->engine));
        struct channel_message m = {.type = CHANNEL_TOKEN,
                                    .request = job->request,
                                    .position = job->length,
                                    .value = token};
        job->token[job->length++] = token;
        worker_send(w, &m);
    }
    for (int32_t i = w->jobs - 1; i >= 0; i--)
        if (w->job[i]->length == w->job[i]->prompt + w->job[i]->limit)
            worker_drop(w, i);
}

static void worker_report(struct worker *w)
{
    struct engine_statistics s;
    engine_statistics(w->engine, &s);
    if (s.epoch != w->reported_epoch) {
        struct channel_message loaded = {.type = CHANNEL_LOADED,
                                         .epoch = s.epoch,
                                         .value = s.last_loaded,
                                         .experts_loaded = s.experts_loaded,
                                         .ns = s.load_begin_ns,
                                         .end_ns = s.load_end_ns};
        channel_send(w->config->channel, &loaded);
    }
    w->reported_epoch = s.epoch;
    struct channel_message m = {.type = CHANNEL_STATISTICS,
                                .routes = s.routes,
                                .remote_routes = s.remote_routes,
                                .experts_loaded = s.experts_loaded,
                                .steps = s.steps};
    channel_send(w->config->channel, &m);
}

static void worker_arm(const struct worker *w)
{
    for (int32_t i = 0; i < w->arms; i++)
        if (w->arm[i].step == w->attempts)
            fault_arm(FAULT_DISPATCH_ROW, w->arm[i].signal, (unsigned)w->arm[i].layer + 1);
}

static void worker_resumed(struct worker *w, uint32_t epoch)
{
    if (epoch == w->resumed_epoch)
        return;
    w->resumed_epoch = epoch;
    struct channel_message m = {.type = CHANNEL_RESUMED, .epoch = epoch, .ns = clock_ns()};
    channel_send(w->config->channel, &m);
}

/* A void step changes nothing: its tokens are fed again in the next epoch. */
static muster_status worker_step(struct worker *w)
{
    struct engine_item item[WORKER_MAX_JOBS];
    struct job *of[WORKER_MAX_JOBS];
    muster_verdict verdict;
    int32_t items = worker_batch(w, item, of);
    w->attempts++;
    worker_arm(w);
    muster_status status = engine_step(w->engine, item, items, &verdict);
    if (status == MUSTER_OK) {
        worker_sample(w, item, of, items);
        worker_resumed(w, verdict.epoch);
        worker_report(w);
    }
    bool is_void = status == MUSTER_ERR_VOID || status == MUSTER_ERR_TIMEOUT || status == MUSTER_ERR_PEER;
    return is_void ? MUSTER_OK : status;
}

static muster_status worker_serve(struct worker *w)
{
    for (;;) {
        muster_status status = worker_read(w);
        if (status != MUSTER_OK || w->finish)
            return status;
        status = engine_wait_ready(w->engine, WORKER_READY_US);
        if (status == MUSTER_ERR_AGAIN)
            continue;
        if (status == MUSTER_OK)
            status = worker_step(w);
        if (status != MUSTER_OK)
            return status;
    }
}

/*
 * When the others have left, too few may be here for the experts; that is no fault if the router is finished. A rank
 * that could not open its engine takes no requests, and has to say why.
 */
static bool worker_finished(struct worker *w)
{
    if (!w->engine)
        return false;
    struct pollfd channel = {.fd = w->config->channel, .events = POLLIN};
    if (!w->finish && poll(&channel, 1, WORKER_FINISH_MS) > 0)
        worker_read(w);
    return w->finish;
}

static muster_status worker_open(struct worker *w)
{
    struct engine_config engine = {.model_dir = w->config->model_dir,
                                   .slots_per_rank = w->config->slots_per_rank,
                                   .max_tokens = w->config->max_tokens};
    muster_group_config group = MUSTER_GROUP_CONFIG_INIT;
    const char *ranks = getenv("MUSTER_RANKS");
    group.on_view = worker_on_view;
    group.context = w;
    muster_status status = engine_group_config(&engine, ranks ? atoi(ranks) : 0, &group);
    group.min_ranks = 1; /* the engine says when the experts do not fit; at the end the ranks leave one by one */
    if (status == MUSTER_OK)
        status = muster_group_create(&group, &w->group);
    engine.group = w->group;
    return status == MUSTER_OK ? engine_open(&engine, &w->engine) : status;
}

int worker_run(const struct worker_config *config)
{
    struct worker w = {.config = config};
    worker_fired_channel = config->channel;
    fault_observe(worker_fired);
    muster_status status = worker_open(&w);
    if (status == MUSTER_OK)
        status = worker_serve(&w);
    bool failed = status != MUSTER_OK && !worker_finished(&w);
    if (failed)
        fprintf(stderr, "%s: %s\n", muster_status_name(status), muster_last_error());
    while (w.jobs > 0)
        worker_drop(&w, w.jobs - 1);
    engine_close(w.engine);
    muster_group_destroy(w.group);
    return failed;
}
