// SPDX-License-Identifier: Apache-2.0
/* The sockets of the embedded store: SOCK_SEQPACKET, one frame per message, descriptors and credentials beside it. */
#ifndef CONTROL_STORE_SOCKET_H
#define CONTROL_STORE_SOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

/* What came with a message. */
struct socket_message {
    size_t bytes; /* 0: the other side has closed */
    bool cut; /* it was longer than the room for it, or carried more than one descriptor */
    bool descriptor_lost; /* it carried one, for which this process had no number left; the message itself is good */
    int fd; /* that was passed, or -1; the receiver owns it */
    pid_t pid; /* of the sender, if the kernel attached its credentials; otherwise 0 */
    uid_t uid;
};

/* 0, or -1 with errno (EAGAIN: nothing there). Never blocks. */
int socket_receive(int socket, unsigned char *room, size_t bytes, struct socket_message *message);

/* 0, or -1 with errno (EAGAIN: try later, whatever the kernel was short of). `passed` = -1: none. Never blocks. */
int socket_send(int socket, const unsigned char *frame, size_t bytes, int passed);

/* The abstract address of a name; false if the name is empty or too long. */
bool socket_address(const char *name, struct sockaddr_un *address, socklen_t *length);

/* Whether the process at the other end belongs to this user: anyone may bind or connect to an abstract name. */
bool socket_peer_is_us(int socket);

#endif
