// SPDX-License-Identifier: Apache-2.0
/*
 * `muster run`: starts the ranks of a program, hosts their store, passes on what they print, starts them again, ends
 * them. The store has a thread of its own, so neither a slow terminal nor a busy rank keeps it from answering.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/config.h"
#include "inherited.h"
#include "launch.h"
#include "process.h"
#include "tool.h"

#define SECOND_NS UINT64_C(1000000000)
#define SWEEP_NS (2 * SECOND_NS)
#define PAUSE_NS (SECOND_NS / 2) /* who comes later than this did not wait for a core, but did not run */

enum { DEFAULT_RESTARTS = 10 };

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
    "\vEach rank finds its number in MUSTER_RANK, the number of ranks in MUSTER_RANKS, and in MUSTER_STORE two ways to "
    "the store: an inherited descriptor, and a name for where that was closed. Its standard input is empty. SIGINT, "
    "SIGTERM, SIGHUP and SIGQUIT are passed on to the ranks; those that are still there after the grace are killed.\n\n"
    "Exit status, judged by the last process of each rank:\n"
    "  0        at least one rank exited with 0, and none with another status; deaths by signal that others outlived "
    "are reported, but do not count\n"
    "  N        the first status other than 0 that a rank exited with (127: program not found); a rank that was "
    "started again and fails after another rank has finished does not count; or the status of one that failed before "
    "the group was formed, which ended the job\n"
    "  128 + S  every rank died by a signal (S: the first one), or a signal S ended the job\n"
    "  1        the job was ended: a rank did not arrive, or finished with 0 before the group was formed, or fewer "
    "than M ranks were left; or all went well, but what was printed could not all be written (a full disk)\n"
    "  2        wrong usage";

static void set_respawn(struct argp_state *state, struct launch_options *o, const char *text)
{
    o->restarts = text ? (uint32_t)tool_number(state, "respawn", text, 1, 1000000) : DEFAULT_RESTARTS;
}

static error_t check_options(struct argp_state *state, const struct launch_options *o)
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
    struct launch_options *o = state->input;
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

/* ---- the loop ---- */

static void take_signals(struct launch *launch)
{
    struct signalfd_siginfo info;
    while (read(launch->signals, &info, sizeof info) == (ssize_t)sizeof info)
        launch_signal(launch, (int)info.ssi_signo);
}

/*
 * A launcher that was stopped, or a job that was paused as a whole, has not given the ranks their time: nobody has heard
 * them. The whole turn counts as the pause: that is too much by what it was to wait.
 */
static void note_pause(struct launch *launch, uint64_t wait_ns)
{
    uint64_t now_ns = clock_ns(), turn_ns = now_ns - launch->turned_ns;
    launch->turned_ns = now_ns;
    if (turn_ns > wait_ns + PAUSE_NS)
        launch_was_paused(launch, turn_ns);
}

static void wait_for_work(struct launch *launch)
{
    struct pollfd fds[1 + LAUNCH_STREAMS + LAUNCH_STREAMS * MUSTER_MAX_RANKS];
    nfds_t count = 0;
    fds[count++] = (struct pollfd){.fd = launch->signals, .events = POLLIN};
    for (int s = 0; s < LAUNCH_STREAMS; s++)
        fds[count++] = relay_sink_poll(&launch->sink[s]);
    for (int i = 0; i < launch->options.ranks; i++)
        for (int s = 0; s < LAUNCH_STREAMS; s++)
            if (launch->rank[i].source[s].fd >= 0)
                fds[count++] = relay_source_poll(&launch->rank[i].source[s]);
    int wait_ms = launch_wait_ms(launch);
    poll(fds, count, wait_ms);
    note_pause(launch, (uint64_t)wait_ms * 1000000);
}

static void relay_all(struct launch *launch)
{
    for (int i = 0; i < launch->options.ranks; i++)
        for (int s = 0; s < LAUNCH_STREAMS; s++)
            relay_read(&launch->rank[i].source[s]);
    for (int s = 0; s < LAUNCH_STREAMS; s++)
        relay_write(&launch->sink[s]);
    if (launch->sink[0].closed && !launch->ending)
        launch_end(launch, SIGTERM, 128 + SIGPIPE); /* nobody reads what the job prints, as in `... | head` */
    launch_tell_losses(launch);
}

static bool work_is_left(const struct launch *launch)
{
    if (launch_ranks_in(launch, RANK_ENDED) < launch->options.ranks)
        return true;
    for (int i = 0; i < launch->options.ranks; i++)
        if (!launch_streams_closed(&launch->rank[i]))
            return true;
    return !relay_empty(&launch->sink[0]) || !relay_empty(&launch->sink[1]);
}

/* A program that goes on in the background is ended here, which must not look like its own doing. */
static void sweep(void)
{
    int swept = process_sweep(SWEEP_NS);
    if (swept > 0)
        fprintf(stderr, "muster run: processes that ranks had left behind were killed: %d\n", swept);
    if (swept < 0)
        fputs("muster run: processes that ranks left behind go on: without /proc they cannot be found\n", stderr);
}

static int supervise(struct launch *launch)
{
    for (int i = 0; i < launch->options.ranks && !launch->ending; i++)
        if (!launch_start(launch, i))
            launch_end(launch, SIGTERM, LAUNCH_ENDED_BY_US);
    while (work_is_left(launch)) {
        wait_for_work(launch);
        take_signals(launch);
        launch_reap(launch);
        relay_all(launch);
        launch_check(launch);
        if (launch_is_over(launch))
            break;
    }
    sweep();
    return launch_status(launch);
}

/* ---- set-up ---- */

/* NULL, or why a process that goes on is killed. One that is gone is fenced for the same reason for which it has gone. */
static const char *fault_in(const struct launch *launch, int32_t rank, const char *what)
{
    if (strcmp(what, "has closed its connection") == 0)
        return "since it closed its connection to the store without leaving its group";
    if (strcmp(what, "is to be fenced") == 0 && store_server_present(launch->server, rank))
        return "since the others waited too long for it";
    return NULL;
}

/* On the store's thread. Any event of an incarnation means that it has arrived. */
static void note_event(void *context, int32_t rank, uint32_t incarnation, const char *what)
{
    struct launch *launch = context;
    struct launch_rank *r = &launch->rank[rank];
    atomic_store(&r->arrived, incarnation);
    const char *fault = fault_in(launch, rank, what);
    if (!fault)
        return;
    atomic_store(&r->fault, fault);
    atomic_store(&r->faulty, incarnation);
}

static bool is_ignored(int signal)
{
    struct sigaction action;
    return sigaction(signal, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

/* Before the store's thread starts, which inherits the mask: all signals come through the descriptor. */
static int open_signals(struct launch *launch)
{
    static const int wanted[] = {SIGINT, SIGTERM, SIGQUIT, SIGCHLD, SIGTSTP, SIGTTOU};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        sigaddset(&set, wanted[i]);
    if (!is_ignored(SIGHUP)) /* nohup */
        sigaddset(&set, SIGHUP);
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_BLOCK, &set, &launch->mask);
    launch->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return launch->signals;
}

/*
 * A second way to the store, for ranks behind something that closes inherited descriptors. The name cannot be
 * guessed, and other users are refused. Without it the job runs as well as it can.
 */
static void listen_too(struct launch *launch)
{
    uint64_t random[2];
    if (getrandom(random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random)
        return;
    snprintf(launch->store_name, sizeof launch->store_name, "muster-%016llx%016llx", (unsigned long long)random[0],
             (unsigned long long)random[1]);
    if (store_server_listen(launch->server, launch->store_name) == MUSTER_OK)
        return;
    fprintf(stderr, "muster run: %s; ranks can only come by the descriptor that they inherit\n", muster_last_error());
    launch->store_name[0] = 0;
}

static bool make_room(const struct launch *launch)
{
    char text[200];
    int32_t streams = launch->options.prefix ? LAUNCH_STREAMS : 0;
    int32_t second_ways = 1; /* a rank's first connection stays open when it comes by the listener */
    if (inherited_make_room(launch->options.ranks, streams + second_ways, text, sizeof text))
        return true;
    fprintf(stderr, "muster run: %s\n", text);
    return false;
}

static muster_status open_store(struct launch *launch)
{
    struct store_server_config config = {.ranks = launch->options.ranks, .on_event = note_event, .context = launch};
    muster_status status = store_server_create(&config, &launch->server);
    if (status != MUSTER_OK)
        return status;
    listen_too(launch);
    return store_server_start_thread(launch->server);
}

static struct launch *launch_create(const struct launch_options *options)
{
    struct launch *launch = calloc(1, sizeof *launch);
    if (!launch)
        return NULL;
    launch->options = *options;
    launch->turned_ns = clock_ns();
    for (int s = 0; s < LAUNCH_STREAMS; s++)
        relay_sink_open(&launch->sink[s], STDOUT_FILENO + s);
    for (int i = 0; i < MUSTER_MAX_RANKS; i++)
        launch->rank[i].source[0].fd = launch->rank[i].source[1].fd = -1;
    return launch;
}

static int run(const struct launch_options *options)
{
    struct launch *launch = launch_create(options);
    if (launch && !make_room(launch)) {
        free(launch);
        return LAUNCH_ENDED_BY_US;
    }
    if (!launch || open_signals(launch) < 0) {
        perror("muster run");
        free(launch);
        return LAUNCH_ENDED_BY_US;
    }
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* what a rank leaves behind comes to us */
    int status = LAUNCH_ENDED_BY_US;
    if (open_store(launch) == MUSTER_OK)
        status = supervise(launch);
    else
        fprintf(stderr, "muster run: %s\n", muster_last_error());
    store_server_destroy(launch->server);
    close(launch->signals);
    free(launch);
    return status;
}

int tool_run(int argc, char **argv)
{
    struct launch_options options = {.min_ranks = 1,
                                     .start_timeout_ns = clock_ns_of_us(config_number(CONFIG_START_TIMEOUT_US)),
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
