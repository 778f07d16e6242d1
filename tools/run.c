// SPDX-License-Identifier: Apache-2.0
/*
 * `muster run`: starts the ranks of a program, hosts their store, passes on what they print, starts them again, ends
 * them. The store has a thread of its own, so neither a slow terminal nor a busy rank keeps it from answering.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/store_server.h"
#include "core/clock.h"
#include "core/config.h"
#include "muster/group.h"
#include "process.h"
#include "relay.h"
#include "tool.h"

#define SECOND_NS UINT64_C(1000000000)

enum {
    STREAMS = 2, /* stdout, stderr */
    POLL_MAX_MS = 1000,
    ENDED_BY_US = 1, /* exit status when the launcher ended the job */
    DEFAULT_RESTARTS = 10,
    DRAIN_NS = 1000000000, /* how long an output may stay open after its process has exited */
    SWEEP_NS = 2000000000,
    QUICK_DEATH_S = 10, /* a process that lived shorter makes the next start wait longer */
    FIRST_DELAY_NS = 100000000,
    MAX_DELAY_NS = 2000000000
};

#define GIVE_UP_NS (10 * SECOND_NS) /* after the kill: a process that is stuck in a driver is left to its fate */

struct options {
    int32_t ranks;
    int32_t min_ranks;
    uint32_t restarts; /* how often one rank is started again */
    uint64_t start_timeout_ns; /* 0: none */
    uint64_t grace_ns;
    bool prefix;
    char **program;
};

enum rank_state { RANK_RUNNING, RANK_WAITING /* to be started again */, RANK_ENDED };

struct rank {
    enum rank_state state;
    pid_t pid;
    uint32_t starts;
    uint32_t quick_deaths;
    uint64_t started_ns;
    uint64_t exited_ns;
    uint64_t start_at_ns; /* while waiting */
    int status; /* of its last process, as wait() gives it */
    uint32_t arrived_before; /* incarnation that had arrived when the process was started */
    _Atomic uint32_t arrived; /* the newest that has; the store's thread writes it */
    struct relay_source source[STREAMS];
};

struct job {
    struct options options;
    struct store_server *server;
    int signals;
    sigset_t mask; /* that we were started with */
    struct relay_sink sink[STREAMS];
    struct rank rank[MUSTER_MAX_RANKS];

    bool ending; /* the ranks have been asked to exit */
    uint64_t kill_at_ns; /* while ending */
    int ended_status; /* exit status that the reason for ending gives; 0: none */
    int finished; /* ranks that exited with 0 */
    int failed; /* ranks that died or failed and are not started again */
    int first_failure; /* first nonzero exit status of a rank */
    int first_signal;
};

/* ---- options ---- */

static const struct argp_option option_table[] = {
    {"ranks", 'n', "N", 0, "Start N ranks (1 to 128)", 0},
    {"respawn", 'r', "TIMES", OPTION_ARG_OPTIONAL,
     "Start a rank that died or failed again under the same number, at most TIMES times (default 10)", 0},
    {"min-ranks", 'm', "M", 0, "End the job when fewer than M ranks are left (default 1)", 0},
    {"start-timeout", 't', "SECONDS", 0,
     "A rank that has not arrived (joined its group) after this long is named and ends the job; 0: never (default: "
     "setting MUSTER_START_TIMEOUT_US, 60 s)",
     0},
    {"grace", 'g', "SECONDS", 0, "How long ranks that were asked to exit may take (default 5)", 0},
    {"no-prefix", 'P', NULL, 0, "Do not put \"[rank] \" before each line; the ranks write to our own streams", 0},
    {0},
};

static const char text_before[] = "Starts N ranks of PROGRAM on this host and hosts their store.";

static const char text_after[] =
    "\vEach rank finds its number in MUSTER_RANK, the number of ranks in MUSTER_RANKS and the store in MUSTER_STORE. "
    "Its standard input is empty. SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on to the ranks; those that are still "
    "there after the grace are killed.\n\n"
    "Exit status, judged by the last process of each rank:\n"
    "  0        at least one rank exited with 0, and none with another status; deaths by signal that others outlived "
    "are reported, but do not count\n"
    "  N        the first status other than 0 that a rank exited with (127: program not found); a rank that was "
    "started again and fails after another rank has finished does not count\n"
    "  128 + S  every rank died by a signal (S: the first one), or a signal S ended the job\n"
    "  1        the job was ended: a rank did not arrive, or fewer than M ranks were left\n"
    "  2        wrong usage";

static void set_respawn(struct argp_state *state, struct options *o, const char *text)
{
    o->restarts = text ? (uint32_t)tool_number(state, "respawn", text, 1, 1000000) : DEFAULT_RESTARTS;
}

static error_t check_options(struct argp_state *state, const struct options *o)
{
    if (!o->ranks)
        argp_error(state, "--ranks (-n) is needed");
    if (!o->program)
        argp_error(state, "a program is needed");
    if (o->min_ranks > o->ranks)
        argp_error(state, "--min-ranks is %d; with %d ranks it must be 1 to %d", o->min_ranks, o->ranks, o->ranks);
    return 0;
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case 'n': o->ranks = (int32_t)tool_number(state, "ranks", text, 1, MUSTER_MAX_RANKS); return 0;
    case 'r': set_respawn(state, o, text); return 0;
    case 'm': o->min_ranks = (int32_t)tool_number(state, "min-ranks", text, 1, MUSTER_MAX_RANKS); return 0;
    case 't': o->start_timeout_ns = tool_number(state, "start-timeout", text, 0, 86400) * SECOND_NS; return 0;
    case 'g': o->grace_ns = tool_number(state, "grace", text, 0, 86400) * SECOND_NS; return 0;
    case 'P': o->prefix = false; return 0;
    case ARGP_KEY_ARG:
        o->program = &state->argv[state->next - 1];
        state->next = state->argc; /* what follows belongs to the program */
        return 0;
    case ARGP_KEY_END: return check_options(state, o);
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* ---- messages ---- */

__attribute__((format(printf, 2, 3))) static void say(struct job *job, const char *format, ...)
{
    char text[512], line[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(line, sizeof line, "muster run: %s\n", text);
    relay_say(&job->sink[1], line);
}

static void describe_end(int status, char *text, size_t bytes)
{
    if (WIFSIGNALED(status))
        snprintf(text, bytes, "was killed by SIG%s", sigabbrev_np(WTERMSIG(status)));
    else
        snprintf(text, bytes, "exited with status %d", WEXITSTATUS(status));
}

/* ---- starting ranks ---- */

/* The ends of the ranks' pipes that stay here; nothing is read from a pipe that polls empty, so they do not block. */
static int open_streams(struct job *job, int32_t rank, int theirs[STREAMS])
{
    struct rank *r = &job->rank[rank];
    for (int i = 0; i < STREAMS; i++) {
        int ends[2];
        theirs[i] = -1;
        if (!job->options.prefix)
            continue;
        if (pipe2(ends, O_CLOEXEC) != 0)
            return -1;
        fcntl(ends[0], F_SETFL, O_NONBLOCK);
        theirs[i] = ends[1];
        r->source[i].fd = ends[0];
        r->source[i].rank = rank;
        r->source[i].sink = &job->sink[i];
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

static pid_t start_process(struct job *job, int32_t rank)
{
    int theirs[STREAMS + 1] = {-1, -1, -1};
    pid_t pid = -1;
    if (open_streams(job, rank, theirs) == 0 && (theirs[STREAMS] = store_server_connect(job->server)) >= 0)
        pid = process_start(&(struct process_plan){.arguments = job->options.program,
                                                   .rank = rank,
                                                   .ranks = job->options.ranks,
                                                   .store = theirs[STREAMS],
                                                   .out = theirs[0],
                                                   .err = theirs[1],
                                                   .mask = job->mask});
    int saved = errno;
    close_all(theirs, STREAMS + 1);
    errno = saved;
    return pid;
}

static bool start_rank(struct job *job, int32_t rank)
{
    struct rank *r = &job->rank[rank];
    r->arrived_before = atomic_load(&r->arrived);
    r->started_ns = clock_ns();
    r->starts++;
    r->pid = start_process(job, rank);
    if (r->pid > 0) {
        r->state = RANK_RUNNING;
        return true;
    }
    say(job, "rank %d cannot be started: %s", rank, strerror(errno));
    r->state = RANK_ENDED;
    job->failed++;
    return false;
}

/* ---- ending ---- */

static void signal_ranks(struct job *job, int signal)
{
    for (int i = 0; i < job->options.ranks; i++)
        if (job->rank[i].state == RANK_RUNNING)
            process_signal(job->rank[i].pid, signal);
}

/* Asks all ranks to exit, and sets the time of their patience. `status`: what the job's exit status becomes. */
static void end_job(struct job *job, int signal, int status)
{
    if (!job->ending) {
        job->ending = true;
        job->ended_status = status;
        job->kill_at_ns = clock_ns() + job->options.grace_ns;
    }
    signal_ranks(job, signal);
    for (int i = 0; i < job->options.ranks; i++)
        if (job->rank[i].state == RANK_WAITING)
            job->rank[i].state = RANK_ENDED;
}

/* The first signal is passed on; a second one has no patience. */
static void handle_signal(struct job *job, int signal)
{
    if (signal == SIGCHLD || signal == SIGTSTP)
        return; /* a suspended launcher would be a lost store */
    if (job->ending) {
        job->kill_at_ns = clock_ns();
        return;
    }
    say(job, "SIG%s: passed on to the ranks", sigabbrev_np(signal));
    end_job(job, signal, 128 + signal);
}

static void take_signals(struct job *job)
{
    struct signalfd_siginfo info;
    while (read(job->signals, &info, sizeof info) == (ssize_t)sizeof info)
        handle_signal(job, (int)info.ssi_signo);
}

/* ---- the deaths of ranks ---- */

static int ranks_in(const struct job *job, enum rank_state state)
{
    int count = 0;
    for (int i = 0; i < job->options.ranks; i++)
        count += job->rank[i].state == state;
    return count;
}

static void count_failure(struct job *job, const struct rank *r)
{
    job->failed++;
    if (WIFSIGNALED(r->status) && !job->first_signal)
        job->first_signal = WTERMSIG(r->status);
    bool replaced_too_late = r->starts > 1 && job->finished;
    if (WIFEXITED(r->status) && !job->first_failure && !replaced_too_late)
        job->first_failure = WEXITSTATUS(r->status);
    int left = job->options.ranks - job->failed;
    if (!job->ending && left < job->options.min_ranks && left > 0) {
        say(job, "%d of %d ranks are left, fewer than --min-ranks %d: ending the job", left, job->options.ranks,
            job->options.min_ranks);
        end_job(job, SIGTERM, ENDED_BY_US);
    }
}

/* A program that cannot be executed will not be executable the next time. Once a rank has finished, nobody new comes. */
static bool may_restart(const struct job *job, const struct rank *r)
{
    bool hopeless = WIFEXITED(r->status) && WEXITSTATUS(r->status) >= 126;
    return r->starts <= job->options.restarts && !job->ending && !job->finished && !hopeless;
}

static uint64_t restart_delay_ns(struct rank *r)
{
    bool quick = clock_ns() - r->started_ns < QUICK_DEATH_S * SECOND_NS;
    r->quick_deaths = quick ? r->quick_deaths + 1 : 0;
    if (r->quick_deaths <= 1)
        return 0;
    uint32_t doublings = r->quick_deaths < 8 ? r->quick_deaths - 2 : 6;
    uint64_t delay_ns = (uint64_t)FIRST_DELAY_NS << doublings;
    return delay_ns < MAX_DELAY_NS ? delay_ns : MAX_DELAY_NS;
}

static void rank_failed(struct job *job, int32_t rank)
{
    struct rank *r = &job->rank[rank];
    char end[64];
    describe_end(r->status, end, sizeof end);
    if (may_restart(job, r)) {
        r->state = RANK_WAITING;
        r->start_at_ns = clock_ns() + restart_delay_ns(r);
        say(job, "rank %d (process %d) %s; it is started again", rank, (int)r->pid, end);
        return;
    }
    r->state = RANK_ENDED;
    if (!job->ending)
        say(job, "rank %d (process %d) %s; %d of %d ranks go on", rank, (int)r->pid, end,
            ranks_in(job, RANK_RUNNING) + ranks_in(job, RANK_WAITING), job->options.ranks);
    count_failure(job, r);
}

/* A rank that waited to be started again would only find that the others have gone. */
static void cancel_restarts(struct job *job)
{
    for (int i = 0; i < job->options.ranks; i++)
        if (job->rank[i].state == RANK_WAITING) {
            job->rank[i].state = RANK_ENDED;
            count_failure(job, &job->rank[i]);
        }
}

static void rank_exited(struct job *job, int32_t rank, int status)
{
    struct rank *r = &job->rank[rank];
    r->status = status;
    r->exited_ns = clock_ns();
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        r->state = RANK_ENDED;
        job->finished++;
        cancel_restarts(job);
        return;
    }
    rank_failed(job, rank);
}

static int32_t rank_of(const struct job *job, pid_t pid)
{
    for (int i = 0; i < job->options.ranks; i++)
        if (job->rank[i].state == RANK_RUNNING && job->rank[i].pid == pid)
            return i;
    return -1;
}

/* What a rank started ends with it: its group is killed while its own number, not reaped yet, cannot be used anew. */
static void reap(struct job *job)
{
    siginfo_t info = {.si_pid = 0};
    while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid) {
        int status;
        pid_t pid = info.si_pid;
        int32_t rank = rank_of(job, pid);
        if (rank >= 0)
            process_signal(pid, SIGKILL);
        if (waitpid(pid, &status, 0) == pid && rank >= 0)
            rank_exited(job, rank, status);
        info.si_pid = 0;
    }
}

/* ---- deadlines ---- */

static bool is_late(const struct job *job, const struct rank *r)
{
    uint64_t timeout_ns = job->options.start_timeout_ns;
    return r->state == RANK_RUNNING && timeout_ns && atomic_load(&r->arrived) == r->arrived_before &&
           clock_ns() >= r->started_ns + timeout_ns;
}

static void name_late_ranks(struct job *job)
{
    char names[400] = "";
    size_t used = 0;
    for (int i = 0; i < job->options.ranks && used + 40 < sizeof names; i++)
        if (is_late(job, &job->rank[i]))
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%d (process %d)", used ? ", " : "", i,
                                     (int)job->rank[i].pid);
    say(job, "rank %s did not arrive within %llu s: ending the job", names,
        (unsigned long long)(job->options.start_timeout_ns / SECOND_NS));
}

/* A rank that is missing from the beginning keeps all others waiting; one that was started again keeps nobody. */
static void check_arrivals(struct job *job)
{
    for (int i = 0; i < job->options.ranks && !job->ending; i++) {
        struct rank *r = &job->rank[i];
        if (!is_late(job, r))
            continue;
        if (r->starts == 1) {
            name_late_ranks(job);
            end_job(job, SIGTERM, ENDED_BY_US);
            return;
        }
        say(job, "rank %d (process %d), started again, did not arrive: killed", i, (int)r->pid);
        process_signal(r->pid, SIGKILL);
        r->started_ns = clock_ns(); /* once is enough */
    }
}

static bool streams_closed(const struct rank *r)
{
    return r->source[0].fd < 0 && r->source[1].fd < 0;
}

/* What the last process printed goes out before its successor begins. */
static void start_waiting(struct job *job)
{
    for (int i = 0; i < job->options.ranks; i++) {
        struct rank *r = &job->rank[i];
        if (r->state == RANK_WAITING && clock_ns() >= r->start_at_ns && streams_closed(r))
            start_rank(job, i);
    }
}

/* A pipe that stays open after its process is held by something that has left the rank's group: it is not waited for. */
static void close_held_streams(struct job *job)
{
    for (int i = 0; i < job->options.ranks; i++) {
        struct rank *r = &job->rank[i];
        if (r->state == RANK_RUNNING || streams_closed(r) || clock_ns() < r->exited_ns + DRAIN_NS)
            continue;
        for (int s = 0; s < STREAMS; s++)
            if (relay_source_poll(&r->source[s]).fd >= 0 && !relay_read(&r->source[s]))
                relay_finish(&r->source[s]);
    }
}

static void check_deadlines(struct job *job)
{
    if (job->ending && clock_ns() >= job->kill_at_ns)
        signal_ranks(job, SIGKILL);
    if (!job->ending)
        check_arrivals(job);
    start_waiting(job);
    close_held_streams(job);
}

static void earlier(uint64_t *first_ns, uint64_t other_ns)
{
    if (other_ns < *first_ns)
        *first_ns = other_ns;
}

static int wait_ms(const struct job *job)
{
    uint64_t now_ns = clock_ns(), first_ns = now_ns + POLL_MAX_MS * UINT64_C(1000000);
    if (job->ending && ranks_in(job, RANK_RUNNING))
        earlier(&first_ns, job->kill_at_ns);
    for (int i = 0; i < job->options.ranks; i++) {
        const struct rank *r = &job->rank[i];
        if (r->state == RANK_WAITING)
            earlier(&first_ns, r->start_at_ns);
        if (r->state == RANK_RUNNING && job->options.start_timeout_ns && !job->ending)
            earlier(&first_ns, atomic_load(&r->arrived) == r->arrived_before
                                   ? r->started_ns + job->options.start_timeout_ns
                                   : UINT64_MAX);
        if (r->state != RANK_RUNNING && !streams_closed(r))
            earlier(&first_ns, r->exited_ns + DRAIN_NS);
    }
    return first_ns > now_ns ? (int)((first_ns - now_ns) / 1000000 + 1) : 1;
}

/* ---- the loop ---- */

static void wait_for_work(struct job *job)
{
    struct pollfd fds[1 + STREAMS + STREAMS * MUSTER_MAX_RANKS];
    nfds_t count = 0;
    fds[count++] = (struct pollfd){.fd = job->signals, .events = POLLIN};
    for (int s = 0; s < STREAMS; s++)
        fds[count++] = relay_sink_poll(&job->sink[s]);
    for (int i = 0; i < job->options.ranks; i++)
        for (int s = 0; s < STREAMS; s++)
            if (job->rank[i].source[s].fd >= 0)
                fds[count++] = relay_source_poll(&job->rank[i].source[s]);
    poll(fds, count, wait_ms(job));
}

static void relay_all(struct job *job)
{
    for (int i = 0; i < job->options.ranks; i++)
        for (int s = 0; s < STREAMS; s++)
            relay_read(&job->rank[i].source[s]);
    for (int s = 0; s < STREAMS; s++)
        relay_write(&job->sink[s]);
    if (job->sink[0].closed && !job->ending)
        end_job(job, SIGTERM, 128 + SIGPIPE); /* nobody reads what the job prints, as in `... | head` */
}

static bool work_is_left(const struct job *job)
{
    if (ranks_in(job, RANK_ENDED) < job->options.ranks)
        return true;
    for (int i = 0; i < job->options.ranks; i++)
        if (!streams_closed(&job->rank[i]))
            return true;
    return !relay_empty(&job->sink[0]) || !relay_empty(&job->sink[1]);
}

static int exit_status(const struct job *job)
{
    if (job->ended_status)
        return job->ended_status;
    if (job->first_failure)
        return job->first_failure;
    if (job->finished)
        return 0;
    return job->first_signal ? 128 + job->first_signal : ENDED_BY_US;
}

/*
 * Once the grace of an ending job is over, what is still to print is not waited for, and what a SIGKILL does not end not
 * for long.
 */
static bool patience_is_over(struct job *job)
{
    uint64_t now_ns = clock_ns();
    if (!job->ending || now_ns < job->kill_at_ns)
        return false;
    int running = ranks_in(job, RANK_RUNNING);
    if (running && now_ns >= job->kill_at_ns + GIVE_UP_NS)
        fprintf(stderr, "muster run: %d ranks do not exit, although they were killed\n", running);
    return !running || now_ns >= job->kill_at_ns + GIVE_UP_NS;
}

static int supervise(struct job *job)
{
    for (int i = 0; i < job->options.ranks && !job->ending; i++)
        if (!start_rank(job, i))
            end_job(job, SIGTERM, ENDED_BY_US);
    while (work_is_left(job)) {
        wait_for_work(job);
        take_signals(job);
        reap(job);
        relay_all(job);
        check_deadlines(job);
        if (patience_is_over(job))
            break;
    }
    process_sweep(SWEEP_NS);
    return exit_status(job);
}

/* ---- set-up ---- */

/* On the store's thread. Any event of an incarnation means that it has arrived. */
static void note_event(void *context, int32_t rank, uint32_t incarnation, const char *what)
{
    struct job *job = context;
    (void)what;
    atomic_store(&job->rank[rank].arrived, incarnation);
}

/* A descriptor of ours must not become a rank's stdin, stdout or stderr because those were closed here. */
static void open_standard_streams(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

static bool is_ignored(int signal)
{
    struct sigaction action;
    return sigaction(signal, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

/* Before the store's thread starts, which inherits the mask: all signals come through the descriptor. */
static int open_signals(struct job *job)
{
    static const int wanted[] = {SIGINT, SIGTERM, SIGQUIT, SIGCHLD, SIGTSTP};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        sigaddset(&set, wanted[i]);
    if (!is_ignored(SIGHUP)) /* nohup */
        sigaddset(&set, SIGHUP);
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_BLOCK, &set, &job->mask);
    job->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return job->signals;
}

static muster_status open_store(struct job *job)
{
    struct store_server_config config = {.ranks = job->options.ranks, .on_event = note_event, .context = job};
    muster_status status = store_server_create(&config, &job->server);
    return status == MUSTER_OK ? store_server_start_thread(job->server) : status;
}

static struct job *job_create(const struct options *options)
{
    struct job *job = calloc(1, sizeof *job);
    if (!job)
        return NULL;
    job->options = *options;
    for (int s = 0; s < STREAMS; s++)
        job->sink[s].fd = STDOUT_FILENO + s;
    for (int i = 0; i < MUSTER_MAX_RANKS; i++)
        job->rank[i].source[0].fd = job->rank[i].source[1].fd = -1;
    return job;
}

static int run(const struct options *options)
{
    open_standard_streams();
    struct job *job = job_create(options);
    if (!job || open_signals(job) < 0) {
        perror("muster run");
        free(job);
        return ENDED_BY_US;
    }
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* what a rank leaves behind comes to us */
    int status = ENDED_BY_US;
    if (open_store(job) == MUSTER_OK)
        status = supervise(job);
    else
        fprintf(stderr, "muster run: %s\n", muster_last_error());
    store_server_destroy(job->server);
    close(job->signals);
    free(job);
    return status;
}

int tool_run(int argc, char **argv)
{
    struct options options = {.min_ranks = 1,
                              .start_timeout_ns = config_number(CONFIG_START_TIMEOUT_US) * 1000,
                              .grace_ns = 5 * SECOND_NS,
                              .prefix = true};
    char text[sizeof text_before + sizeof text_after];
    snprintf(text, sizeof text, "%s%s", text_before, text_after);
    struct argp parser = {.options = option_table,
                          .parser = parse_option,
                          .args_doc = "[--] PROGRAM [ARGUMENT...]",
                          .doc = text};
    argp_parse(&parser, argc, argv, ARGP_IN_ORDER, NULL, &options);
    return run(&options);
}
