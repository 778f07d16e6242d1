// SPDX-License-Identifier: Apache-2.0
#include "channel.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

static const uint32_t CHANNEL_MAGIC = 0x4d554331; /* "MUC1" */

int channel_pair(int fds[2])
{
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds);
}

static size_t channel_size(const struct channel_message *message)
{
    return offsetof(struct channel_message, text) + message->text_bytes;
}

bool channel_send(int fd, struct channel_message *message)
{
    message->magic = CHANNEL_MAGIC;
    return send(fd, message, channel_size(message), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

static bool channel_valid(const struct channel_message *m, size_t bytes)
{
    return bytes >= offsetof(struct channel_message, text) && m->magic == CHANNEL_MAGIC && m->type >= CHANNEL_REQUEST &&
           m->type < CHANNEL_TYPES && m->text_bytes <= CHANNEL_MAX_TEXT && bytes == channel_size(m);
}

enum channel_result channel_receive(int fd, struct channel_message *message)
{
    for (;;) {
        ssize_t bytes = recv(fd, message, sizeof *message, MSG_DONTWAIT);
        if (bytes > 0 && channel_valid(message, (size_t)bytes))
            return CHANNEL_GOT;
        if (bytes == 0)
            return CHANNEL_CLOSED;
        /* An end that died with unread messages leaves one ECONNRESET; what it had sent is still behind that. */
        if (bytes < 0 && errno != EINTR && errno != ECONNRESET)
            return errno == EAGAIN || errno == EWOULDBLOCK ? CHANNEL_EMPTY : CHANNEL_CLOSED;
    }
}
