// SPDX-License-Identifier: Apache-2.0
#include "lib/crew.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "control/store_server.h"
#include "core/clock.h"
#include "core/fault.h"
#include "lib/pace.h"

static const struct exchange_case crew_cases[] = {
    {.name = "exact", .hidden = 32, .max_tokens = 6, .slots = 2, .topk = 3, .tokens = TOKENS_FULL, .ids64 = 1},
    {.name = "rank-major in place",
     .hidden = 24,
     .max_tokens = 6,
     .slots = 2,
     .topk = 3,
     .layout = MUSTER_EP_RANK_MAJOR,
     .combine = MUSTER_EP_REDUCED,
     .in_place = 1,
     .ids64 = 1},
    {.name = "flat in place",
     .hidden = 24,
     .max_tokens = 6,
     .slots = 2,
     .topk = 3,
     .layout = MUSTER_EP_FLAT,
     .combine = MUSTER_EP_REDUCED,
     .in_place = 1,
     .ids64 = 1},
    {.name = "fp8 in halves",
     .hidden = 136,
     .max_tokens = 5,
     .slots = 2,
     .topk = 4,
     .quantise = MUSTER_EP_QUANTISE_FP8,
     .halves = 1,
     .ids64 = 1},
    {.name = "reduced with payloads",
     .hidden = 16,
     .max_tokens = 7,
     .slots = 3,
     .topk = 2,
     .combine = MUSTER_EP_REDUCED,
     .payloads = 2,
     .payload = {{3, {MUSTER_TYPE_INT, 32, 1}}, {1, {MUSTER_TYPE_UINT, 64, 1}}},
     .load_stats = 1,
     .ids64 = 1},
};

const struct exchange_case *crew_case(int number)
{
    return &crew_cases[(unsigned)number % (sizeof(crew_cases) / sizeof(crew_cases[0]))];
}

bool crew_fail(struct crew *crew, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (!crew->why[0])
        vsnprintf(crew->why, sizeof(crew->why), format, arguments);
    va_end(arguments);
    return false;
}

bool crew_open(struct crew *crew, int ranks, const char *program, int stretch)
{
    struct store_server_config config = {.ranks = ranks, .lease_us = PACE_PATIENCE_MS * 1000};
    memset(crew, 0, sizeof(*crew));
    crew->ranks = ranks;
    crew->stretch = stretch;
    crew->program = program;
    for (int r = 0; r < CREW_MAX; r++)
        crew->member[r].link = crew->member[r].list = -1;
    if (store_server_create(&config, &crew->server) != MUSTER_OK)
        return crew_fail(crew, "no store: %s", muster_last_error());
    return true;
}

/* ---- starting a rank ---- */

static void child_keep(int fd)
{
    fcntl(fd, F_SETFD, 0);
}

__attribute__((noreturn)) static void child_run(const struct crew *crew, int rank, int case_number, const char *fault,
                                                bool manual, const int fds[3])
{
    char number[6][16], list[16];
    const int values[6] = {rank, crew->ranks, fds[0], fds[1], case_number, crew->stretch};
    for (int i = 0; i < 6; i++)
        snprintf(number[i], sizeof(number[i]), "%d", values[i]);
    snprintf(list, sizeof(list), "%d", fds[2]);
    for (int i = 0; i < 3; i++)
        child_keep(fds[i]);
    setenv("MUSTER_FAULT_LIST", list, 1);
    setenv("MUSTER_LOG", "error", 0);
    if (fault)
        setenv("MUSTER_FAULT", fault, 1);
    execl(crew->program, crew->program, number[0], number[1], number[2], number[3], number[4], number[5],
          manual ? "manual" : (char *)NULL, (char *)NULL);
    fprintf(stderr, "crew: cannot run %s: %s\n", crew->program, strerror(errno));
    _exit(127);
}

static void close_open(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

bool crew_start(struct crew *crew, int rank, int case_number, const char *fault, bool manual)
{
    struct crew_member *m = &crew->member[rank];
    int link[2], list[2], store = store_server_connect(crew->server);
    close_open(&m->link);
    close_open(&m->list);
    if (store < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, link) != 0 || pipe2(list, O_CLOEXEC) != 0)
        return crew_fail(crew, "no descriptors: %s", strerror(errno));
    uint64_t reached = m->reached;
    *m = (struct crew_member){.link = link[0], .list = list[0], .reached = reached};
    fflush(NULL);
    m->pid = fork();
    if (m->pid == 0)
        child_run(crew, rank, case_number, fault, manual, (const int[3]){store, link[1], list[1]});
    close(store);
    close(link[1]);
    close(list[1]);
    fcntl(list[0], F_SETFL, O_NONBLOCK);
    return m->pid > 0 || crew_fail(crew, "fork: %s", strerror(errno));
}

/* ---- hearing the ranks ---- */

/* Promise 3, across processes: one mask per epoch. */
static void crew_note_view(struct crew *crew, int rank, uint32_t epoch, uint64_t mask)
{
    for (int i = 0; i < crew->epochs; i++)
        if (crew->view[i].epoch == epoch) {
            if (crew->view[i].mask != mask)
                crew_fail(crew, "epoch %u has mask %llx and, for rank %d, %llx", epoch,
                          (unsigned long long)crew->view[i].mask, rank, (unsigned long long)mask);
            return;
        }
    if (crew->epochs == CREW_EPOCHS) {
        crew_fail(crew, "more than %d epochs", CREW_EPOCHS);
        return;
    }
    crew->view[crew->epochs].epoch = epoch;
    crew->view[crew->epochs++].mask = mask;
}

static void crew_hear(struct crew *crew, int rank, const char *text)
{
    struct crew_member *m = &crew->member[rank];
    unsigned epoch;
    unsigned long long mask;
    if (sscanf(text, "good %u %llx", &epoch, &mask) == 2) {
        if (epoch <= m->good_epoch)
            crew_fail(crew, "rank %d went from epoch %u to %u", rank, m->good_epoch, epoch);
        m->good_epoch = epoch;
        m->good_mask = mask;
        crew_note_view(crew, rank, epoch, mask);
    } else if (strcmp(text, "created") == 0) {
        m->created = true;
    } else if (strcmp(text, "armed") == 0) {
        m->armed = true;
    } else {
        snprintf(m->said, sizeof(m->said), "%s", text);
        if (strncmp(text, "wrong", 5) == 0)
            crew_fail(crew, "rank %d: %s", rank, text);
    }
}

static void crew_read_link(struct crew *crew, int rank)
{
    struct crew_member *m = &crew->member[rank];
    char text[CREW_MESSAGE];
    while (m->link >= 0) {
        ssize_t bytes = recv(m->link, text, CREW_MESSAGE - 1, MSG_DONTWAIT);
        if (bytes < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (bytes <= 0) {
            close_open(&m->link);
            return;
        }
        text[bytes] = 0;
        crew_hear(crew, rank, text);
    }
}

static void crew_note_point(struct crew_member *m, const char *name)
{
    for (int p = FAULT_NONE + 1; p < FAULT_POINTS; p++)
        if (strcmp(fault_name((enum fault_point)p), name) == 0)
            m->reached |= UINT64_C(1) << p;
}

/* A line is written at once, so it is read whole. */
static void crew_read_list(struct crew_member *m)
{
    char text[4096];
    while (m->list >= 0) {
        ssize_t bytes = read(m->list, text, sizeof(text) - 1);
        if (bytes < 0)
            return;
        if (bytes == 0) {
            close_open(&m->list);
            return;
        }
        text[bytes] = 0;
        char *rest = text;
        for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
            crew_note_point(m, line);
    }
}

static void crew_reap(struct crew *crew)
{
    for (int r = 0; r < crew->ranks; r++) {
        struct crew_member *m = &crew->member[r];
        int status;
        if (m->pid <= 0 || waitpid(m->pid, &status, WNOHANG | WUNTRACED | WCONTINUED) != m->pid)
            continue;
        m->stopped = WIFSTOPPED(status);
        if (m->stopped || WIFCONTINUED(status))
            continue;
        m->pid = 0;
        m->exited = true;
        m->exit_status = status;
    }
}

/* ---- the event loop ---- */

void crew_signal(struct crew *crew, int rank, int signal)
{
    if (crew->member[rank].pid > 0)
        kill(crew->member[rank].pid, signal);
}

static int crew_poll_set(const struct crew *crew, struct pollfd *set)
{
    int count = 0;
    if (!crew->store_pause_ns)
        set[count++] = (struct pollfd){.fd = store_server_fd(crew->server), .events = POLLIN};
    for (int r = 0; r < crew->ranks; r++) {
        if (crew->member[r].link >= 0)
            set[count++] = (struct pollfd){.fd = crew->member[r].link, .events = POLLIN};
        if (crew->member[r].list >= 0)
            set[count++] = (struct pollfd){.fd = crew->member[r].list, .events = POLLIN};
    }
    return count;
}

static void crew_hold(struct crew *crew, int signal)
{
    for (int r = 0; r < crew->favourite; r++)
        crew_signal(crew, r, signal);
}

/* Who sees the store's answer and is not held acts on it; the others' acts come too late for the next answer. */
static void crew_serve_slowly(struct crew *crew)
{
    const struct crew_member *first = &crew->member[crew->favourite];
    struct timespec moment = {0, 1000000};
    crew_hold(crew, SIGSTOP);
    store_server_poll(crew->server);
    for (int ms = 0; ms < crew->hold_ms && crew->favourite > 0 && first->pid > 0 && !first->stopped; ms++) {
        nanosleep(&moment, NULL);
        crew_reap(crew);
    }
    crew_hold(crew, SIGCONT);
    crew_reap(crew);
    crew->store_next_ns = clock_ns() + crew->store_pause_ns;
}

static void crew_serve_store(struct crew *crew)
{
    if (!crew->store_pause_ns)
        store_server_poll(crew->server);
    else if (clock_ns() >= crew->store_next_ns)
        crew_serve_slowly(crew);
}

static void crew_turn(struct crew *crew)
{
    struct pollfd set[1 + 2 * CREW_MAX];
    int count = crew_poll_set(crew, set);
    poll(set, (nfds_t)count, 2); /* short: children that end without a word are noticed soon */
    crew_serve_store(crew);
    for (int r = 0; r < crew->ranks; r++) {
        crew_read_link(crew, r);
        crew_read_list(&crew->member[r]);
    }
    crew_reap(crew);
}

bool crew_await(struct crew *crew, crew_condition *done, void *context, int limit_ms)
{
    struct pace pace = pace_begin();
    while (!crew->why[0]) {
        if (done(crew, context))
            return true;
        if (pace_over(&pace, limit_ms))
            return false;
        crew_turn(crew);
    }
    return false;
}

void crew_serve(struct crew *crew, int ms)
{
    struct pace pace = pace_begin();
    while (!crew->why[0] && pace_wall_ms(&pace) < ms)
        crew_turn(crew);
}

void crew_tell(struct crew *crew, int rank, const char *text)
{
    struct crew_member *m = &crew->member[rank];
    m->armed = false;
    if (m->link >= 0)
        send(m->link, text, strlen(text), MSG_NOSIGNAL);
}

bool crew_was_killed(const struct crew *crew, int rank)
{
    const struct crew_member *m = &crew->member[rank];
    return m->exited && WIFSIGNALED(m->exit_status) && WTERMSIG(m->exit_status) == SIGKILL;
}

bool crew_exited_with(const struct crew *crew, int rank, int status)
{
    const struct crew_member *m = &crew->member[rank];
    return m->exited && WIFEXITED(m->exit_status) && WEXITSTATUS(m->exit_status) == status;
}

/* ---- the end ---- */

static bool crew_all_exited(const struct crew *crew, void *context)
{
    (void)context;
    for (int r = 0; r < crew->ranks; r++)
        if (crew->member[r].pid > 0)
            return false;
    return true;
}

bool crew_close(struct crew *crew)
{
    char first[sizeof(crew->why)];
    memcpy(first, crew->why, sizeof(first));
    for (int r = 0; r < crew->ranks; r++)
        crew_signal(crew, r, SIGKILL);
    crew->why[0] = 0;
    bool gone = crew_await(crew, crew_all_exited, NULL, 5000);
    for (int r = 0; r < crew->ranks; r++) {
        close_open(&crew->member[r].link);
        close_open(&crew->member[r].list);
    }
    store_server_destroy(crew->server);
    memcpy(crew->why, first, sizeof(first));
    if (!gone)
        crew_fail(crew, "a process survived SIGKILL");
    if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD)
        crew_fail(crew, "a child process is left");
    return !crew->why[0];
}
