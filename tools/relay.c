// SPDX-License-Identifier: Apache-2.0
#include "relay.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The most that one line adds to its sink. */
enum { LINE_ROOM = RELAY_MAX_LINE + RELAY_MAX_PREFIX + 1 };

void relay_sink_open(struct relay_sink *sink, int fd)
{
    struct stat file;
    sink->fd = fd;
    sink->has_reader = fstat(fd, &file) == 0 && (S_ISFIFO(file.st_mode) || S_ISSOCK(file.st_mode));
}

bool relay_empty(const struct relay_sink *sink)
{
    return sink->begin == sink->end;
}

static size_t sink_room(const struct relay_sink *sink)
{
    return sizeof sink->bytes - (sink->end - sink->begin);
}

/* One read can end a kept line and bring as many short lines as it has bytes, each with a prefix. */
static size_t readable_bytes(const struct relay_source *source)
{
    size_t room = sink_room(source->sink);
    size_t worst = room > 2 * LINE_ROOM ? (room - LINE_ROOM) / (RELAY_MAX_PREFIX + 1) : 0;
    return worst < RELAY_MAX_LINE ? worst : RELAY_MAX_LINE;
}

struct pollfd relay_source_poll(const struct relay_source *source)
{
    return (struct pollfd){.fd = readable_bytes(source) ? source->fd : -1, .events = POLLIN};
}

struct pollfd relay_sink_poll(const struct relay_sink *sink)
{
    bool idle = relay_empty(sink);
    bool ignored = sink->closed || (idle && !sink->has_reader);
    return (struct pollfd){.fd = ignored ? -1 : sink->fd,
                           .events = idle ? 0 : POLLOUT}; /* errors show without asking */
}

static void sink_append(struct relay_sink *sink, const char *bytes, size_t size)
{
    if (sink->end + size > sizeof sink->bytes) {
        memmove(sink->bytes, sink->bytes + sink->begin, sink->end - sink->begin);
        sink->end -= sink->begin;
        sink->begin = 0;
    }
    memcpy(sink->bytes + sink->end, bytes, size);
    sink->end += size;
}

static void source_end_line(struct relay_source *source)
{
    char prefix[RELAY_MAX_PREFIX];
    int length = snprintf(prefix, sizeof prefix, "[%d] ", source->rank);
    sink_append(source->sink, prefix, (size_t)length);
    sink_append(source->sink, source->line, source->used);
    sink_append(source->sink, "\n", 1);
    source->used = 0;
}

/* A line that is longer than the buffer goes on in a new one. */
static void source_take(struct relay_source *source, const char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != '\n')
            source->line[source->used++] = bytes[i];
        if (bytes[i] == '\n' || source->used == sizeof source->line)
            source_end_line(source);
    }
}

void relay_finish(struct relay_source *source)
{
    if (source->used && sink_room(source->sink) >= LINE_ROOM)
        source_end_line(source);
    if (source->fd >= 0)
        close(source->fd);
    source->fd = -1;
    source->used = 0;
}

bool relay_read(struct relay_source *source)
{
    char bytes[RELAY_MAX_LINE];
    size_t most = source->fd >= 0 ? readable_bytes(source) : 0;
    if (!most)
        return false;
    ssize_t got = read(source->fd, bytes, most);
    if (got > 0)
        source_take(source, bytes, (size_t)got);
    else if (got == 0 || (errno != EAGAIN && errno != EINTR))
        relay_finish(source);
    return got > 0;
}

void relay_say(struct relay_sink *sink, const char *text)
{
    size_t length = strlen(text);
    if (length <= sink_room(sink))
        sink_append(sink, text, length);
}

/* What a full disk does not take is lost; what comes later may find room again. */
static void sink_lose(struct relay_sink *sink, int error)
{
    sink->begin = sink->end = 0;
    if (!sink->error)
        sink->error = error;
}

/* False: not now. */
static bool sink_write(struct relay_sink *sink)
{
    size_t size = sink->end - sink->begin;
    ssize_t written = write(sink->fd, sink->bytes + sink->begin, size < PIPE_BUF ? size : PIPE_BUF);
    if (written >= 0) {
        sink->begin += (size_t)written;
        return written > 0;
    }
    if (errno == EINTR || errno == EAGAIN)
        return false;
    if (errno == EPIPE)
        sink->closed = true;
    else
        sink_lose(sink, errno);
    return false;
}

static bool reader_has_gone(const struct relay_sink *sink)
{
    struct pollfd look = {.fd = sink->fd};
    return sink->has_reader && poll(&look, 1, 0) == 1 && look.revents & (POLLERR | POLLHUP);
}

/*
 * Only as much as the reader surely takes at once: to a pipe that polls writable PIPE_BUF bytes, so that the launcher
 * never blocks although the descriptor, which it shares with others, stays a blocking one.
 */
void relay_write(struct relay_sink *sink)
{
    struct pollfd writable = {.fd = sink->fd, .events = POLLOUT};
    while (!sink->closed && !relay_empty(sink) && poll(&writable, 1, 0) == 1 && sink_write(sink)) {
    }
    if (!sink->closed && relay_empty(sink))
        sink->closed = reader_has_gone(sink);
    if (sink->closed || relay_empty(sink))
        sink->begin = sink->end = 0;
}
