// SPDX-License-Identifier: Apache-2.0
#include "job.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/store_server.h"
#include "core/clock.h"
#include "core/thread.h"
#include "inherited.h"
#include "muster/status.h"
#include "process.h"

enum { POLL_MS = 10, SHOW_NS = 100 * 1000 * 1000, LEASE_US = 5000000, MAX_ARGUMENTS = 9, DESCRIPTORS_OF_A_RANK = 2 };

static const uint64_t SETTLE_NS = UINT64_C(5000000000); /* after the last token, for the faults to be got over */
static const uint64_t LEAVE_NS = UINT64_C(5000000000); /* for the ranks to leave; then they are killed */

volatile sig_atomic_t job_interrupted;

__attribute__((format(printf, 2, 3))) static void job_say(struct job *job, const char *format, ...)
{
    struct job_event *event = &job->event[job->events++ % JOB_MAX_EVENTS];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(event->text, sizeof event->text, format, arguments);
    va_end(arguments);
    event->ns = clock_ns();
}

/* ---- What the store and the ranks say ---- */

static void job_store_event(void *context, int32_t rank, uint32_t incarnation, const char *what)
{
    struct job *job = context;
    (void)incarnation;
    bool trouble = strcmp(what, "died") == 0 || strcmp(what, "is to be fenced") == 0;
    if (!trouble)
        return;
    if (job->rank[rank].first_trouble_ns == 0)
        job->rank[rank].first_trouble_ns = clock_ns();
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
                                                .mask = m->mask,
                                                .ns = m->ns,
                                                .end_ns = m->end_ns};
}

/* A fault that comes when the ranks have been told to leave has hit nothing. */
static void job_fired(struct job *job, int32_t rank, uint64_t ns)
{
    const struct job_fault *f = job->leaving ? NULL : job_fault_fired(job, rank, ns);
    if (f)
        job_say(job, "rank %d gets %s in step %llu, in the middle of layer %d's dispatch", rank,
                f->signal == SIGKILL ? "SIGKILL" : "SIGSTOP", (unsigned long long)f->step, f->layer);
}

static void job_view(struct job *job, int32_t rank, const struct channel_message *m)
{
    if (m->epoch > job_epoch(job) && !job->leaving)
        job_say(job, "epoch %u: %d ranks", m->epoch, m->value);
    job->rank[rank].epoch = m->epoch;
    job_note_add(job, rank, m);
}

/* What a rank loads when it opens the model is not worth a note: it is the same in every run. */
static void job_loaded(struct job *job, int32_t rank, const struct channel_message *m)
{
    if (m->experts_loaded == 0 || m->value == 0 || job->leaving)
        return;
    job_say(job, "rank %d loaded %d experts in %.1f ms", rank, m->value, (double)(m->end_ns - m->ns) / 1e6);
    job_note_add(job, rank, m);
}

static void job_message(void *context, int32_t rank, const struct channel_message *m)
{
    struct job *job = context;
    struct job_rank *r = &job->rank[rank];
    switch (m->type) {
    case CHANNEL_VIEW: job_view(job, rank, m); break;
    case CHANNEL_LOADED: job_loaded(job, rank, m); break;
    case CHANNEL_RESUMED: job_note_add(job, rank, m); break;
    case CHANNEL_FIRED: job_fired(job, rank, m->ns); break;
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
    for (int32_t r = 0; r < ROUTER_MAX_RANKS; r++)
        job->rank[r].trace = -1;
    router_init(&job->router, plan->ranks);
    job->router.on_message = job_message;
    job->router.context = job;
}

void job_close(struct job *job)
{
    for (int32_t r = 0; r < job->plan.ranks; r++)
        if (job->rank[r].trace >= 0)
            close(job->rank[r].trace);
    for (int32_t r = 0; r < job->plan.ranks; r++)
        job->rank[r].trace = -1;
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

/* The rank writes into our memory, by way of /proc: whatever becomes of either, no file is left behind. */
static bool job_trace(struct job *job, int32_t rank)
{
    char path[64];
    if (!job->plan.trace)
        return true;
    int fd = memfd_create("muster-trace", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    job->rank[rank].trace = fd;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), fd);
    return setenv("MUSTER_TRACE", path, 1) == 0;
}

static char *argument(const char *text)
{
    return (char *)(uintptr_t)text; /* exec takes char *const[], and does not write */
}

static pid_t job_start_process(struct job *job, int32_t rank, int channel, int store)
{
    char slots[16], batch[16];
    snprintf(slots, sizeof slots, "%d", job->plan.slots_per_rank);
    snprintf(batch, sizeof batch, "%d", job->plan.batch);
    char *arguments[MAX_ARGUMENTS] = {argument(job->plan.program),
                                      argument("worker"),
                                      argument("--model"),
                                      argument(job->plan.model_dir),
                                      argument("--slots"),
                                      slots,
                                      argument("--batch"),
                                      batch,
                                      NULL};
    struct process_plan plan = {.arguments = arguments,
                                .rank = rank,
                                .ranks = job->plan.ranks,
                                .store = store,
                                .in = channel,
                                .out = -1,
                                .err = -1};
    sigprocmask(SIG_SETMASK, NULL, &plan.mask);
    return process_start(&plan);
}

static bool job_start_rank(struct job *job, int32_t rank)
{
    int channel[2];
    if (!job_trace(job, rank) || channel_pair(channel) != 0)
        return false;
    int store = store_server_connect(job->server);
    pid_t pid = store < 0 ? -1 : job_start_process(job, rank, channel[1], store);
    int saved = errno;
    close(channel[1]);
    if (store >= 0)
        close(store);
    job->rank[rank].pid = pid > 0 ? pid : 0;
    router_connect(&job->router, rank, channel[0]);
    job_arm(job, rank, channel[0]);
    errno = saved;
    return pid > 0;
}

/* ---- Running ---- */

static void job_reap(struct job *job)
{
    for (int32_t r = 0; r < job->plan.ranks; r++) {
        struct job_rank *rank = &job->rank[r];
        if (rank->pid == 0 || waitpid(rank->pid, &rank->status, WNOHANG) != rank->pid)
            continue;
        uint64_t moved = job->router.moved;
        rank->pid = 0;
        router_rank_died(&job->router, r);
        if (job->router.moved > moved)
            job_say(job, "%llu requests of rank %d go on elsewhere", (unsigned long long)(job->router.moved - moved),
                    r);
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
    job_reap(job);
    uint64_t now_ns = clock_ns();
    if (job->first_token_ns == 0 && job->router.accepted)
        job->first_token_ns = now_ns;
    if (job->last_token_ns == 0 && router_done(&job->router))
        job->last_token_ns = now_ns;
}

static bool job_any_running(const struct job *job)
{
    for (int32_t r = 0; r < job->plan.ranks; r++)
        if (job->rank[r].pid)
            return true;
    return false;
}

/* Every token has come, and the ranks have got over the faults, or had the time to. */
static bool job_served(struct job *job)
{
    if (!router_done(&job->router))
        return false;
    return job_faults_settle(job) || clock_ns() - job->last_token_ns > SETTLE_NS;
}

static void job_serve(struct job *job)
{
    uint64_t shown_ns = 0;
    while (!job_served(job) && job_any_running(job) && !job_interrupted) {
        router_assign(&job->router);
        job_wait(job);
        uint64_t now_ns = clock_ns();
        if (now_ns - job->started_ns > job->plan.limit_ns) {
            job_say(job, "the time is up: %llu s", (unsigned long long)(job->plan.limit_ns / 1000000000u));
            return;
        }
        if (job->plan.show && now_ns - shown_ns > SHOW_NS) {
            shown_ns = now_ns;
            job->plan.show(job->plan.context);
        }
    }
}

/* A rank that a fault has stopped counts as gone, even if nobody has noticed yet. */
static int32_t job_count_alive(const struct job *job)
{
    int32_t alive = 0;
    for (int32_t r = 0; r < job->plan.ranks; r++)
        alive += job->rank[r].pid != 0 && job->rank[r].first_trouble_ns == 0 && job_spared(job, r);
    return alive;
}

static void job_finish(struct job *job)
{
    uint64_t end_ns = clock_ns() + LEAVE_NS;
    job->leaving = true;
    struct channel_message m = {.type = CHANNEL_FINISH};
    for (int32_t r = 0; r < job->plan.ranks; r++)
        if (job->router.rank[r].fd >= 0)
            channel_send(job->router.rank[r].fd, &m);
    while (job_any_running(job) && clock_ns() < end_ns && !job_interrupted)
        job_wait(job);
    for (int32_t r = 0; r < job->plan.ranks; r++) {
        if (job->rank[r].pid) {
            kill(job->rank[r].pid, SIGKILL);
            waitpid(job->rank[r].pid, &job->rank[r].status, 0);
            job->rank[r].pid = 0;
        }
        job->disorderly += job->rank[r].status != 0 && job_spared(job, r);
    }
}

static bool job_start(struct job *job)
{
    struct store_server_config config = {.ranks = job->plan.ranks,
                                         .lease_us = LEASE_US,
                                         .on_event = job_store_event,
                                         .context = job};
    char text[200], why[THREAD_TEXT_BYTES];
    if (!inherited_make_room(job->plan.ranks, DESCRIPTORS_OF_A_RANK, text, sizeof text)) {
        fprintf(stderr, "muster: %s\n", text);
        return false;
    }
    if (store_server_create(&config, &job->server) != MUSTER_OK) {
        fprintf(stderr, "muster: %s\n", muster_last_error());
        return false;
    }
    for (int32_t r = 0; r < job->plan.ranks; r++)
        if (!job_start_rank(job, r)) {
            fprintf(stderr, "muster: cannot start rank %d: %s\n", r, thread_explain(errno, why));
            return false;
        }
    return true;
}

bool job_run(struct job *job)
{
    job->started_ns = clock_ns();
    if (job_start(job))
        job_serve(job);
    bool done = router_done(&job->router);
    job->served_alive = job_count_alive(job);
    job->served_epoch = job_epoch(job);
    if (job->plan.show)
        job->plan.show(job->plan.context);
    if (job->server)
        job_finish(job);
    router_close(&job->router);
    store_server_destroy(job->server);
    return done;
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
