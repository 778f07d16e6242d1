// SPDX-License-Identifier: Apache-2.0
/*
 * Passes on what the ranks print: line by line, each behind the number of its rank. Nothing here blocks and nothing
 * grows: while the reader of our own output is slow, the ranks' pipes are not read, and the ranks wait as they would
 * for a slow terminal.
 */
#ifndef TOOLS_RELAY_H
#define TOOLS_RELAY_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>

enum { RELAY_MAX_LINE = 4096, RELAY_SINK_BYTES = 65536, RELAY_MAX_PREFIX = 16 };

/* Where lines go: our stdout or stderr. */
struct relay_sink {
    int fd;
    bool has_reader; /* a pipe or a socket: that its reader has gone can be seen before anything is written */
    bool closed; /* its reader is gone: what comes is dropped */
    int error; /* why what came was lost, in the first such case (a full disk); 0: nothing was */
    size_t begin, end;
    char bytes[RELAY_SINK_BYTES];
};

/* Where lines come from: the stdout or stderr of one rank. */
struct relay_source {
    int fd; /* -1: at its end */
    int rank;
    struct relay_sink *sink;
    size_t used;
    char line[RELAY_MAX_LINE];
};

void relay_sink_open(struct relay_sink *sink, int fd);

/* The pollfd of a source: its descriptor is -1 while the sink has no room for a line of it. */
struct pollfd relay_source_poll(const struct relay_source *source);
struct pollfd relay_sink_poll(const struct relay_sink *sink);

/* Reads what is there and fits. False: nothing was there, or nothing fits. */
bool relay_read(struct relay_source *source);

/* Writes what its reader takes now, and notices when there is no reader any more. */
void relay_write(struct relay_sink *sink);

/* Completes a last line without an end, and closes. relay_read() does this at the end of the pipe. */
void relay_finish(struct relay_source *source);

/* A line of our own; dropped when there is no room. */
void relay_say(struct relay_sink *sink, const char *text);

bool relay_empty(const struct relay_sink *sink);

#endif
