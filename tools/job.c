// SPDX-License-Identifier: Apache-2.0
#include "job.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/store_server.h"
#include "core/clock.h"
#include "muster/status.h"
#include "process.h"

enum { POLL_MS = 10, SHOW_NS = 100 * 1000 * 1000, LEASE_US = 5000000 };

static const uint64_t LEAVE_NS = UINT64_C(5000000000); /* for the ranks to leave; then they are killed */

volatile sig_atomic_t job_interrupted;

__attribute__((format(printf, 2, 3))) static void job_say(struct job *job, const char *format, ...)
{
    int slot = job->events++ % JOB_MAX_EVENTS;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(job->event[slot].text, JOB_EVENT_BYTES, format, arguments);
    va_end(arguments);
    job->event[slot].ns = clock_ns() - job->started_ns;
}

/* ---- What the store and the ranks say ---- */

static void job_store_event(void *context, int32_t rank, uint32_t incarnation, const char *what)
{
    struct job *job = context;
    (void)incarnation;
    bool trouble = strcmp(what, "died") == 0 || strcmp(what, "is to be fenced") == 0;
    if (trouble && job->rank[rank].first_trouble_ns == 0)
        job->rank[rank].first_trouble_ns = clock_ns();
    if (trouble)
        job_say(job, "rank %d %s", rank, what);
}

static void job_note_add(struct job *job, int32_t rank, const struct channel_message *m)
{
    if (job->notes == JOB_MAX_NOTES)
        return;
    job->note[job->notes++] = (struct job_note){.type = (enum channel_type)m->type,
                                                .rank = rank,
                                                .epoch = m->epoch,
                                                .value = m->value,
                                                .ns = m->ns,
                                                .end_ns = m->end_ns};
}

static void job_fault_fired(struct job *job, int32_t rank, uint64_t ns)
{
    for (int32_t i = 0; i < job->faults; i++) {
        struct job_fault *f = &job->fault[i];
        if (f->rank != rank || f->fired_ns)
            continue;
        f->fired_ns = ns;
        job_say(job, "rank %d gets %s in step %llu, in the middle of layer %d's dispatch", rank,
                f->signal == SIGKILL ? "SIGKILL" : "SIGSTOP", (unsigned long long)f->step, f->layer);
        return;
    }
}

static void job_message(void *context, int32_t rank, const struct channel_message *m)
{
    struct job *job = context;
    struct job_rank *r = &job->rank[rank];
    switch (m->type) {
    case CHANNEL_VIEW:
        if (m->epoch > job_epoch(job))
            job_say(job, "epoch %u: %d ranks", m->epoch, m->value);
        r->epoch = m->epoch;
        job_note_add(job, rank, m);
        break;
    case CHANNEL_LOADED:
        if (m->value)
            job_say(job, "rank %d loaded %d experts in %.1f ms", rank, m->value, (double)(m->end_ns - m->ns) / 1e6);
        job_note_add(job, rank, m);
        break;
    case CHANNEL_RESUMED: job_note_add(job, rank, m); break;
    case CHANNEL_FIRED: job_fault_fired(job, rank, m->ns); break;
    case CHANNEL_STATISTICS:
        r->routes = m->routes, r->remote_routes = m->remote_routes;
        r->experts_loaded = m->experts_loaded, r->steps = m->steps;
        break;
    default: break;
    }
}

/* ---- Starting ---- */

void job_init(struct job *job, const struct job_plan *plan)
{
    memset(job, 0, sizeof *job);
    job->plan = *plan;
    router_init(&job->router, plan->ranks);
    job->router.on_message = job_message;
    job->router.context = job;
}

static void job_arm(struct job *job, int32_t rank, int channel)
{
    for (int32_t i = 0; i < job->faults; i++) {
        const struct job_fault *f = &job->fault[i];
        struct channel_message m = {.type = CHANNEL_ARM, .step = f->step, .value = f->layer, .request = f->signal};
        if (f->rank == rank)
            channel_send(channel, &m);
    }
}

static bool job_start_rank(struct job *job, int32_t rank)
{
    char slots[16], batch[16], trace[512];
    int channel[2];
    snprintf(slots, sizeof slots, "%d", job->plan.slots_per_rank);
    snprintf(batch, sizeof batch, "%d", job->plan.batch);
    char *arguments[] = {(char *)(uintptr_t)job->plan.program,
                         (char[]){"worker"},
                         (char[]){"--model"},
                         (char *)(uintptr_t)job->plan.model_dir,
                         (char[]){"--slots"},
                         slots,
                         (char[]){"--batch"},
                         batch,
                         NULL};
    struct process_plan plan = {.arguments = arguments, .rank = rank, .ranks = job->plan.ranks, .out = -1, .err = -1};
    if (job->plan.trace_dir) {
        snprintf(trace, sizeof trace, "%s/%%r.json", job->plan.trace_dir);
        setenv("MUSTER_TRACE", trace, 1);
    }
    if (channel_pair(channel) != 0)
        return false;
    sigprocmask(SIG_SETMASK, NULL, &plan.mask);
    plan.in = channel[1];
    plan.store = store_server_connect(job->server);
    job->rank[rank].pid = plan.store < 0 ? -1 : process_start(&plan);
    job->rank[rank].alive = job->rank[rank].pid > 0;
    close(channel[1]);
    if (plan.store >= 0)
        close(plan.store);
    router_connect(&job->router, rank, channel[0]);
    job_arm(job, rank, channel[0]);
    return job->rank[rank].alive;
}

/* ---- Running ---- */

static void job_reap(struct job *job)
{
    int status;
    for (int32_t r = 0; r < job->plan.ranks; r++) {
        struct job_rank *rank = &job->rank[r];
        if (rank->pid <= 0 || waitpid(rank->pid, &status, WNOHANG) != rank->pid)
            continue;
        rank->pid = 0;
        rank->status = status;
        rank->alive = false;
        router_rank_died(&job->router, r);
    }
}

static void job_wait(struct job *job)
{
    struct pollfd fds[ROUTER_MAX_RANKS + 1];
    for (int32_t r = 0; r < job->plan.ranks; r++)
        fds[r] = (struct pollfd){.fd = job->router.rank[r].fd, .events = POLLIN};
    fds[job->plan.ranks] = (struct pollfd){.fd = store_server_fd(job->server), .events = POLLIN};
    poll(fds, (nfds_t)job->plan.ranks + 1, POLL_MS);
    store_server_poll(job->server);
    for (int32_t r = 0; r < job->plan.ranks; r++)
        router_read(&job->router, r);
    if (job->first_token_ns == 0 && job->router.accepted)
        job->first_token_ns = clock_ns();
    job_reap(job);
}

static bool job_any_running(const struct job *job)
{
    for (int32_t r = 0; r < job->plan.ranks; r++)
        if (job->rank[r].pid > 0)
            return true;
    return false;
}

static void job_serve(struct job *job)
{
    uint64_t shown_ns = 0;
    while (!router_done(&job->router) && job_any_running(job) && !job_interrupted) {
        router_assign(&job->router);
        job_wait(job);
        uint64_t now_ns = clock_ns();
        if (now_ns - job->started_ns > job->plan.limit_ns) {
            job_say(job, "the time is up");
            return;
        }
        if (job->plan.show && now_ns - shown_ns > SHOW_NS) {
            shown_ns = now_ns;
            job->plan.show(job->plan.context);
        }
    }
}

static void job_finish(struct job *job)
{
    uint64_t end_ns = clock_ns() + LEAVE_NS;
    struct channel_message m = {.type = CHANNEL_FINISH};
    for (int32_t r = 0; r < job->plan.ranks; r++)
        if (job->router.rank[r].fd >= 0)
            channel_send(job->router.rank[r].fd, &m);
    while (job_any_running(job) && clock_ns() < end_ns && !job_interrupted)
        job_wait(job);
    for (int32_t r = 0; r < job->plan.ranks; r++)
        if (job->rank[r].pid > 0) {
            kill(job->rank[r].pid, SIGKILL);
            waitpid(job->rank[r].pid, NULL, 0);
            job->rank[r].pid = 0;
        }
}

/* ---- What came of the faults ---- */

static bool job_survived(const struct job *job, int32_t rank)
{
    for (int32_t i = 0; i < job->faults; i++)
        if (job->fault[i].rank == rank && job->fault[i].fired_ns)
            return false;
    return true;
}

/* When the last survivor first said `type` after since_ns; 0 if one never did. */
static uint64_t job_last_first(const struct job *job, enum channel_type type, uint64_t since_ns)
{
    uint64_t last_ns = 0;
    for (int32_t r = 0; r < job->plan.ranks; r++) {
        uint64_t first_ns = 0;
        for (int32_t i = 0; i < job->notes; i++) {
            const struct job_note *n = &job->note[i];
            if (n->rank == r && n->type == type && n->ns > since_ns && (!first_ns || n->ns < first_ns))
                first_ns = n->ns;
        }
        if (job_survived(job, r) && first_ns == 0)
            return 0;
        if (job_survived(job, r) && first_ns > last_ns)
            last_ns = first_ns;
    }
    return last_ns;
}

static void job_time_faults(struct job *job)
{
    for (int32_t i = 0; i < job->faults; i++) {
        struct job_fault *f = &job->fault[i];
        if (f->fired_ns == 0)
            continue;
        f->detected_ns = job->rank[f->rank].first_trouble_ns;
        f->agreed_ns = job_last_first(job, CHANNEL_VIEW, f->detected_ns);
        f->resumed_ns = job_last_first(job, CHANNEL_RESUMED, f->detected_ns);
    }
}

bool job_run(struct job *job)
{
    struct store_server_config config = {.ranks = job->plan.ranks,
                                         .lease_us = LEASE_US,
                                         .on_event = job_store_event,
                                         .context = job};
    job->started_ns = clock_ns();
    if (store_server_create(&config, &job->server) != MUSTER_OK) {
        fprintf(stderr, "muster: %s\n", muster_last_error());
        return false;
    }
    bool started = true;
    for (int32_t r = 0; r < job->plan.ranks && started; r++)
        started = job_start_rank(job, r);
    if (started)
        job_serve(job);
    else
        fprintf(stderr, "muster: cannot start a rank: %s\n", strerror(errno));
    job->ended_ns = clock_ns();
    job->served_epoch = job_epoch(job);
    job_time_faults(job);
    bool done = started && router_done(&job->router);
    if (job->plan.show)
        job->plan.show(job->plan.context);
    job_finish(job);
    router_close(&job->router);
    store_server_destroy(job->server);
    return done;
}

int32_t job_alive(const struct job *job)
{
    int32_t alive = 0;
    for (int32_t r = 0; r < job->plan.ranks; r++)
        alive += job_survived(job, r);
    return alive;
}

uint32_t job_epoch(const struct job *job)
{
    uint32_t epoch = 0;
    for (int32_t r = 0; r < job->plan.ranks; r++)
        epoch = job->rank[r].epoch > epoch ? job->rank[r].epoch : epoch;
    return epoch;
}

uint64_t job_remote_routes(const struct job *job)
{
    uint64_t sum = 0;
    for (int32_t r = 0; r < job->plan.ranks; r++)
        sum += job->rank[r].remote_routes;
    return sum;
}

uint64_t job_experts_loaded(const struct job *job)
{
    uint64_t sum = 0;
    for (int32_t r = 0; r < job->plan.ranks; r++)
        sum += job->rank[r].experts_loaded;
    return sum;
}

double job_weights_ms(const struct job *job)
{
    double longest = 0;
    for (int32_t i = 0; i < job->notes; i++) {
        const struct job_note *n = &job->note[i];
        double ms = (double)(n->end_ns - n->ns) / 1e6;
        if (n->type == CHANNEL_LOADED && n->value > 0 && n->epoch > 1 && ms > longest)
            longest = ms;
    }
    return longest;
}
