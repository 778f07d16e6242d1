// SPDX-License-Identifier: Apache-2.0
#include "chaos_board.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/clock.h"

const char *chaos_kind_name(enum chaos_kind kind)
{
    static const char *const names[CHAOS_KINDS] = {"kill", "stop", "hang", "between"};
    return names[kind];
}

const char *chaos_at_name(enum chaos_at at)
{
    static const char *const names[] = {"starts",        "waits for a view", "is in a step", "looks at what came",
                                        "has its fault", "has ended"};
    return names[at];
}

/* ---- memory ---- */

static struct chaos_board *map_board(int fd, uint64_t bytes)
{
    void *board = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return board == MAP_FAILED ? NULL : board;
}

struct chaos_board *chaos_board_create(const struct chaos_shape *shape, int *fd)
{
    struct chaos_board *board = NULL;
    uint64_t bytes = sizeof *board + (uint64_t)shape->ranks * sizeof board->seat[0];
    *fd = memfd_create("muster-chaos", MFD_CLOEXEC);
    if (*fd < 0)
        return NULL;
    if (ftruncate(*fd, (off_t)bytes) == 0)
        board = map_board(*fd, bytes);
    if (!board) {
        close(*fd);
        return NULL;
    }
    board->shape = *shape;
    board->bytes = bytes;
    return board;
}

struct chaos_board *chaos_board_open(const char *path)
{
    struct stat status;
    struct chaos_board *board = NULL;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    if (fstat(fd, &status) == 0 && (uint64_t)status.st_size >= sizeof *board)
        board = map_board(fd, (uint64_t)status.st_size);
    else
        errno = EINVAL;
    int saved = errno;
    close(fd);
    errno = saved;
    return board;
}

void chaos_board_close(struct chaos_board *board)
{
    if (board)
        munmap(board, board->bytes);
}

/* ---- seats ---- */

void chaos_seat_clear(struct chaos_seat *seat)
{
    memset(seat, 0, sizeof *seat);
}

void chaos_mark(_Atomic uint64_t *ns)
{
    uint64_t none = 0;
    if (atomic_load(ns) == 0)
        atomic_compare_exchange_strong(ns, &none, clock_ns());
}

void chaos_fail(struct chaos_seat *seat, enum chaos_failure failure, const char *format, ...)
{
    if (atomic_load(&seat->failure))
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(seat->why, sizeof seat->why, format, arguments);
    va_end(arguments);
    atomic_store(&seat->failure, failure);
}
