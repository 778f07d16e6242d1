// SPDX-License-Identifier: Apache-2.0
#include "control/store_socket.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* Room for the credentials and one descriptor; the kernel may fill the padding with a second one. */
union control_room {
    struct cmsghdr aligned;
    unsigned char bytes[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(sizeof(int))];
};

/* Takes the first descriptor and closes any other: an unexpected one must not stay open here. */
static void take_descriptors(const struct cmsghdr *header, struct socket_message *message)
{
    size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
        if (message->fd < 0) {
            message->fd = fd;
            continue;
        }
        close(fd);
        message->cut = true;
    }
}

static void take_control(struct msghdr *header, struct socket_message *message)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level != SOL_SOCKET)
            continue;
        if (c->cmsg_type == SCM_RIGHTS)
            take_descriptors(c, message);
        if (c->cmsg_type == SCM_CREDENTIALS) {
            struct ucred sender;
            memcpy(&sender, CMSG_DATA(c), sizeof sender);
            message->pid = sender.pid;
            message->uid = sender.uid;
        }
    }
}

int socket_receive(int socket, unsigned char *room, size_t bytes, struct socket_message *message)
{
    union control_room control;
    struct iovec part = {.iov_base = room, .iov_len = bytes};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = &control,
                            .msg_controllen = sizeof control};
    ssize_t got;
    do
        got = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -1;
    *message = (struct socket_message){.bytes = (size_t)got, .fd = -1};
    take_control(&header, message);
    message->descriptor_lost = header.msg_flags & MSG_CTRUNC && message->fd < 0;
    if (header.msg_flags & (message->descriptor_lost ? MSG_TRUNC : MSG_TRUNC | MSG_CTRUNC))
        message->cut = true;
    return 0;
}

static void attach_descriptor(struct msghdr *header, union control_room *control, int fd)
{
    memset(control, 0, sizeof *control);
    header->msg_control = control;
    header->msg_controllen = CMSG_SPACE(sizeof fd);
    struct cmsghdr *c = CMSG_FIRSTHDR(header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
}

int socket_send(int socket, const unsigned char *frame, size_t bytes, int passed)
{
    union control_room control;
    struct iovec part = {.iov_base = (void *)(uintptr_t)frame, .iov_len = bytes};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    if (passed >= 0)
        attach_descriptor(&header, &control, passed);
    ssize_t sent;
    do
        sent = sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0)
        return 0;
    if (errno == ENOBUFS || errno == ENOMEM || errno == ETOOMANYREFS)
        errno = EAGAIN;
    return -1;
}

bool socket_address(const char *name, struct sockaddr_un *address, socklen_t *length)
{
    size_t bytes = strlen(name);
    if (!bytes || bytes > sizeof address->sun_path - 1)
        return false;
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address->sun_path + 1, name, bytes); /* a leading zero byte: abstract, nothing in the file system */
    *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + bytes);
    return true;
}

bool socket_peer_is_us(int socket)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}
