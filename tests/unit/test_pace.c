// SPDX-License-Identifier: Apache-2.0
/* The tests' own stopwatch: it leaves out what the machine took, and nothing else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lib/pace.h"

enum { STOPPED_MS = 300, SPIN_MS = 50, MOST_SPINNERS = 64 };

/* The whole process stands still, as a machine does that is not given its time. */
static void standing_still_is_the_machines(void **state)
{
    (void)state;
    struct pace pace = pace_begin();
    pid_t parent = getpid(), child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        kill(parent, SIGSTOP);
        pace_sleep_ms(STOPPED_MS);
        kill(parent, SIGCONT);
        _exit(0);
    }
    assert_int_equal(waitpid(child, NULL, 0), child);
    while (pace_kept_ms(&pace) < STOPPED_MS * 2 / 3) { /* until the thread that sleeps has woken up, too */
        assert_true(pace_wall_ms(&pace) < PACE_PATIENCE_MS);
        pace_sleep_ms(1);
    }
    assert_true(pace_wall_ms(&pace) >= STOPPED_MS);
    assert_true(pace_ms(&pace) <= pace_wall_ms(&pace) - STOPPED_MS * 2 / 3);
}

static atomic_int spun;
static atomic_bool done;

static void *spin(void *unused)
{
    struct timespec used = {0, 0};
    (void)unused;
    while (used.tv_nsec < SPIN_MS * 1000000L && used.tv_sec == 0)
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    atomic_fetch_add(&spun, 1);
    while (!atomic_load(&done))
        pace_sleep_ms(1);
    return NULL;
}

static bool kernel_counts(void)
{
    return access("/proc/self/schedstat", F_OK) == 0;
}

/* Twice as many threads as cores: half of the time each of them waits. */
static void waiting_for_a_core_is_the_machines(void **state)
{
    (void)state;
    pthread_t thread[MOST_SPINNERS];
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int threads = cores > MOST_SPINNERS / 2 ? MOST_SPINNERS : 2 * (int)cores;
    if (!kernel_counts() || threads < 2 * cores)
        skip();
    struct pace pace = pace_begin();
    for (int i = 0; i < threads; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, spin, NULL), 0);
    while (atomic_load(&spun) < threads)
        pace_sleep_ms(1);
    int kept_ms = pace_kept_ms(&pace);
    atomic_store(&done, true);
    for (int i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    assert_true(kept_ms >= SPIN_MS / 5 * threads / 2);
}

/* What takes long by itself stays: a sleep, however late it ends. */
static void a_sleep_is_not_the_machines(void **state)
{
    (void)state;
    struct pace pace = pace_begin();
    pace_sleep_ms(100);
    assert_true(pace_wall_ms(&pace) >= 100);
    assert_false(pace_over(&pace, 100000));
    assert_true(pace_over(&pace, 1)); /* after ten times as long in any case */
}

static void attempts_are_repeated_with_cause_and_not_for_ever(void **state)
{
    (void)state;
    int stretch = 1;
    assert_false(pace_again(99, 200, &stretch)); /* the machine kept up */
    assert_int_equal(stretch, 1);
    assert_true(pace_again(100, 200, &stretch));
    assert_int_equal(stretch, 4);
    assert_true(pace_again(1000, 800, &stretch));
    assert_int_equal(stretch, PACE_MOST);
    assert_false(pace_again(1000000, 3200, &stretch));
    assert_int_equal(stretch, PACE_MOST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(standing_still_is_the_machines),
        cmocka_unit_test(waiting_for_a_core_is_the_machines),
        cmocka_unit_test(a_sleep_is_not_the_machines),
        cmocka_unit_test(attempts_are_repeated_with_cause_and_not_for_ever),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
