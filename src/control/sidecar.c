// SPDX-License-Identifier: Apache-2.0
#include "control/sidecar.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/store_socket.h"
#include "core/clock.h"
#include "core/config.h"
#include "core/error.h"
#include "core/program.h"
#include "core/thread.h"

extern char **environ;

enum { WAIT_STEP_MS = 2, KILL_WAIT_NS = 1000000000 };

/* ---- where the tool is ---- */

/* `relative` seen from the folder of `file`. */
static bool find_beside(const char *file, const char *relative, char path[PATH_MAX])
{
    const char *slash = strrchr(file, '/');
    int folder = slash ? (int)(slash - file) : 0;
    int length = snprintf(path, PATH_MAX, "%.*s/%s", folder, file, relative);
    return slash && length < PATH_MAX && program_is(path);
}

static bool find_beside_library(char path[PATH_MAX])
{
    static const char *const places[] = {"muster", "../bin/muster", "../../bin/muster"};
    Dl_info library;
    if (!dladdr(places, &library) || !library.dli_fname)
        return false;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (find_beside(library.dli_fname, places[i], path))
            return true;
    return false;
}

static bool find_beside_executable(char path[PATH_MAX])
{
    char executable[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", executable, sizeof executable - 1);
    if (length <= 0)
        return false;
    executable[length] = 0;
    return find_beside(executable, "muster", path);
}

static bool find_in_path(char path[PATH_MAX])
{
    const char *entry = getenv("PATH");
    while (entry && *entry) {
        size_t length = strcspn(entry, ":");
        int written = snprintf(path, PATH_MAX, "%.*s/muster", (int)length, entry);
        if (length && written < PATH_MAX && program_is(path))
            return true;
        entry += length + (entry[length] == ':');
    }
    return false;
}

static muster_status find_tool(char path[PATH_MAX])
{
    const char *given = config_text(CONFIG_TOOL, NULL);
    if (*given) {
        snprintf(path, PATH_MAX, "%s", given);
        if (program_is(path))
            return MUSTER_OK;
        return error_set(MUSTER_ERR_SYSTEM, "MUSTER_TOOL=%s is not a program that can be run", given);
    }
    if (find_beside_library(path) || find_beside_executable(path) || find_in_path(path))
        return MUSTER_OK;
    return error_set(MUSTER_ERR_SYSTEM, "the tool `muster`, which is to serve the store, was not found beside the "
                                        "library, beside this program or in PATH; set MUSTER_TOOL to its path");
}

/* ---- starting it ---- */

static bool somebody_listens(const char *name)
{
    struct sockaddr_un address;
    socklen_t length;
    int probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool listens = probe >= 0 && socket_address(name, &address, &length) &&
                   (connect(probe, (struct sockaddr *)&address, length) == 0 || errno == EAGAIN);
    if (probe >= 0)
        close(probe);
    return listens;
}

/* In a session of its own and with no signal blocked, whatever this process does with its own. */
static int spawn_tool(const char *path, const char *name, int32_t ranks, pid_t *pid)
{
    char count[16];
    snprintf(count, sizeof count, "%d", ranks);
    char *arguments[] = {"muster", "store", "--detach", "--name", (char *)(uintptr_t)name, "--ranks", count, NULL};
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int error = posix_spawnattr_init(&attributes);
    if (error)
        return error;
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    error = posix_spawn(pid, path, NULL, &attributes, arguments, environ);
    posix_spawnattr_destroy(&attributes);
    return error;
}

/* Waits for it to exit; false: it has not by the deadline. The program may have reaped it first (a SIGCHLD handler). */
static bool reap(pid_t pid, uint64_t deadline_ns, int *status)
{
    for (;;) {
        pid_t got = waitpid(pid, status, WNOHANG);
        if (got == pid || (got < 0 && errno == ECHILD))
            return true;
        if (clock_ns() >= deadline_ns)
            return false;
        poll(NULL, 0, WAIT_STEP_MS);
    }
}

/* The tool's first process ends as soon as its child serves, or somebody else does. */
static muster_status await_tool(pid_t pid, const char *path, uint64_t deadline_ns)
{
    int status = 0;
    if (!reap(pid, deadline_ns, &status)) {
        kill(pid, SIGKILL);
        reap(pid, clock_ns() + KILL_WAIT_NS, &status);
        return error_set(MUSTER_ERR_SYSTEM, "%s store did not start to serve in time", path);
    }
    if (status != 0)
        return error_set(MUSTER_ERR_SYSTEM, "%s store failed (wait status %d)", path, status);
    return MUSTER_OK;
}

muster_status sidecar_ensure(const char *name, int32_t ranks, uint64_t timeout_us)
{
    uint64_t deadline_ns = clock_ns_after_us(timeout_us);
    if (somebody_listens(name))
        return MUSTER_OK;
    char path[PATH_MAX];
    muster_status status = find_tool(path);
    if (status != MUSTER_OK)
        return status;
    pid_t pid;
    char why[THREAD_TEXT_BYTES];
    int error = spawn_tool(path, name, ranks, &pid);
    if (error)
        return error_set(MUSTER_ERR_SYSTEM, "%s cannot be started: %s", path, thread_explain(error, why));
    return await_tool(pid, path, deadline_ns);
}
