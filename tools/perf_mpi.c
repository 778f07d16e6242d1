// SPDX-License-Identifier: Apache-2.0
/* The baseline of `muster perf ep` on the host: starts bench/mpi_baseline.c under mpirun, where there is such a thing. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/program.h"
#include "muster/ep.h"
#include "perf.h"
#include "process.h"

#define SECOND_NS UINT64_C(1000000000)
#define START_NS (30 * SECOND_NS)
#define LEAVE_NS (10 * SECOND_NS)

enum { MAX_ARGUMENTS = 24 };

struct command {
    char mpirun[PATH_MAX], program[PATH_MAX], board[64], ranks[16];
    char *argument[MAX_ARGUMENTS];
};

/* ---- what there is ---- */

static bool has_counterpart(struct perf_run *run)
{
    const struct perf_shape *s = &run->options.shape;
    bool quantises = s->quantise || s->quantise_return;
    if (s->layout != MUSTER_EP_EXPERT_MAJOR && s->combine == MUSTER_EP_REDUCED && !quantises)
        return true;
    return perf_baseline_refuse(run,
                                "it does --layout rank or flat, --combine reduced, and neither way --quantise only");
}

static bool find_program(struct perf_run *run, char program[PATH_MAX])
{
    static const char name[] = "muster_perf_mpi";
    char *slash = process_self(program) ? strrchr(program, '/') : NULL;
    char *end = slash ? slash + 1 : program;
    bool fits = (size_t)snprintf(end, (size_t)(program + PATH_MAX - end), "%s", name) == strlen(name);
    if (fits && program_is(program))
        return true;
    return perf_baseline_refuse(run, "%s is not beside this tool; it is built where Open MPI is installed", name);
}

static bool find_mpirun(struct perf_run *run, char mpirun[PATH_MAX])
{
    const char *rest = getenv("PATH");
    while (rest && *rest) {
        int length = (int)strcspn(rest, ":");
        snprintf(mpirun, PATH_MAX, "%.*s/mpirun", length, rest);
        if (length > 0 && program_is(mpirun))
            return true;
        rest += length + (rest[length] == ':');
    }
    return perf_baseline_refuse(run, "mpirun is not in PATH");
}

/* ---- the command ---- */

static void add_words(struct command *c, int *count, const char *const *words)
{
    for (; *words; words++)
        c->argument[(*count)++] = (char *)(uintptr_t)*words; /* exec does not write */
}

/*
 * As fast as it goes: shared memory alone, with messages of up to 64 KiB sent at once (the default of 4 KiB is just below
 * one row) and larger ones copied in one go where the system allows; each rank bound to a core and polling if there are
 * enough of them, otherwise free to move and giving its core away.
 */
static void make_command(const struct perf_run *run, struct command *c)
{
    const struct perf_shape *s = &run->options.shape;
    bool roomy = s->cores >= s->ranks;
    int count = 0;
    snprintf(c->ranks, sizeof c->ranks, "%d", s->ranks);
    snprintf(c->board, sizeof c->board, "/proc/%d/fd/%d", (int)getpid(), run->board_fd);
    add_words(c, &count, (const char *const[]){c->mpirun, "-np", c->ranks, "--oversubscribe", NULL});
    if (geteuid() == 0)
        add_words(c, &count, (const char *const[]){"--allow-run-as-root", NULL});
    add_words(c, &count, (const char *const[]){"--bind-to", roomy ? "core" : "none", NULL});
    add_words(c, &count, (const char *const[]){"--mca", "pml", "ob1", "--mca", "btl", "self,vader", NULL});
    add_words(c, &count, (const char *const[]){"--mca", "btl_vader_eager_limit", "65536", NULL});
    add_words(c, &count, (const char *const[]){"--mca", "mpi_yield_when_idle", roomy ? "0" : "1", NULL});
    add_words(c, &count, (const char *const[]){c->program, c->board, NULL});
    c->argument[count] = NULL;
}

/* For the header of the table. Paths and the board are nothing that one would type. */
static void describe(const struct command *c, struct perf_baseline *b)
{
    size_t used = (size_t)snprintf(b->command, sizeof b->command, "mpirun");
    for (int i = 1; c->argument[i] != c->program && used < sizeof b->command; i++)
        used += (size_t)snprintf(b->command + used, sizeof b->command - used, " %s", c->argument[i]);
}

/* ---- the process ---- */

/*
 * If this tool dies, the ranks see that on the board and finish, and mpirun with them. A signal would come twice, once for
 * each thread of this tool, which makes mpirun leave its files behind.
 */
static void run_mpirun(const struct command *c, int output)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    setpgid(0, 0);
    dup2(null, STDIN_FILENO);
    dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
    execv(c->mpirun, c->argument);
    _exit(EXIT_FAILURE);
}

static bool start_mpirun(struct perf_run *run, const struct command *c)
{
    struct perf_baseline *b = &run->baseline;
    b->output = memfd_create("muster-perf-mpi", MFD_CLOEXEC);
    if (b->output < 0)
        return perf_baseline_refuse(run, "no memory for its output: %s", strerror(errno));
    b->pid = fork();
    if (b->pid == 0)
        run_mpirun(c, b->output);
    if (b->pid > 0)
        return true;
    b->pid = 0;
    return perf_baseline_refuse(run, "mpirun cannot be started: %s", strerror(errno));
}

static bool wait_mpirun(struct perf_baseline *b, uint64_t timeout_ns)
{
    uint64_t end_ns = clock_ns() + timeout_ns;
    while (b->pid && waitpid(b->pid, NULL, WNOHANG) == 0) {
        if (clock_ns() > end_ns)
            return false;
        usleep(2000);
    }
    b->pid = 0;
    return true;
}

/* mpirun passes SIGTERM on to its ranks and removes its files; only if that takes too long is it killed. */
static void end_mpirun(struct perf_baseline *b)
{
    if (b->pid)
        kill(b->pid, SIGTERM);
    if (!wait_mpirun(b, LEAVE_NS)) {
        kill(-b->pid, SIGKILL);
        wait_mpirun(b, LEAVE_NS);
    }
    if (b->output >= 0)
        close(b->output);
    b->output = -1;
}

/* The first line of mpirun's output that says something; its messages come in frames of dashes. */
static void first_line(int output, char *line, size_t bytes)
{
    char all[2048];
    ssize_t length = pread(output, all, sizeof all - 1, 0);
    all[length < 0 ? 0 : length] = '\0';
    const char *from = all + strspn(all, "- \n");
    snprintf(line, bytes, "%.*s", (int)strcspn(from, "\n"), from);
}

/* ---- the baseline ---- */

bool perf_mpi_has_ended(struct perf_run *run)
{
    int status;
    if (waitpid(run->baseline.pid, &status, WNOHANG) != run->baseline.pid)
        return false;
    run->baseline.pid = 0;
    perf_board_fail(run->board, "mpirun ended with status %d", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    return true;
}

void perf_mpi_end(struct perf_run *run, char *line, size_t bytes)
{
    first_line(run->baseline.output, line, bytes);
    end_mpirun(&run->baseline);
}

void perf_mpi_start(struct perf_run *run)
{
    struct command command = {.mpirun = ""};
    struct perf_baseline *b = &run->baseline;
    if (!has_counterpart(run) || !find_program(run, command.program) || !find_mpirun(run, command.mpirun))
        return;
    make_command(run, &command);
    describe(&command, b);
    perf_board_expect(run->board);
    if (!start_mpirun(run, &command))
        return;
    b->running = perf_await(run, PERF_MPI, START_NS);
    if (!b->running)
        perf_baseline_drop(run);
}

void perf_mpi_stop(struct perf_run *run)
{
    perf_board_tell(run->board, PERF_MPI, &(struct perf_order){.finish = true});
    wait_mpirun(&run->baseline, LEAVE_NS);
    end_mpirun(&run->baseline);
}
