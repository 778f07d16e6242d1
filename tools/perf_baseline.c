// SPDX-License-Identifier: Apache-2.0
/* The baseline of `muster perf ep`: starts bench/mpi_baseline.c under mpirun, where there is such a thing. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/clock.h"
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

__attribute__((format(printf, 2, 3))) static bool refuse(struct perf_baseline *b, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(b->reason, sizeof b->reason, format, arguments);
    va_end(arguments);
    return false;
}

/* ---- what there is ---- */

static bool has_counterpart(struct perf_run *run)
{
    const struct perf_shape *s = &run->options.shape;
    if (!run->options.baseline)
        return refuse(&run->baseline, "--no-baseline was given");
    if (s->cuda)
        return refuse(&run->baseline, "it runs on the host");
    bool quantises = s->quantise || s->quantise_return;
    if (s->layout != MUSTER_EP_EXPERT_MAJOR && s->combine == MUSTER_EP_REDUCED && !quantises)
        return true;
    return refuse(&run->baseline, "it does --layout rank or flat, --combine reduced, and neither way --quantise only");
}

static bool find_program(struct perf_baseline *b, char program[PATH_MAX])
{
    static const char name[] = "muster_perf_mpi";
    char *slash = process_self(program) ? strrchr(program, '/') : NULL;
    char *end = slash ? slash + 1 : program;
    bool fits = (size_t)snprintf(end, (size_t)(program + PATH_MAX - end), "%s", name) == strlen(name);
    if (fits && access(program, X_OK) == 0)
        return true;
    return refuse(b, "%s is not beside this tool; it is built where Open MPI is installed", name);
}

static bool find_mpirun(struct perf_baseline *b, char mpirun[PATH_MAX])
{
    const char *rest = getenv("PATH");
    while (rest && *rest) {
        int length = (int)strcspn(rest, ":");
        snprintf(mpirun, PATH_MAX, "%.*s/mpirun", length, rest);
        if (length > 0 && access(mpirun, X_OK) == 0)
            return true;
        rest += length + (rest[length] == ':');
    }
    return refuse(b, "mpirun is not in PATH");
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

static bool start_mpirun(struct perf_baseline *b, const struct command *c)
{
    b->output = memfd_create("muster-perf-mpi", MFD_CLOEXEC);
    if (b->output < 0)
        return refuse(b, "no memory for its output: %s", strerror(errno));
    b->pid = fork();
    if (b->pid == 0)
        run_mpirun(c, b->output);
    if (b->pid > 0)
        return true;
    b->pid = 0;
    return refuse(b, "mpirun cannot be started: %s", strerror(errno));
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
    b->running = false;
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

void perf_baseline_drop(struct perf_run *run)
{
    char line[160];
    first_line(run->baseline.output, line, sizeof line);
    refuse(&run->baseline, "%s%s%s", run->board->why, *line ? "; mpirun says: " : "", line);
    end_mpirun(&run->baseline);
    if (run->series_count)
        run->series_count--; /* it is the last */
    perf_board_expect(run->board); /* its failure is not the run's */
}

void perf_baseline_start(struct perf_run *run)
{
    struct command command = {.mpirun = ""};
    struct perf_baseline *b = &run->baseline;
    if (!has_counterpart(run) || !find_program(b, command.program) || !find_mpirun(b, command.mpirun))
        return;
    make_command(run, &command);
    describe(&command, b);
    perf_board_expect(run->board);
    if (!start_mpirun(b, &command))
        return;
    b->running = perf_await(run, PERF_MPI, START_NS);
    if (!b->running)
        perf_baseline_drop(run);
}

void perf_baseline_stop(struct perf_run *run)
{
    struct perf_baseline *b = &run->baseline;
    if (!b->running)
        return;
    perf_board_tell(run->board, PERF_MPI, &(struct perf_order){.finish = true});
    wait_mpirun(b, LEAVE_NS);
    end_mpirun(b);
}
