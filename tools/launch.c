// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/thread.h"
#include "process.h"

#define SECOND_NS UINT64_C(1000000000)
#define GIVE_UP_NS (10 * SECOND_NS) /* after the kill: a process that is stuck in a driver is left to its fate */

enum {
    POLL_MAX_MS = 1000,
    LAST_WORDS_NS = 1000000000, /* what ranks that fail on their own have to say so, before they are asked to exit */
    DRAIN_NS = 1000000000, /* how long an output may stay open after its process has exited */
    QUICK_DEATH_S = 10, /* a process that lived shorter makes the next start wait longer */
    FIRST_DELAY_NS = 100000000,
    MAX_DELAY_NS = 2000000000
};

/* ---- messages ---- */

__attribute__((format(printf, 2, 3))) static void say(struct launch *launch, const char *format, ...)
{
    char text[512], line[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(line, sizeof line, "muster run: %s\n", text);
    relay_say(&launch->sink[1], line);
}

void launch_tell_losses(struct launch *launch)
{
    static const char *const names[LAUNCH_STREAMS] = {"stdout", "stderr"};
    for (int s = 0; s < LAUNCH_STREAMS && !launch->told_losses; s++) {
        if (!launch->sink[s].error)
            continue;
        launch->told_losses = true;
        say(launch, "%s cannot be written: %s; what the ranks print is lost, the job goes on", names[s],
            strerror(launch->sink[s].error));
    }
}

/* Who is killed by the store is told why, or it would look like a kill from outside. */
static void describe_end(const struct launch_rank *r, char *text, size_t bytes)
{
    uint32_t faulty = atomic_load(&r->faulty);
    bool known = faulty && faulty == atomic_load(&r->arrived);
    const char *comma = known ? ", " : "", *why = known ? atomic_load(&r->fault) : "";
    if (WIFSIGNALED(r->status))
        snprintf(text, bytes, "was killed by SIG%s%s%s", sigabbrev_np(WTERMSIG(r->status)), comma, why);
    else
        snprintf(text, bytes, "exited with status %d%s%s", WEXITSTATUS(r->status), comma, why);
}

/* ---- ending ---- */

static void signal_ranks(struct launch *launch, int signal)
{
    for (int i = 0; i < launch->options.ranks; i++)
        if (launch->rank[i].state == RANK_RUNNING)
            process_signal(launch->rank[i].pid, signal);
}

/* Nobody is started any more. */
static void begin_to_end(struct launch *launch, uint64_t ask_at_ns, int status)
{
    if (launch->ending)
        return;
    launch->ending = true;
    launch->ended_status = status;
    launch->ask_at_ns = ask_at_ns;
    launch->kill_at_ns = ask_at_ns + launch->options.grace_ns;
    for (int i = 0; i < launch->options.ranks; i++)
        if (launch->rank[i].state == RANK_WAITING)
            launch->rank[i].state = RANK_ENDED;
}

/* Asks all ranks to exit, and sets the time of their patience. `status`: what the job's exit status becomes. */
void launch_end(struct launch *launch, int signal, int status)
{
    begin_to_end(launch, clock_ns(), status);
    launch->ask_at_ns = 0;
    signal_ranks(launch, signal);
}

void launch_end_soon(struct launch *launch, int status)
{
    begin_to_end(launch, clock_ns() + LAST_WORDS_NS, status);
}

/* The first signal is passed on; a second one has no patience. */
void launch_signal(struct launch *launch, int signal)
{
    if (signal == SIGCHLD || signal == SIGTSTP || signal == SIGTTOU)
        return; /* a suspended launcher would be a lost store, also one that writes from the background (stty tostop) */
    if (launch->ending) {
        launch->kill_at_ns = clock_ns();
        return;
    }
    say(launch, "SIG%s: passed on to the ranks", sigabbrev_np(signal));
    launch_end(launch, signal, 128 + signal);
}

/* ---- the deaths of ranks ---- */

int launch_ranks_in(const struct launch *launch, enum rank_state state)
{
    int count = 0;
    for (int i = 0; i < launch->options.ranks; i++)
        count += launch->rank[i].state == state;
    return count;
}

static void count_failure(struct launch *launch, const struct launch_rank *r)
{
    launch->failed++;
    if (WIFSIGNALED(r->status) && !launch->first_signal)
        launch->first_signal = WTERMSIG(r->status);
    bool replaced_too_late = r->starts > 1 && launch->finished;
    if (WIFEXITED(r->status) && !launch->first_failure && !replaced_too_late)
        launch->first_failure = WEXITSTATUS(r->status);
    int left = launch->options.ranks - launch->failed;
    if (!launch->ending && left < launch->options.min_ranks && left > 0) {
        say(launch, "%d of %d ranks are left, fewer than --min-ranks %d: ending the job", left, launch->options.ranks,
            launch->options.min_ranks);
        launch_end(launch, SIGTERM, LAUNCH_ENDED_BY_US);
    }
}

/* ---- starting ranks ---- */

/* The ends of the ranks' pipes that stay here; nothing is read from a pipe that polls empty, so they do not block. */
static int open_streams(struct launch *launch, int32_t rank, int theirs[LAUNCH_STREAMS])
{
    struct launch_rank *r = &launch->rank[rank];
    for (int i = 0; i < LAUNCH_STREAMS; i++) {
        int ends[2];
        theirs[i] = -1;
        if (!launch->options.prefix)
            continue;
        if (pipe2(ends, O_CLOEXEC) != 0)
            return -1;
        fcntl(ends[0], F_SETFL, O_NONBLOCK);
        theirs[i] = ends[1];
        r->source[i].fd = ends[0];
        r->source[i].rank = rank;
        r->source[i].sink = &launch->sink[i];
        r->source[i].used = 0;
    }
    return 0;
}

static void close_all(const int *fds, int count)
{
    for (int i = 0; i < count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static pid_t start_process(struct launch *launch, int32_t rank)
{
    int theirs[LAUNCH_STREAMS + 1] = {-1, -1, -1};
    pid_t pid = -1;
    if (open_streams(launch, rank, theirs) == 0 && (theirs[LAUNCH_STREAMS] = store_server_connect(launch->server)) >= 0)
        pid = process_start(&(struct process_plan){.arguments = launch->options.program,
                                                   .rank = rank,
                                                   .ranks = launch->options.ranks,
                                                   .store = theirs[LAUNCH_STREAMS],
                                                   .store_name = *launch->store_name ? launch->store_name : NULL,
                                                   .out = theirs[0],
                                                   .err = theirs[1],
                                                   .mask = launch->mask});
    int saved = errno;
    close_all(theirs, LAUNCH_STREAMS + 1);
    errno = saved;
    return pid;
}

/*
 * A program that cannot be executed will not be executable the next time. Once a rank has finished, nobody new comes. Above
 * these statuses are those of wrappers whose program was killed.
 */
static bool may_restart(const struct launch *launch, const struct launch_rank *r)
{
    bool hopeless = WIFEXITED(r->status) && (WEXITSTATUS(r->status) == 126 || WEXITSTATUS(r->status) == 127);
    return r->starts <= launch->options.restarts && !launch->ending && !launch->finished && !hopeless;
}

/* A rank that is to come again may find that what has run short is there a little later. */
static void start_failed(struct launch *launch, int32_t rank, int error)
{
    struct launch_rank *r = &launch->rank[rank];
    char why[THREAD_TEXT_BYTES];
    bool again = r->starts > 1 && may_restart(launch, r);
    say(launch, "rank %d cannot be started: %s%s", rank, thread_explain(error, why),
        again ? "; it is tried again" : "");
    r->state = again ? RANK_WAITING : RANK_ENDED;
    r->start_at_ns = clock_ns() + MAX_DELAY_NS;
    if (!again)
        count_failure(launch, r);
}

bool launch_start(struct launch *launch, int32_t rank)
{
    struct launch_rank *r = &launch->rank[rank];
    r->arrived_before = atomic_load(&r->arrived);
    r->started_ns = clock_ns();
    r->starts++;
    r->pid = start_process(launch, rank);
    if (r->pid > 0) {
        r->state = RANK_RUNNING;
        return true;
    }
    start_failed(launch, rank, errno);
    return false;
}

/* ---- what follows a death ---- */

static uint64_t restart_delay_ns(struct launch_rank *r)
{
    bool quick = clock_ns() - r->started_ns < QUICK_DEATH_S * SECOND_NS;
    r->quick_deaths = quick ? r->quick_deaths + 1 : 0;
    if (r->quick_deaths <= 1)
        return 0;
    uint32_t doublings = r->quick_deaths < 8 ? r->quick_deaths - 2 : 6;
    uint64_t delay_ns = (uint64_t)FIRST_DELAY_NS << doublings;
    return delay_ns < MAX_DELAY_NS ? delay_ns : MAX_DELAY_NS;
}

static void rank_failed(struct launch *launch, int32_t rank)
{
    struct launch_rank *r = &launch->rank[rank];
    char end[160];
    describe_end(r, end, sizeof end);
    if (may_restart(launch, r)) {
        r->state = RANK_WAITING;
        r->start_at_ns = clock_ns() + restart_delay_ns(r);
        say(launch, "rank %d (process %d) %s; it is started again", rank, (int)r->pid, end);
        return;
    }
    r->state = RANK_ENDED;
    if (!launch->ending)
        say(launch, "rank %d (process %d) %s; %d of %d ranks go on", rank, (int)r->pid, end,
            launch_ranks_in(launch, RANK_RUNNING) + launch_ranks_in(launch, RANK_WAITING), launch->options.ranks);
    count_failure(launch, r);
}

/* A rank that waited to be started again would only find that the others have gone. */
static void cancel_restarts(struct launch *launch)
{
    for (int i = 0; i < launch->options.ranks; i++)
        if (launch->rank[i].state == RANK_WAITING) {
            launch->rank[i].state = RANK_ENDED;
            count_failure(launch, &launch->rank[i]);
        }
}

static void rank_exited(struct launch *launch, int32_t rank, int status)
{
    struct launch_rank *r = &launch->rank[rank];
    r->status = status;
    r->exited_ns = clock_ns();
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        r->state = RANK_ENDED;
        launch->finished++;
        cancel_restarts(launch);
        return;
    }
    rank_failed(launch, rank);
}

static int32_t rank_of(const struct launch *launch, pid_t pid)
{
    for (int i = 0; i < launch->options.ranks; i++)
        if (launch->rank[i].state == RANK_RUNNING && launch->rank[i].pid == pid)
            return i;
    return -1;
}

/* What a rank started ends with it: its group is killed while its own number, not reaped yet, cannot be used anew. */
void launch_reap(struct launch *launch)
{
    siginfo_t info = {.si_pid = 0};
    while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid) {
        int status;
        pid_t pid = info.si_pid;
        int32_t rank = rank_of(launch, pid);
        if (rank >= 0)
            process_signal(pid, SIGKILL);
        if (waitpid(pid, &status, 0) == pid && rank >= 0)
            rank_exited(launch, rank, status);
        info.si_pid = 0;
    }
}

/* ---- deadlines ---- */

static bool is_late(const struct launch *launch, const struct launch_rank *r)
{
    uint64_t timeout_ns = launch->options.start_timeout_ns;
    return r->state == RANK_RUNNING && timeout_ns && atomic_load(&r->arrived) == r->arrived_before &&
           clock_ns() >= r->started_ns + timeout_ns;
}

static void name_late_ranks(struct launch *launch)
{
    char names[400] = "";
    size_t used = 0;
    for (int i = 0; i < launch->options.ranks && used + 40 < sizeof names; i++)
        if (is_late(launch, &launch->rank[i]))
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%d (process %d)", used ? ", " : "", i,
                                     (int)launch->rank[i].pid);
    say(launch, "rank %s did not arrive within %llu s: ending the job", names,
        (unsigned long long)(launch->options.start_timeout_ns / SECOND_NS));
}

/* A rank that is missing from the beginning keeps all others waiting; one that was started again keeps nobody. */
static void check_arrivals(struct launch *launch)
{
    for (int i = 0; i < launch->options.ranks && !launch->ending; i++) {
        struct launch_rank *r = &launch->rank[i];
        if (!is_late(launch, r))
            continue;
        if (r->starts == 1) {
            name_late_ranks(launch);
            launch_end_soon(launch, LAUNCH_ENDED_BY_US);
            return;
        }
        say(launch, "rank %d (process %d), started again, did not arrive: killed", i, (int)r->pid);
        process_signal(r->pid, SIGKILL);
        r->started_ns = clock_ns(); /* once is enough */
    }
}

/* The first rank that has gone for good, or -1: its own process, and whatever was to be the rank behind it. */
static int32_t first_gone(const struct launch *launch)
{
    int32_t first = -1;
    for (int32_t i = 0; i < launch->options.ranks; i++) {
        const struct launch_rank *r = &launch->rank[i];
        bool gone = r->state == RANK_ENDED && r->starts && !store_server_present(launch->server, i);
        if (gone && (first < 0 || r->exited_ns < launch->rank[first].exited_ns))
            first = i;
    }
    return first;
}

static int status_of_end(int status)
{
    if (WIFSIGNALED(status))
        return 128 + WTERMSIG(status);
    return WEXITSTATUS(status) ? WEXITSTATUS(status) : LAUNCH_ENDED_BY_US;
}

/* A group begins with all of its ranks. Others that fail for the same reason have a moment to say so. */
static void check_founding(struct launch *launch)
{
    int32_t gone = store_server_is_founding(launch->server) ? first_gone(launch) : -1;
    uint64_t now_ns = clock_ns();
    if (gone < 0 || !launch->hopeless_ns)
        launch->hopeless_ns = gone < 0 ? 0 : now_ns;
    if (gone < 0 || now_ns < launch->hopeless_ns + LAST_WORDS_NS)
        return;
    char end[160];
    describe_end(&launch->rank[gone], end, sizeof end);
    say(launch, "rank %d %s before the group was formed, which needs every rank: ending the job", gone, end);
    launch_end(launch, SIGTERM, status_of_end(launch->rank[gone].status));
}

bool launch_streams_closed(const struct launch_rank *r)
{
    return r->source[0].fd < 0 && r->source[1].fd < 0;
}

/* What the last process printed goes out before its successor begins. */
static void start_waiting(struct launch *launch)
{
    for (int i = 0; i < launch->options.ranks; i++) {
        struct launch_rank *r = &launch->rank[i];
        if (r->state == RANK_WAITING && clock_ns() >= r->start_at_ns && launch_streams_closed(r))
            launch_start(launch, i);
    }
}

/*
 * A pipe that stays open after its process is held by something that has left the rank's group: it is not waited for.
 */
static void close_held_streams(struct launch *launch)
{
    for (int i = 0; i < launch->options.ranks; i++) {
        struct launch_rank *r = &launch->rank[i];
        if (r->state == RANK_RUNNING || launch_streams_closed(r) || clock_ns() < r->exited_ns + DRAIN_NS)
            continue;
        for (int s = 0; s < LAUNCH_STREAMS; s++)
            if (relay_source_poll(&r->source[s]).fd >= 0 && !relay_read(&r->source[s]))
                relay_finish(&r->source[s]);
    }
}

void launch_check(struct launch *launch)
{
    if (launch->ask_at_ns && clock_ns() >= launch->ask_at_ns)
        launch_end(launch, SIGTERM, launch->ended_status);
    if (launch->ending && clock_ns() >= launch->kill_at_ns)
        signal_ranks(launch, SIGKILL);
    if (!launch->ending)
        check_arrivals(launch);
    if (!launch->ending)
        check_founding(launch);
    start_waiting(launch);
    close_held_streams(launch);
}

static void earlier(uint64_t *first_ns, uint64_t other_ns)
{
    if (other_ns < *first_ns)
        *first_ns = other_ns;
}

void launch_was_paused(struct launch *launch, uint64_t pause_ns)
{
    for (int i = 0; i < launch->options.ranks; i++)
        if (launch->rank[i].state == RANK_RUNNING)
            launch->rank[i].started_ns += pause_ns;
    if (launch->ask_at_ns)
        launch->ask_at_ns += pause_ns;
    if (launch->ending)
        launch->kill_at_ns += pause_ns;
}

int launch_wait_ms(const struct launch *launch)
{
    uint64_t now_ns = clock_ns(), first_ns = now_ns + POLL_MAX_MS * UINT64_C(1000000);
    if (launch->ask_at_ns)
        earlier(&first_ns, launch->ask_at_ns);
    if (launch->hopeless_ns && !launch->ending)
        earlier(&first_ns, launch->hopeless_ns + LAST_WORDS_NS);
    if (launch->ending && launch_ranks_in(launch, RANK_RUNNING))
        earlier(&first_ns, launch->kill_at_ns);
    for (int i = 0; i < launch->options.ranks; i++) {
        const struct launch_rank *r = &launch->rank[i];
        if (r->state == RANK_WAITING)
            earlier(&first_ns, r->start_at_ns);
        if (r->state == RANK_RUNNING && launch->options.start_timeout_ns && !launch->ending)
            earlier(&first_ns, atomic_load(&r->arrived) == r->arrived_before
                                   ? r->started_ns + launch->options.start_timeout_ns
                                   : UINT64_MAX);
        if (r->state != RANK_RUNNING && !launch_streams_closed(r))
            earlier(&first_ns, r->exited_ns + DRAIN_NS);
    }
    return first_ns > now_ns ? (int)((first_ns - now_ns) / 1000000 + 1) : 1;
}

/* ---- the end ---- */

static int status_of_ranks(const struct launch *launch)
{
    if (launch->ended_status)
        return launch->ended_status;
    if (launch->first_failure)
        return launch->first_failure;
    if (launch->finished)
        return 0;
    return launch->first_signal ? 128 + launch->first_signal : LAUNCH_ENDED_BY_US;
}

int launch_status(const struct launch *launch)
{
    int status = status_of_ranks(launch);
    return status == 0 && (launch->sink[0].error || launch->sink[1].error) ? LAUNCH_OUTPUT_LOST : status;
}

/*
 * Once the grace of an ending job is over, what is still to print is not waited for; what a SIGKILL does not end is
 * waited for a little.
 */
bool launch_is_over(struct launch *launch)
{
    uint64_t now_ns = clock_ns();
    if (!launch->ending || now_ns < launch->kill_at_ns)
        return false;
    int running = launch_ranks_in(launch, RANK_RUNNING);
    if (running && now_ns >= launch->kill_at_ns + GIVE_UP_NS)
        fprintf(stderr, "muster run: %d ranks do not exit, although they were killed\n", running);
    return !running || now_ns >= launch->kill_at_ns + GIVE_UP_NS;
}
