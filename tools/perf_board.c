// SPDX-License-Identifier: Apache-2.0
#include "perf_board.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"

#define SECOND_NS UINT64_C(1000000000)
#define ALIGN_TIMEOUT_NS (10 * SECOND_NS)
#define LOOK_NS (SECOND_NS / 5) /* between two looks at whether the others are still there */

enum { POLLS = 20000 /* before the core is given away */, FEW_POLLS = 100, POLLS_PER_LOOK = 1024 };

/* ---- memory ---- */

static struct perf_board *map_board(int fd, uint64_t bytes)
{
    void *board = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return board == MAP_FAILED ? NULL : board;
}

struct perf_board *perf_board_create(const struct perf_shape *shape, int32_t samples, int *fd)
{
    struct perf_board *board = NULL;
    uint64_t each = (uint64_t)samples * sizeof(struct perf_sample);
    uint64_t bytes = sizeof *board + (uint64_t)shape->ranks * each;
    *fd = memfd_create("muster-perf", MFD_CLOEXEC);
    if (*fd < 0)
        return NULL;
    if (ftruncate(*fd, (off_t)bytes) == 0 && flock(*fd, LOCK_EX) == 0)
        board = map_board(*fd, bytes);
    if (!board) {
        close(*fd);
        return NULL;
    }
    board->shape = *shape;
    board->bytes = bytes;
    board->samples = samples;
    return board;
}

struct perf_board *perf_board_open(const char *path, int *fd)
{
    struct stat status;
    struct perf_board *board = NULL;
    *fd = open(path, O_RDWR | O_CLOEXEC);
    if (*fd < 0)
        return NULL;
    if (fstat(*fd, &status) == 0 && (uint64_t)status.st_size >= sizeof *board)
        board = map_board(*fd, (uint64_t)status.st_size);
    else
        errno = EINVAL;
    if (board)
        return board;
    int saved = errno;
    close(*fd);
    errno = saved;
    return NULL;
}

void perf_board_close(struct perf_board *board)
{
    if (board)
        munmap(board, board->bytes);
}

struct perf_sample *perf_board_samples(struct perf_board *board, int32_t rank)
{
    return board->sample + (size_t)rank * (size_t)board->samples;
}

/* ---- futexes, between processes ---- */

static void futex_wait(struct perf_word *word, uint32_t seen, uint64_t timeout_ns)
{
    struct timespec time = clock_timespec(timeout_ns);
    syscall(SYS_futex, &word->value, FUTEX_WAIT, seen, &time, NULL, 0);
}

static void futex_wake(struct perf_word *word)
{
    syscall(SYS_futex, &word->value, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* ---- orders ---- */

void perf_board_expect(struct perf_board *board)
{
    atomic_store(&board->failed, false);
    atomic_store(&board->why_taken, false);
    atomic_store(&board->done.value, 0);
}

void perf_board_tell(struct perf_board *board, enum perf_side_id side, const struct perf_order *order)
{
    struct perf_mailbox *mailbox = &board->mailbox[side];
    mailbox->order = *order;
    atomic_store(&mailbox->wrong, 0);
    perf_board_expect(board);
    atomic_fetch_add(&mailbox->number.value, 1);
    futex_wake(&mailbox->number);
}

bool perf_board_await(struct perf_board *board, uint64_t timeout_ns)
{
    uint64_t end_ns = clock_ns() + timeout_ns;
    for (;;) {
        uint32_t done = atomic_load(&board->done.value);
        uint64_t now_ns = clock_ns();
        if (done == (uint32_t)board->shape.ranks)
            return !atomic_load(&board->failed);
        if (atomic_load(&board->failed) || now_ns >= end_ns)
            return false;
        futex_wait(&board->done, done, end_ns - now_ns);
    }
}

void perf_board_done(struct perf_board *board)
{
    uint32_t done = atomic_fetch_add(&board->done.value, 1) + 1;
    if (done == (uint32_t)board->shape.ranks)
        futex_wake(&board->done);
}

/* The kernel lets go of a lock when its holder dies. `fd` is an opening of one's own, so it does not share the lock. */
static bool owner_is_gone(int fd)
{
    return flock(fd, LOCK_SH | LOCK_NB) == 0;
}

void perf_board_take(struct perf_board *board, int fd, enum perf_side_id side, uint32_t *number,
                     struct perf_order *order)
{
    struct perf_mailbox *mailbox = &board->mailbox[side];
    while (atomic_load(&mailbox->number.value) == *number) {
        if (owner_is_gone(fd)) {
            *order = (struct perf_order){.finish = true};
            return;
        }
        futex_wait(&mailbox->number, *number, LOOK_NS);
    }
    ++*number;
    *order = mailbox->order;
}

/* ---- alignment ---- */

static bool all_arrived(struct perf_word *arrived, uint32_t wanted)
{
    /* The difference is taken as signed, so that the count may wrap. */
    return (int32_t)(atomic_load_explicit(&arrived->value, memory_order_acquire) - wanted) >= 0;
}

/* False: waiting for longer makes no sense. */
static bool align_look(struct perf_board *board, uint64_t begun_ns)
{
    if (clock_ns() - begun_ns > ALIGN_TIMEOUT_NS)
        perf_board_fail(board, "not all ranks came to the start of an iteration within 10 s");
    return !atomic_load(&board->failed);
}

bool perf_board_align(struct perf_board *board, enum perf_side_id side, uint32_t *round)
{
    struct perf_word *arrived = &board->mailbox[side].arrived;
    uint32_t wanted = ++*round * (uint32_t)board->shape.ranks;
    uint64_t begun_ns = clock_ns();
    uint64_t spin = board->shape.cores >= board->shape.ranks ? POLLS : FEW_POLLS;
    atomic_fetch_add(&arrived->value, 1);
    for (uint64_t polls = 1; !all_arrived(arrived, wanted); polls++) {
        if (polls % POLLS_PER_LOOK == 0 && !align_look(board, begun_ns))
            return false;
        if (polls > spin)
            sched_yield();
    }
    return true;
}

/* ---- failures ---- */

void perf_board_fail(struct perf_board *board, const char *format, ...)
{
    if (atomic_exchange(&board->why_taken, true))
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(board->why, sizeof board->why, format, arguments);
    va_end(arguments);
    atomic_store(&board->failed, true);
    atomic_fetch_add(&board->done.value, 1u << 16); /* so that whoever is about to sleep does not */
    futex_wake(&board->done);
}
