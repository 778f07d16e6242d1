// SPDX-License-Identifier: Apache-2.0
/*
 * A rank whose program does what programs may do: forms a group, takes some steps, leaves, and says what came of it.
 * machine_rank MODE
 *   stack    on_view uses as much stack as callbacks of programs do
 *   locale   takes the locale of its environment, as programs with a user interface do
 *   close    closes every descriptor, as daemons do, and those of its group with them; says how much of a core it uses then
 *   held     rank 0 fills the pipe that is its stderr; then the other dies, and rank 0 tells when steps have been taken alone
 *   plain    nothing of these
 */
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "muster/muster.h"

#define HELD_FILE "held_now"

enum { STEPS = 20, CALLBACK_BYTES = 256 << 10, MEMORY_BYTES = 65536, LOCALE_STATUS = 77 };

/* Every page of it, from the far end on, as a deep call would. */
static void use_stack(void *context, const muster_view *view)
{
    volatile char room[CALLBACK_BYTES];
    (void)view;
    for (size_t i = 0; i < sizeof room; i += 1024)
        room[i] = 1;
    *(int *)context += room[0];
}

static muster_status take_steps(muster_group *group)
{
    muster_verdict verdict;
    muster_status status = MUSTER_OK;
    for (int i = 0; i < STEPS && status == MUSTER_OK; i++) {
        status = muster_group_wait_ready(group, 20000000);
        muster_step_begin(group, NULL);
        muster_step_end(group, NULL);
        muster_step_verdict(group, &verdict);
    }
    return status;
}

static int say(const char *what, muster_status status)
{
    printf("%s: %s %s\n", what, muster_status_name(status), status == MUSTER_OK ? "" : muster_last_error());
    fflush(stdout);
    return status == MUSTER_OK ? 0 : 1;
}

static long used_ms(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 +
           (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1000;
}

static int close_all(muster_group *group)
{
    close_range(STDERR_FILENO + 1, ~0U, 0);
    muster_status status = muster_group_wait_ready(group, 0);
    for (int i = 0; i < 2000 && status == MUSTER_OK; i++, status = muster_group_wait_ready(group, 0))
        usleep(10000);
    say("closed", status);
    long before_ms = used_ms();
    sleep(1);
    printf("busy for %ld ms\n", used_ms() - before_ms);
    muster_group_destroy(group);
    printf("left\n");
    return status == MUSTER_ERR_STORE ? 0 : 1;
}

static void fill_stderr(void)
{
    int flags = fcntl(STDERR_FILENO, F_GETFL);
    fcntl(STDERR_FILENO, F_SETFL, flags | O_NONBLOCK);
    while (write(STDERR_FILENO, "x", 1) == 1) {
    }
    fcntl(STDERR_FILENO, F_SETFL, flags);
}

static void die_when_held(void)
{
    for (int i = 0; i < 2000 && access(HELD_FILE, F_OK) != 0; i++)
        usleep(10000);
    raise(SIGKILL);
}

static int be_held(muster_group *group)
{
    muster_view view = {.active = 0};
    muster_status status = MUSTER_OK;
    if (muster_group_rank(group) != 0)
        die_when_held();
    fill_stderr();
    close(open(HELD_FILE, O_CREAT | O_WRONLY, 0600));
    for (int i = 0; i < 2000 && status == MUSTER_OK && view.active != 1; i++, usleep(10000))
        status = muster_group_view(group, &view);
    if (status == MUSTER_OK)
        status = take_steps(group);
    printf("%d left\n", view.active);
    int failed = say("steps", status);
    muster_group_destroy(group);
    return failed;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "plain";
    int calls = 0;
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    muster_group *group;
    config.memory_bytes = MEMORY_BYTES;
    if (strcmp(mode, "locale") == 0 && !setlocale(LC_ALL, ""))
        return LOCALE_STATUS;
    if (strcmp(mode, "stack") == 0)
        config.on_view = use_stack, config.context = &calls;
    if (say("created", muster_group_create(&config, &group)))
        return 1;
    int failed = say("steps", take_steps(group));
    if (strcmp(mode, "close") == 0)
        return close_all(group);
    if (strcmp(mode, "held") == 0)
        return be_held(group);
    muster_group_destroy(group);
    printf("left\n");
    return failed;
}
