// SPDX-License-Identifier: Apache-2.0
/* Groups: creation, leaving, and what other threads may ask. Steps are in step.c, the agent's thread in agent.c. */
#include "control/group.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "control/group_state.h"
#include "control/identity.h"
#include "core/clock.h"
#include "core/config.h"
#include "core/descriptors.h"
#include "core/error.h"
#include "core/fault.h"
#include "core/log.h"
#include "core/signals.h"
#include "core/size.h"
#include "core/trace.h"
#include "memory/room.h"

/* ---- Deadlines on the condition ---- */

struct timespec group_deadline(uint64_t timeout_us)
{
    return clock_timespec(clock_ns_after_us(timeout_us));
}

bool group_wait_change(muster_group *g, const struct timespec *deadline)
{
    return pthread_cond_timedwait(&g->changed, &g->lock, deadline) == 0;
}

/* ---- The group's own end ---- */

void group_stop(muster_group *g, muster_status status, const char *text)
{
    g->stopped = true;
    atomic_store(&g->begun, 0);
    pthread_mutex_lock(&g->lock);
    snprintf(g->sticky_text, sizeof g->sticky_text, "%s", text);
    g->left = status == MUSTER_ERR_LEFT;
    atomic_store(&g->sticky, status);
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    atomic_store(&g->control.live_epoch, STAMP_MAX_EPOCH + 1); /* no step has it: running kernels return */
    if (g->device)
        g->device_ops->epoch_raise(g->device, STAMP_MAX_EPOCH + 1);
    if (status != MUSTER_ERR_LEFT)
        log_line(LOG_LEVEL_ERROR, "the group has ended for this rank: %s: %s", muster_status_name(status), text);
}

bool group_is_forked(const muster_group *g)
{
    return g->forks != fork_count();
}

muster_status group_check(muster_group *g)
{
    if (group_is_forked(g))
        return error_set(MUSTER_ERR_FORKED, "this group belongs to process %d; a forked child may not use it",
                         (int)g->pid);
    muster_status sticky = (muster_status)atomic_load(&g->sticky);
    if (sticky == MUSTER_OK)
        return MUSTER_OK;
    pthread_mutex_lock(&g->lock);
    error_set(sticky, "%s", g->sticky_text);
    pthread_mutex_unlock(&g->lock);
    return sticky;
}

void group_epoch_failed(muster_group *g, uint32_t epoch)
{
    uint32_t expected = epoch;
    if (epoch == 0 || !atomic_compare_exchange_strong(&g->begun, &expected, 0))
        return;
    pthread_mutex_lock(&g->lock);
    if (g->view.epoch == epoch)
        g->view.ready = 0;
    pthread_mutex_unlock(&g->lock);
}

/* ---- Creation ---- */

static muster_status group_check_config(const muster_group_config *config)
{
    if (!config)
        return error_set(MUSTER_ERR_ARGUMENT, "config: must not be NULL");
    if (config->size != sizeof *config)
        return error_set(MUSTER_ERR_ARGUMENT, "config.size = %zu: must be %zu; start from MUSTER_GROUP_CONFIG_INIT",
                         config->size, sizeof *config);
    if (config->ranks < -1 || config->ranks == 0 || config->ranks > MUSTER_MAX_RANKS)
        return error_set(MUSTER_ERR_ARGUMENT, "config.ranks = %d: must be 1..%d, or -1", config->ranks,
                         MUSTER_MAX_RANKS);
    if (config->rank < -1 || (config->ranks > 0 && config->rank >= config->ranks))
        return error_set(MUSTER_ERR_ARGUMENT, "config.rank = %d: must be 0..%d, or -1", config->rank,
                         config->ranks - 1);
    if (config->backend != MUSTER_BACKEND_CPU && config->backend != MUSTER_BACKEND_CUDA)
        return error_set(MUSTER_ERR_ARGUMENT,
                         "config.backend = %d: must be MUSTER_BACKEND_CPU (%d) or MUSTER_BACKEND_CUDA (%d)",
                         (int)config->backend, MUSTER_BACKEND_CPU, MUSTER_BACKEND_CUDA);
    if (config->memory_bytes > SIZE_MOST_BYTES)
        return error_set(MUSTER_ERR_ARGUMENT, "config.memory_bytes = %llu: must be at most %llu",
                         (unsigned long long)config->memory_bytes, (unsigned long long)SIZE_MOST_BYTES);
    if (config->no_fault_tolerance && config->backend == MUSTER_BACKEND_CPU)
        return error_set(MUSTER_ERR_ARGUMENT,
                         "config.no_fault_tolerance = %d: must be 0 with MUSTER_BACKEND_CPU, which always checks",
                         config->no_fault_tolerance);
    return MUSTER_OK;
}

static uint64_t group_setting(uint64_t given, enum config_key key)
{
    return given ? given : config_number(key);
}

/* Fills in what the configuration leaves to the environment. */
static muster_status group_resolve(const muster_group_config *given, struct identity *identity,
                                   muster_group_config *config)
{
    muster_status status = identity_find(given, identity);
    if (status != MUSTER_OK)
        return status;
    *config = *given;
    config->rank = identity->rank;
    config->ranks = identity->ranks;
    config->store = NULL; /* borrowed; not needed after the connection */
    config->operation_timeout_us = group_setting(given->operation_timeout_us, CONFIG_OPERATION_TIMEOUT_US);
    config->step_timeout_us = group_setting(given->step_timeout_us, CONFIG_STEP_TIMEOUT_US);
    config->start_timeout_us = group_setting(given->start_timeout_us, CONFIG_START_TIMEOUT_US);
    if (config->min_ranks < 1 || config->min_ranks > config->ranks)
        return error_set(MUSTER_ERR_ARGUMENT, "config.min_ranks = %d: must be 1..%d (ranks)", config->min_ranks,
                         config->ranks);
    return MUSTER_OK;
}

static uint32_t group_spin(int ranks)
{
    cpu_set_t cores;
    if (config_given(CONFIG_SPIN))
        return (uint32_t)config_number(CONFIG_SPIN);
    bool roomy = sched_getaffinity(0, sizeof cores, &cores) == 0 && CPU_COUNT(&cores) >= ranks;
    return roomy ? 20000 : 200;
}

static void group_member_config(const muster_group *g, struct member_config *config)
{
    const muster_group_config *c = &g->config;
    uint64_t operation_ns = clock_ns_of_us(c->operation_timeout_us);
    uint64_t grace_ns = operation_ns / 10;
    uint64_t least_ns = 500000000; /* an agent that waits for a core is not to be taken for a dead one */
    *config = (struct member_config){
        .rank = c->rank,
        .ranks = c->ranks,
        .min_ranks = c->min_ranks,
        .incarnation = g->store->welcome.incarnation,
        .first_epoch = (uint32_t)config_number(CONFIG_FIRST_EPOCH),
        .propose_delay_ns = 2000000,
        .grace_ns = grace_ns < 50000000 ? grace_ns : 50000000,
        .acknowledge_timeout_ns = operation_ns > least_ns ? operation_ns : least_ns,
        .ready_timeout_ns = clock_ns_of_us(c->step_timeout_us),
        .fence_timeout_ns = clock_ns_of_us(config_number(CONFIG_FENCE_TIMEOUT_US)),
        .reply_timeout_ns = operation_ns,
        .start_timeout_ns = clock_ns_of_us(c->start_timeout_us),
    };
}

static void group_init_member(muster_group *g)
{
    struct member_config member;
    group_member_config(g, &member);
    member_init(&g->member, &member);
    g->expected = member_expected(&g->member);
    g->founding = member_is_deserted(&g->member);
    atomic_store(&g->progress_said, MEMBER_NO_PROGRESS);
    atomic_store(&g->progress_counted, MEMBER_NO_PROGRESS);
}

static void group_init_control(muster_group *g)
{
    g->control.spin = group_spin(g->config.ranks);
    atomic_store(&g->control.operation_timeout_ns, clock_ns_of_us(g->config.operation_timeout_us));
    atomic_store(&g->control.step_timeout_ns, clock_ns_of_us(g->config.step_timeout_us));
    g->step.kernel = (struct kernel_step){.control = &g->control,
                                          .rank = g->config.rank,
                                          .ranks = g->config.ranks,
                                          .peers = g->step.peers};
    g->mapping[g->config.rank].base = g->region.base;
}

static void group_init_lock(muster_group *g)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&g->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&g->lock, NULL);
}

/* The first descriptor of a group; who has none left for it gets no further. */
static muster_status group_open_wake(muster_group *g)
{
    g->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (g->wake_fd >= 0)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_SYSTEM, "the group's event descriptor: %s; at most %llu files may be open (ulimit -n)",
                     strerror(errno), (unsigned long long)descriptors_limit());
}

static muster_status group_found(muster_group *g)
{
    char fields[256];
    snprintf(fields, sizeof fields, "ranks=%d\nmin_ranks=%d\nbackend=%d\nmemory_bytes=%llu\nno_fault_tolerance=%d\n",
             g->config.ranks, g->config.min_ranks, (int)g->config.backend, (unsigned long long)g->config.memory_bytes,
             g->config.no_fault_tolerance);
    muster_status status = group_compare(g, fields);
    if (status != MUSTER_OK)
        return status;
    pthread_mutex_lock(&g->lock);
    g->mail.start = true;
    pthread_mutex_unlock(&g->lock);
    agent_wake(g);

    struct timespec deadline = group_deadline(g->config.start_timeout_us);
    bool in_time = true;
    pthread_mutex_lock(&g->lock);
    while (!(g->config.manual_ready ? g->view.epoch != 0 : g->view.ready) && !atomic_load(&g->sticky) && in_time)
        in_time = group_wait_change(g, &deadline);
    pthread_mutex_unlock(&g->lock);
    if (!in_time)
        return error_set(MUSTER_ERR_TIMEOUT, "no view with rank %d was agreed within %llu ms", g->config.rank,
                         (unsigned long long)g->config.start_timeout_us / 1000);
    group_note_objects(g);
    return group_check(g);
}

static void group_end_agent(muster_group *g)
{
    pthread_mutex_lock(&g->lock);
    g->mail.quit = true;
    pthread_mutex_unlock(&g->lock);
    agent_wake(g);
    pthread_join(g->thread, NULL); /* its loop never waits for a peer */
}

static void group_unmap_peers(muster_group *g)
{
    for (int r = 0; r < g->config.ranks; r++) {
        if (r != g->config.rank && g->mapping[r].incarnation)
            group_memory_unmap(g, g->mapping[r].base);
        if (g->prepared[r].incarnation)
            group_memory_unmap(g, g->prepared[r].base);
    }
}

static void group_free(muster_group *g)
{
    group_forget_fields(g);
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->lock);
    if (g->wake_fd >= 0)
        close(g->wake_fd);
    claim_release(&g->claim);
    free(g);
}

static muster_status group_no_memory(void)
{
    char why[ROOM_TEXT_BYTES];
    room_explain_map(errno, sizeof(muster_group), why);
    return error_set(MUSTER_ERR_MEMORY, "no memory for the %zu bytes of a group: %s", sizeof(muster_group), why);
}

muster_status muster_group_create(const muster_group_config *config, muster_group **group)
{
    fault_configure();
    muster_status status = group_check_config(config);
    if (status != MUSTER_OK)
        return status;
    if (!group)
        return error_set(MUSTER_ERR_ARGUMENT, "group: must not be NULL");
    struct identity identity;
    muster_group *g = calloc(1, sizeof *g);
    if (!g)
        return group_no_memory();
    status = group_resolve(config, &identity, &g->config);
    if (status != MUSTER_OK)
        goto free_memory;
    fork_watch();
    g->pid = getpid();
    g->forks = fork_count();
    log_set_rank(g->config.rank);
    config_check();
    status = claim_take(&g->claim, identity.store, g->config.rank);
    if (status != MUSTER_OK)
        goto free_memory;
    group_init_lock(g);
    status = group_open_wake(g);
    if (status != MUSTER_OK)
        goto free_group;
    status =
        store_embedded_open(identity.store, g->config.rank, g->config.ranks, g->config.start_timeout_us, &g->store);
    if (status != MUSTER_OK)
        goto free_group;
    status = group_memory_open(g);
    if (status != MUSTER_OK)
        goto close_store;
    group_init_control(g);
    group_init_member(g);
    g->store->ops->share_memory(g->store, g->region.fd);
    status = agent_start(g);
    if (status != MUSTER_OK)
        goto free_region;
    status = group_found(g);
    if (status != MUSTER_OK)
        goto end_agent;
    *group = g;
    return MUSTER_OK;

end_agent:
    group_end_agent(g);
    group_unmap_peers(g);
free_region:
    group_memory_close(g);
close_store:
    if (!g->departed)
        g->store->ops->leave(g->store); /* an error is no death: without this the store would have to kill us */
    g->store->ops->close(g->store);
free_group:
    group_free(g);
    return status;
free_memory:
    free(g);
    return status;
}

/* ---- Progress ---- */

void group_count_step(muster_group *g, bool good)
{
    if (good)
        atomic_fetch_add(&g->progress_counted, 1);
}

muster_status muster_group_set_progress(muster_group *g, uint64_t progress)
{
    muster_status status = group_check(g);
    if (status != MUSTER_OK)
        return status;
    if (progress == MEMBER_NO_PROGRESS)
        return error_set(MUSTER_ERR_ARGUMENT, "progress = %llu: must be below 2^64 - 1", (unsigned long long)progress);
    atomic_store(&g->progress_said, progress);
    return MUSTER_OK;
}

/* ---- Leaving ---- */

/* Steps of an older epoch have ended for everybody, in one way or another. */
static bool group_peers_have_ended(muster_group *g, uint32_t epoch)
{
    if (g->device)
        return g->device_ops->peers_ended(g->device);
    return g->step.ended.epoch != epoch || step_peers_have_ended(g);
}

/*
 * M33: a peer that is slower in the last step would lose it if this rank's leave ended the epoch now. When the epoch ends for
 * another reason, there is nothing left to wait for.
 */
static void group_await_peers(muster_group *g)
{
    uint32_t epoch = atomic_load(&g->begun);
    uint64_t end_ns = clock_ns_after_us(g->config.operation_timeout_us);
    for (useconds_t nap_us = 20; clock_ns() < end_ns && epoch && atomic_load(&g->begun) == epoch;) {
        if (group_peers_have_ended(g, epoch))
            return;
        usleep(nap_us);
        nap_us += nap_us < 1000 ? nap_us / 4 : 0;
    }
}

muster_status muster_group_leave(muster_group *g)
{
    muster_status status = group_check(g);
    if (status != MUSTER_OK)
        return status == MUSTER_ERR_LEFT ? MUSTER_OK : status;
    if (g->step.open)
        return error_set(MUSTER_ERR_ORDER, "muster_group_leave: a step is open; end it first");
    group_await_peers(g);
    struct timespec deadline = group_deadline(g->config.operation_timeout_us);
    bool in_time = true;
    pthread_mutex_lock(&g->lock);
    g->mail.leave = true;
    agent_wake(g);
    while (!atomic_load(&g->sticky) && in_time)
        in_time = group_wait_change(g, &deadline);
    bool left = g->left;
    pthread_mutex_unlock(&g->lock);
    if (!in_time)
        return error_set(MUSTER_ERR_TIMEOUT, "muster_group_leave: the store did not take the leave within %llu ms",
                         (unsigned long long)g->config.operation_timeout_us / 1000);
    return left ? MUSTER_OK : group_check(g);
}

static void group_write_trace_to(const muster_group *g, const char *pattern)
{
    char path[512];
    const char *mark = strstr(pattern, "%r");
    if (mark)
        snprintf(path, sizeof path, "%.*s%d%s", (int)(mark - pattern), pattern, g->config.rank, mark + 2);
    else
        snprintf(path, sizeof path, "%s", pattern);
    FILE *out = fopen(path, "w");
    if (!out) {
        log_line(LOG_LEVEL_WARN, "MUSTER_TRACE: cannot write %s: %s", path, strerror(errno));
        return;
    }
    fputs("[\n", out);
    trace_write(out, g->config.rank);
    fprintf(out, "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,\"args\":{\"name\":\"rank %d\"}}\n]\n",
            g->config.rank, g->config.rank);
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed)
        log_line(LOG_LEVEL_WARN, "MUSTER_TRACE: %s is not complete: it cannot be written", path);
}

static void group_write_trace(const muster_group *g)
{
    struct signals_held held;
    const char *pattern = config_text(CONFIG_TRACE, NULL);
    if (!*pattern)
        return;
    signals_hold(&held);
    group_write_trace_to(g, pattern);
    signals_let_go(&held);
}

/*
 * Kernels that the group's end has called back may still be on their way out of peers' memory. Bounded: if something else
 * keeps the device busy, closing it waits for that.
 */
static void group_await_quiet(muster_group *g)
{
    const uint32_t never = STAMP_MAX_EPOCH + 1;
    uint64_t end_ns = clock_ns_after_us(g->config.operation_timeout_us);
    if (!g->device)
        return;
    g->device_ops->epoch_raise(g->device, never);
    while (!g->device_ops->epoch_quiet(g->device, never) && clock_ns() < end_ns)
        usleep(50);
}

void muster_group_destroy(muster_group *g)
{
    if (!g || group_is_forked(g))
        return;
    if (g->step.open)
        muster_step_end(g, NULL);
    g->step.open = false;
    muster_group_leave(g);
    group_end_agent(g);
    group_write_trace(g);
    if (!g->departed)
        g->store->ops->leave(g->store); /* a rank whose group has ended leaves too: its exit is no fault */
    g->store->ops->close(g->store);
    group_await_quiet(g);
    group_unmap_peers(g);
    group_memory_close(g);
    group_free(g);
}

/* ---- Queries, from any thread ---- */

int32_t muster_group_rank(const muster_group *g)
{
    return g->config.rank;
}

muster_status muster_group_view(const muster_group *group, muster_view *view)
{
    muster_group *g = (muster_group *)(uintptr_t)group; /* only its lock is touched */
    muster_status status = group_check(g);
    if (status != MUSTER_OK)
        return status;
    if (!view)
        return error_set(MUSTER_ERR_ARGUMENT, "view: must not be NULL");
    pthread_mutex_lock(&g->lock);
    *view = g->view;
    pthread_mutex_unlock(&g->lock);
    return MUSTER_OK;
}

muster_status muster_group_wait_ready(muster_group *g, uint64_t timeout_us)
{
    if (group_is_forked(g))
        return group_check(g);
    struct timespec deadline = group_deadline(timeout_us);
    bool in_time = true;
    pthread_mutex_lock(&g->lock);
    while (!g->view.ready && !atomic_load(&g->sticky) && in_time)
        in_time = timeout_us && group_wait_change(g, &deadline);
    bool ready = g->view.ready;
    pthread_mutex_unlock(&g->lock);
    muster_status status = group_check(g);
    if (status != MUSTER_OK || ready)
        return status;
    return error_set(MUSTER_ERR_AGAIN, "no view was ready for steps within %llu ms",
                     (unsigned long long)timeout_us / 1000);
}

muster_status muster_group_ready(muster_group *g, uint32_t epoch)
{
    muster_status status = group_check(g);
    if (status != MUSTER_OK)
        return status;
    muster_view view;
    status = muster_group_view(g, &view);
    if (status != MUSTER_OK)
        return status;
    if (epoch == 0 || epoch != view.epoch)
        return error_set(MUSTER_ERR_ARGUMENT, "epoch = %u: the installed view has epoch %u", epoch, view.epoch);
    if (atomic_load(&g->unread_void))
        return error_set(MUSTER_ERR_ORDER, "muster_group_ready: read the verdict of the void step first");
    atomic_store(&g->ready_called, epoch);
    agent_wake(g);
    return MUSTER_OK;
}

/* What an abort ends: the epoch of the open step, which may have ended by itself without voiding the step (X12). */
static uint32_t group_epoch_of_work(const muster_group *g)
{
    uint32_t of_step = atomic_load(&g->step_epoch);
    return of_step ? of_step : atomic_load(&g->begun);
}

muster_status muster_group_abort(muster_group *g)
{
    muster_status status = group_check(g);
    if (status != MUSTER_OK)
        return status;
    uint32_t epoch = group_epoch_of_work(g);
    if (epoch == 0)
        return MUSTER_OK; /* no step is open, and the next epoch is being agreed on already */
    atomic_store(&g->aborted_epoch, epoch);
    group_epoch_failed(g, epoch);
    pthread_mutex_lock(&g->lock);
    g->mail.failed_epoch = epoch;
    pthread_mutex_unlock(&g->lock);
    agent_wake(g);
    return MUSTER_OK;
}

/* ---- What operations need ---- */

int32_t group_ranks(const muster_group *g)
{
    return g->config.ranks;
}

uint64_t group_start_timeout_us(const muster_group *g)
{
    return g->config.start_timeout_us;
}

uint64_t group_first_sequence(const muster_group *g)
{
    (void)g;
    return config_number(CONFIG_FIRST_SEQUENCE);
}

unsigned char *group_memory_base(const muster_group *g)
{
    return g->region.base;
}

muster_status group_memory_take(muster_group *g, uint64_t bytes, uint64_t *offset)
{
    uint64_t start = size_round_up(sizeof(struct region_header) + g->region_used, REGION_ALIGNMENT);
    uint64_t end = size_add(start - sizeof(struct region_header), bytes);
    if (end > g->config.memory_bytes)
        return error_set(MUSTER_ERR_MEMORY,
                         "symmetric memory: %llu bytes needed, %llu are left of memory_bytes = %llu; ask "
                         "muster_ep_memory_bytes() before the group is created",
                         (unsigned long long)bytes, (unsigned long long)(g->config.memory_bytes - g->region_used),
                         (unsigned long long)g->config.memory_bytes);
    g->region_used = end;
    *offset = start;
    return MUSTER_OK;
}

void group_add_child(muster_group *g, struct group_child *child)
{
    pthread_mutex_lock(&g->lock);
    child->next = g->children;
    g->children = child;
    pthread_mutex_unlock(&g->lock);
}

void group_remove_child(muster_group *g, struct group_child *child)
{
    pthread_mutex_lock(&g->lock);
    for (struct group_child **link = &g->children; *link; link = &(*link)->next)
        if (*link == child) {
            *link = child->next;
            break;
        }
    watchdog_forget(&g->watchdog, child);
    pthread_mutex_unlock(&g->lock);
}

void group_watch(muster_group *g, const struct group_child *child, muster_phase phase, uint64_t stamp, muster_mask mask)
{
    struct watchdog_operation operation = {
        .child = child, .phase = phase, .stamp = stamp, .mask = mask, .start_ns = clock_ns()};
    watchdog_push(&g->watchdog, &operation);
}
