// SPDX-License-Identifier: Apache-2.0
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/store_server.h"
#include "core/clock.h"
#include "inherited.h"

extern char **environ;

enum { VARIABLES = 3, VARIABLE_BYTES = 128, NOT_FOUND = 127, NOT_EXECUTABLE = 126, SWEEP_STEP_MS = 5 };

/* ---- environment ---- */

/* What tells a rank who it is; those of an outer `muster run` are left out. */
static const char *const variables[VARIABLES] = {"MUSTER_RANK=", "MUSTER_RANKS=", "MUSTER_STORE="};

static int is_ours(const char *entry)
{
    for (int i = 0; i < VARIABLES; i++)
        if (strncmp(entry, variables[i], strlen(variables[i])) == 0)
            return 1;
    return 0;
}

/* One allocation: the list, then the text of our variables. Made before the fork, since the child may not allocate. */
static char **make_environment(const struct process_plan *plan)
{
    size_t count = 0, used = 0;
    while (environ[count])
        count++;
    char **list = malloc((count + VARIABLES + 1) * sizeof *list + VARIABLES * VARIABLE_BYTES);
    if (!list)
        return NULL;
    for (size_t i = 0; i < count; i++)
        if (!is_ours(environ[i]))
            list[used++] = environ[i];
    char *text = (char *)(list + count + VARIABLES + 1);
    for (int i = 0; i < VARIABLES; i++)
        list[used + (size_t)i] = text + i * VARIABLE_BYTES;
    snprintf(list[used++], VARIABLE_BYTES, "%s%d", variables[0], plan->rank);
    snprintf(list[used++], VARIABLE_BYTES, "%s%d", variables[1], plan->ranks);
    snprintf(list[used++], VARIABLE_BYTES, "%sfd:%d%s%s", variables[2], plan->store, plan->store_name ? ",unix:@" : "",
             plan->store_name ? plan->store_name : "");
    list[used] = NULL;
    return list;
}

/* ---- the child, between fork and exec: nothing here allocates ---- */

static void child_take_streams(const struct process_plan *plan)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (plan->in > 0)
        dup2(plan->in, STDIN_FILENO);
    else if (null >= 0)
        dup2(null, STDIN_FILENO);
    if (plan->out >= 0)
        dup2(plan->out, STDOUT_FILENO);
    if (plan->err >= 0)
        dup2(plan->err, STDERR_FILENO);
    if (plan->store >= 0)
        fcntl(plan->store, F_SETFD, 0);
}

/*
 * What a shell has us ignore in the background is for the launcher; that it passes a signal on must have effect. For a
 * terminal the rank's process group is one in the background: it would be stopped for a word that it writes there, or reads.
 */
static void child_take_signals(const struct process_plan *plan)
{
    signal(SIGTTOU, SIG_IGN);
    signal(SIGTTIN, SIG_IGN);
    static const int restored[] = {SIGPIPE, SIGXFSZ, SIGINT, SIGQUIT, SIGTERM};
    for (size_t i = 0; i < sizeof restored / sizeof *restored; i++)
        signal(restored[i], SIG_DFL);
    sigprocmask(SIG_SETMASK, &plan->mask, NULL);
}

/* If the launcher died before the request to die with it, its death is seen by the parent being another one. */
static void child_tie_to(pid_t launcher)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != launcher)
        _exit(NOT_EXECUTABLE);
}

static void child_run(const struct process_plan *plan, char **environment, pid_t launcher)
{
    child_tie_to(launcher);
    setpgid(0, 0);
    child_take_streams(plan);
    child_take_signals(plan);
    inherited_give_back_descriptors();
    execvpe(plan->arguments[0], plan->arguments, environment);
    int error = errno;
    dprintf(STDERR_FILENO, "cannot execute %s: %s\n", plan->arguments[0], strerror(error));
    _exit(error == ENOENT ? NOT_FOUND : NOT_EXECUTABLE);
}

pid_t process_start(const struct process_plan *plan)
{
    char **environment = make_environment(plan);
    if (!environment)
        return -1;
    pid_t launcher = getpid();
    pid_t pid = fork();
    if (pid == 0)
        child_run(plan, environment, launcher);
    int saved = errno;
    free(environment);
    if (pid > 0)
        setpgid(pid, pid); /* here too, so that a signal to the group cannot come before there is one */
    errno = saved;
    return pid;
}

/* A file that was removed or replaced since is still there for us and for what we fork, under another name. */
bool process_self(char path[PATH_MAX])
{
    static const char self[] = "/proc/self/exe";
    ssize_t length = readlink(self, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = '\0';
    if (length >= 0 && access(path, X_OK) != 0)
        snprintf(path, PATH_MAX, "%s", self);
    return length >= 0;
}

static char *argument(const char *string)
{
    return (char *)(uintptr_t)string; /* exec takes char *const[], and does not write */
}

pid_t process_start_rank(const struct process_rank *rank)
{
    char program[PATH_MAX], board[64];
    snprintf(board, sizeof board, "/proc/%d/fd/%d", (int)getpid(), rank->board);
    char *arguments[] = {program, argument(rank->command), argument(rank->role), board, NULL};
    struct process_plan plan = {
        .arguments = arguments, .rank = rank->rank, .ranks = rank->ranks, .out = -1, .err = rank->err};
    if (!process_self(program))
        return -1;
    plan.store = rank->server ? store_server_connect(rank->server) : -1;
    if (rank->server && plan.store < 0)
        return -1;
    sigprocmask(SIG_SETMASK, NULL, &plan.mask);
    pid_t pid = process_start(&plan);
    int saved = errno;
    if (plan.store >= 0)
        close(plan.store);
    errno = saved;
    return pid;
}

void process_signal(pid_t pid, int signal)
{
    if (kill(-pid, signal) != 0 && errno == ESRCH)
        kill(pid, signal);
}

/* ---- the sweep ---- */

/* How many children there were to kill. */
static int kill_children(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    FILE *list = fopen(path, "re");
    int count = 0, pid;
    while (list && fscanf(list, "%d", &pid) == 1) {
        kill(pid, SIGKILL);
        count++;
    }
    if (list)
        fclose(list);
    return count;
}

/* How many there were to reap. */
static int reap_children(void)
{
    int count = 0;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        count++;
    return count;
}

int process_sweep(uint64_t timeout_ns)
{
    uint64_t deadline_ns = clock_ns() + timeout_ns;
    siginfo_t info;
    int count = 0;
    reap_children(); /* these have ended by themselves */
    while (kill_children() > 0 && clock_ns() < deadline_ns) {
        poll(NULL, 0, SWEEP_STEP_MS);
        count += reap_children();
    }
    bool some_left = waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
    return some_left && !count ? -1 : count;
}
