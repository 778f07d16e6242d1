// SPDX-License-Identifier: Apache-2.0
#include "lib/pace.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"

enum { TICK_MS = 2, PATH_BYTES = 512, MOST_GENERATIONS = 3 };

static _Atomic uint64_t late_ns; /* of the thread that sleeps, since it began */
static atomic_bool asleep; /* it has begun */

void pace_sleep_ms(int ms)
{
    struct timespec rest = {ms / 1000, (long)(ms % 1000) * 1000000};
    while (nanosleep(&rest, &rest) != 0 && errno == EINTR)
        ;
}

/* ---- How late a sleeping thread wakes up ---- */

static void *sleeper(void *unused)
{
    (void)unused;
    for (;;) {
        atomic_store(&asleep, true);
        uint64_t due_ns = clock_ns() + TICK_MS * UINT64_C(1000000);
        pace_sleep_ms(TICK_MS);
        uint64_t now_ns = clock_ns();
        if (now_ns > due_ns)
            atomic_fetch_add(&late_ns, now_ns - due_ns);
    }
    return NULL;
}

static void sleeper_start(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, sleeper, NULL) != 0) {
        fprintf(stderr, "pace: cannot start a thread\n");
        abort();
    }
    pthread_detach(thread);
    while (!atomic_load(&asleep))
        pace_sleep_ms(1);
}

static void forget_sleeper(void);
static pthread_once_t started = PTHREAD_ONCE_INIT;

static void start(void)
{
    sleeper_start();
    pthread_atfork(NULL, NULL, forget_sleeper);
}

/* A forked child has no such thread; it gets one of its own when it asks. */
static void forget_sleeper(void)
{
    static const pthread_once_t fresh = PTHREAD_ONCE_INIT;
    started = fresh;
    atomic_store(&asleep, false);
}

/* ---- For how long threads waited for a core: the second number of their schedstat ---- */

static uint64_t thread_waited_ns(const char *folder, const char *thread)
{
    char path[PATH_BYTES];
    unsigned long long ran = 0, waited = 0;
    snprintf(path, sizeof(path), "%s/%s/schedstat", folder, thread);
    FILE *in = fopen(path, "re");
    if (in && fscanf(in, "%llu %llu", &ran, &waited) != 2)
        waited = 0;
    if (in)
        fclose(in);
    return waited;
}

static uint64_t process_waited_ns(int pid, int generations);

/* A thread that is gone, or a kernel that does not count, adds nothing. */
static uint64_t children_waited_ns(const char *folder, const char *thread, int generations)
{
    char path[PATH_BYTES];
    uint64_t waited_ns = 0;
    int child;
    snprintf(path, sizeof(path), "%s/%s/children", folder, thread);
    FILE *in = fopen(path, "re");
    while (in && fscanf(in, "%d", &child) == 1)
        waited_ns += process_waited_ns(child, generations - 1);
    if (in)
        fclose(in);
    return waited_ns;
}

static uint64_t process_waited_ns(int pid, int generations)
{
    char folder[64];
    uint64_t waited_ns = 0;
    snprintf(folder, sizeof(folder), "/proc/%d/task", pid);
    DIR *threads = generations > 0 ? opendir(folder) : NULL;
    for (struct dirent *entry = threads ? readdir(threads) : NULL; entry; entry = readdir(threads)) {
        if (entry->d_name[0] == '.')
            continue;
        waited_ns += thread_waited_ns(folder, entry->d_name);
        waited_ns += children_waited_ns(folder, entry->d_name, generations);
    }
    if (threads)
        closedir(threads);
    return waited_ns;
}

/* ---- The stopwatch ---- */

static uint64_t all_kept_ns(void)
{
    return atomic_load(&late_ns) + process_waited_ns(getpid(), MOST_GENERATIONS);
}

struct pace pace_begin(void)
{
    pthread_once(&started, start);
    return (struct pace){.begin_ns = clock_ns(), .kept_ns = all_kept_ns()};
}

/* Threads and children that have ended since the beginning have taken what they waited with them. */
int pace_kept_ms(const struct pace *pace)
{
    uint64_t kept_ns = all_kept_ns();
    return kept_ns > pace->kept_ns ? (int)((kept_ns - pace->kept_ns) / 1000000) : 0;
}

int pace_wall_ms(const struct pace *pace)
{
    return (int)((clock_ns() - pace->begin_ns) / 1000000);
}

int pace_ms(const struct pace *pace)
{
    int ms = pace_wall_ms(pace) - pace_kept_ms(pace);
    return ms > 0 ? ms : 0;
}

bool pace_over(const struct pace *pace, int limit_ms)
{
    int ms = pace_wall_ms(pace);
    return ms >= limit_ms && (ms / 10 >= limit_ms || pace_ms(pace) >= limit_ms);
}

bool pace_again(int kept_ms, int deadline_ms, int *stretch)
{
    if (kept_ms < deadline_ms / 2 || *stretch >= PACE_MOST)
        return false;
    *stretch *= 4;
    fprintf(stderr,
            "pace: the machine kept a test waiting for %d ms, with a deadline of %d: once more, %d times as long\n",
            kept_ms, deadline_ms, *stretch);
    return true;
}
