// SPDX-License-Identifier: Apache-2.0
#include "lib/cluster.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "control/store_server.h"
#include "core/clock.h"
#include "lib/backend.h"
#include "lib/pace.h"

enum {
    DEFAULT_OPERATION_US = 20000000,
    DEFAULT_STEP_US = 40000000,
    DEFAULT_START_US = 60000000,
    DEFAULT_LIMIT_S = 120
};

/* The thread sanitizer makes everything about ten times slower. */
#ifdef __SANITIZE_THREAD__
enum { LIMIT_FACTOR = 6 };
#else
enum { LIMIT_FACTOR = 1 };
#endif

enum { SHORT_PATIENCE_MS = 10000 }; /* of a run that may be made again */

struct cluster_thread {
    struct cluster_rank rank;
    cluster_function *function;
    pthread_t thread;
    jmp_buf leave;
    int line; /* our own duplicate of the connection, to cut it; -1: none */
    char store[32];
    _Atomic(const char *) place;
};

struct cluster {
    struct cluster_options options;
    struct store_server *server;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int taking_part; /* ranks whose function runs */
    int waiting; /* of them, in the barrier */
    int ended; /* threads that have ended altogether */
    uint64_t round; /* of the barrier */
    bool failed, late; /* late: in a way that being late explains */
    char why[1024];
    int stretch; /* of all deadlines */
    struct pace pace;
    int kept_ms; /* by the machine, when it failed */
    struct cluster_thread thread[MUSTER_MAX_RANKS];
};

static _Thread_local struct cluster_thread *current;

/*
 * MUSTER_TEST_PATIENCE makes the deadlines that no test has set itself so many times as long: more for tools that slow a test
 * down, less (0.25) where it is meant to fail.
 */
static uint64_t or_default(uint64_t value, uint64_t initial)
{
    const char *text = getenv("MUSTER_TEST_PATIENCE");
    double patience = text ? strtod(text, NULL) : 1;
    if (value || patience <= 0)
        return value ? value : initial;
    return (uint64_t)((double)initial * patience);
}

void cluster_at(const char *place)
{
    if (current)
        atomic_store(&current->place, place);
}

/* The first failure counts, and any that lateness does not explain. */
static void cluster_fail(struct cluster *c, const char *text, bool late)
{
    pthread_mutex_lock(&c->lock);
    if (!c->failed) {
        c->kept_ms = pace_kept_ms(&c->pace);
        c->late = true;
    }
    if (!c->failed || (c->late && !late))
        snprintf(c->why, sizeof(c->why), "%s", text);
    c->failed = true;
    c->late = c->late && late;
    pthread_mutex_unlock(&c->lock);
}

__attribute__((noreturn)) static void rank_fail(bool late, const char *format, va_list arguments)
{
    char text[900], line[1024];
    vsnprintf(text, sizeof(text), format, arguments);
    if (!current) {
        fprintf(stderr, "%s\n", text);
        abort();
    }
    snprintf(line, sizeof(line), "rank %d, at %s: %s", current->rank.rank, atomic_load(&current->place), text);
    cluster_fail(current->rank.cluster, line, late);
    longjmp(current->leave, 1);
}

void expect(bool holds, const char *format, ...)
{
    if (holds)
        return;
    va_list arguments;
    va_start(arguments, format);
    rank_fail(false, format, arguments);
}

void expect_in_time(bool holds, const char *format, ...)
{
    if (holds)
        return;
    va_list arguments;
    va_start(arguments, format);
    rank_fail(true, format, arguments);
}

/* What a rank is told that came too late, or whose peer did. */
static bool means_late(muster_status status)
{
    return status == MUSTER_ERR_TIMEOUT || status == MUSTER_ERR_PEER || status == MUSTER_ERR_VOID ||
           status == MUSTER_ERR_AGAIN || status == MUSTER_ERR_EVICTED || status == MUSTER_ERR_UNFENCED ||
           status == MUSTER_ERR_STORE || status == MUSTER_ERR_CAPACITY;
}

expect_function *expectation(muster_status got)
{
    return means_late(got) ? expect_in_time : expect;
}

void expect_status(muster_status got, muster_status want, const char *what)
{
    expectation(got)(got == want, "%s gave %s instead of %s; last error: %s", what, muster_status_name(got),
                     muster_status_name(want), muster_last_error());
}

void cluster_sleep_ms(int ms)
{
    pace_sleep_ms(ms);
}

void cluster_pause_ms(const struct cluster_rank *self, int ms)
{
    pace_sleep_ms(ms * self->cluster->stretch);
}

muster_group_config cluster_config(struct cluster_rank *self)
{
    const struct cluster_options *o = &self->cluster->options;
    uint64_t stretch = (uint64_t)self->cluster->stretch;
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    config.rank = self->rank;
    config.ranks = o->ranks;
    config.min_ranks = o->min_ranks ? o->min_ranks : 1;
    config.memory_bytes = o->memory_bytes;
    config.operation_timeout_us = stretch * or_default(o->operation_timeout_us, DEFAULT_OPERATION_US);
    config.step_timeout_us = stretch * or_default(o->step_timeout_us, DEFAULT_STEP_US);
    config.start_timeout_us = or_default(o->start_timeout_us, DEFAULT_START_US);
    config.manual_ready = o->manual_ready;
    config.no_fault_tolerance = o->no_fault_tolerance;
    config.on_wait = o->on_wait;
    config.context = self;
    if (test_backend) {
        config.backend = test_backend->backend;
        config.device = test_backend->device().index;
    }
    return config;
}

int cluster_operation_ms(const struct cluster_rank *self)
{
    const struct cluster *c = self->cluster;
    return c->stretch * (int)(or_default(c->options.operation_timeout_us, DEFAULT_OPERATION_US) / 1000);
}

int cluster_step_ms(const struct cluster_rank *self)
{
    const struct cluster *c = self->cluster;
    return c->stretch * (int)(or_default(c->options.step_timeout_us, DEFAULT_STEP_US) / 1000);
}

/* A run that may be made again need not wait for what will not come any more, because of whom lateness has cost its place. */
int cluster_patience_ms(const struct cluster_rank *self)
{
    int ms = self->cluster->options.short_ms ? SHORT_PATIENCE_MS * self->cluster->stretch : PACE_PATIENCE_MS;
    return ms < PACE_PATIENCE_MS ? ms : PACE_PATIENCE_MS;
}

muster_status cluster_join(struct cluster_rank *self, const muster_group_config *config)
{
    struct cluster_thread *t = &self->cluster->thread[self->rank];
    muster_group_config mine = *config;
    int fd = store_server_connect(self->cluster->server);
    expect(fd >= 0, "store_server_connect: %s", strerror(errno));
    t->line = dup(fd);
    snprintf(t->store, sizeof(t->store), "fd:%d", fd);
    mine.store = t->store;
    muster_status status = muster_group_create(&mine, &self->group);
    muster_view view;
    if (status == MUSTER_OK && muster_group_view(self->group, &view) == MUSTER_OK)
        self->incarnation = view.incarnation[self->rank];
    return status;
}

/* Called with the lock held, whenever somebody arrives at the barrier or stops taking part. */
static void barrier_settle(struct cluster *c)
{
    if (c->waiting < c->taking_part)
        return;
    c->waiting = 0;
    c->round++;
    pthread_cond_broadcast(&c->changed);
}

void cluster_barrier(struct cluster_rank *self)
{
    struct cluster *c = self->cluster;
    pthread_mutex_lock(&c->lock);
    uint64_t round = c->round;
    c->waiting++;
    barrier_settle(c);
    while (c->round == round)
        pthread_cond_wait(&c->changed, &c->lock); /* the time limit is cluster_run()'s */
    pthread_mutex_unlock(&c->lock);
}

static void cluster_drop_out(struct cluster *c)
{
    pthread_mutex_lock(&c->lock);
    c->taking_part--;
    barrier_settle(c);
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static void line_cut(struct cluster_thread *t)
{
    if (t->line < 0)
        return;
    shutdown(t->line, SHUT_RDWR);
    close(t->line);
    t->line = -1;
}

void cluster_cut(struct cluster_rank *self)
{
    line_cut(&self->cluster->thread[self->rank]);
}

void cluster_fence(struct cluster *cluster, int rank, uint32_t incarnation)
{
    store_server_fence(cluster->server, rank, incarnation);
}

void cluster_die(struct cluster_rank *self)
{
    struct cluster_thread *t = &self->cluster->thread[self->rank];
    line_cut(t);
    cluster_fence(self->cluster, self->rank, self->incarnation);
    longjmp(t->leave, 1);
}

void cluster_part(struct cluster_rank *self)
{
    struct cluster_thread *t = &self->cluster->thread[self->rank];
    muster_group_destroy(self->group);
    self->group = NULL;
    if (t->line >= 0)
        close(t->line);
    t->line = -1;
}

muster_verdict cluster_verdict(struct cluster_rank *self)
{
    muster_verdict verdict;
    backend_wait();
    expect_status(muster_step_verdict(self->group, &verdict), MUSTER_OK, "muster_step_verdict");
    return verdict;
}

muster_view cluster_await_view(struct cluster_rank *self, int active, uint32_t after)
{
    muster_view view = {0};
    cluster_at("waiting for a view");
    for (struct pace pace = pace_begin(); pace_wall_ms(&pace) < cluster_patience_ms(self); cluster_sleep_ms(1)) {
        muster_status status = muster_group_wait_ready(self->group, 100000);
        if (status != MUSTER_ERR_AGAIN)
            expect_status(status, MUSTER_OK, "wait_ready");
        expect_status(muster_group_view(self->group, &view), MUSTER_OK, "muster_group_view");
        if (view.ready && view.active == active && view.epoch > after)
            return view;
    }
    expect_in_time(false, "no ready view of %d ranks after epoch %u: epoch %u, %d active, ready %d", active, after,
                   view.epoch, view.active, view.ready);
    return view;
}

void cluster_await_end(struct cluster_rank *self, uint32_t epoch)
{
    muster_view view = {0};
    cluster_at("waiting for the end of an epoch");
    for (struct pace pace = pace_begin(); pace_wall_ms(&pace) < cluster_patience_ms(self); cluster_sleep_ms(1)) {
        expect_status(muster_group_view(self->group, &view), MUSTER_OK, "muster_group_view");
        if (view.epoch > epoch)
            return;
    }
    expect_in_time(false, "epoch %u does not end", epoch);
}

static void rank_run(struct cluster_thread *t)
{
    if (test_backend)
        test_backend->rank_begin(t->rank.rank);
    if (!t->rank.cluster->options.no_groups) {
        muster_group_config config = cluster_config(&t->rank);
        cluster_at("muster_group_create");
        expect_status(cluster_join(&t->rank, &config), MUSTER_OK, "muster_group_create");
    }
    cluster_at("its function");
    t->function(&t->rank);
}

/* Nobody leaves while another still works: leaving ends the epoch. A failure releases everybody. */
static void rank_await_others(struct cluster *c)
{
    pthread_mutex_lock(&c->lock);
    while (c->taking_part > 0 && !c->failed)
        pthread_cond_wait(&c->changed, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

static void *rank_main(void *argument)
{
    struct cluster_thread *t = argument;
    struct cluster *c = t->rank.cluster;
    current = t;
    if (setjmp(t->leave) == 0)
        rank_run(t);
    cluster_drop_out(c);
    cluster_at("waiting for the others to end");
    rank_await_others(c);
    cluster_at("muster_group_destroy");
    muster_group_destroy(t->rank.group);
    if (t->line >= 0)
        close(t->line);
    cluster_at("its end");
    pthread_mutex_lock(&c->lock);
    c->ended++;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* A thread that hangs cannot be ended, so the whole program is. */
static void cluster_hung(struct cluster *c)
{
    fprintf(stderr, "cluster: time limit reached; %s\n", c->failed ? c->why : "nothing had failed before");
    for (int r = 0; r < c->options.ranks; r++)
        fprintf(stderr, "cluster: rank %d is at: %s\n", r, atomic_load(&c->thread[r].place));
    fflush(NULL);
    _exit(1);
}

static void cluster_await(struct cluster *c)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += LIMIT_FACTOR * (time_t)or_default((uint64_t)c->options.limit_s, DEFAULT_LIMIT_S);
    pthread_mutex_lock(&c->lock);
    while (c->ended < c->options.ranks)
        if (pthread_cond_timedwait(&c->changed, &c->lock, &end) == ETIMEDOUT)
            cluster_hung(c);
    pthread_mutex_unlock(&c->lock);
    for (int r = 0; r < c->options.ranks; r++)
        pthread_join(c->thread[r].thread, NULL);
}

static void cluster_start(struct cluster *c, cluster_function *function, void *context)
{
    c->taking_part = c->options.ranks;
    for (int r = 0; r < c->options.ranks; r++) {
        struct cluster_thread *t = &c->thread[r];
        t->rank = (struct cluster_rank){.cluster = c, .rank = r, .context = context};
        t->function = function;
        t->line = -1;
        atomic_store(&t->place, "its start");
    }
    for (int r = 0; r < c->options.ranks; r++)
        if (pthread_create(&c->thread[r].thread, NULL, rank_main, &c->thread[r]) != 0) {
            fprintf(stderr, "cluster: cannot start the thread of rank %d\n", r);
            abort();
        }
}

static struct store_server *cluster_store(const struct cluster_options *options)
{
    struct store_server_config config = {.ranks = options->ranks, .lease_us = 120000000, .inject_fences = 1};
    struct store_server *server = NULL;
    if (store_server_create(&config, &server) != MUSTER_OK || store_server_start_thread(server) != MUSTER_OK) {
        fprintf(stderr, "cluster: no store: %s\n", muster_last_error());
        abort();
    }
    return server;
}

static void cluster_close(struct cluster *c)
{
    store_server_destroy(c->server);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

/* One run. The cluster is closed by the caller, when it has seen how it went. */
static struct cluster *cluster_attempt(const struct cluster_options *options, int stretch, cluster_function *function,
                                       void *context)
{
    struct cluster *c = calloc(1, sizeof(*c));
    if (!c)
        abort();
    c->options = *options;
    c->stretch = stretch;
    c->pace = pace_begin();
    c->server = cluster_store(options);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    cluster_start(c, function, context);
    cluster_await(c);
    if (c->failed)
        fprintf(stderr, "cluster of %d: %s\n", options->ranks, c->why);
    return c;
}

bool cluster_run(const struct cluster_options *options, cluster_function *function, void *context)
{
    setenv("MUSTER_LOG", "error", 0);
    for (int stretch = 1;;) {
        struct cluster *c = cluster_attempt(options, stretch, function, context);
        bool failed = c->failed;
        bool again =
            failed && c->late && options->short_ms > 0 && pace_again(c->kept_ms, stretch * options->short_ms, &stretch);
        cluster_close(c);
        if (!again)
            return !failed;
    }
}
