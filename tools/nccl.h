// SPDX-License-Identifier: Apache-2.0
/*
 * What is used of NCCL, declared here because it is loaded at run time and its header need not be there. The names and
 * values are those of nccl.h, and have been since version 2.7.
 */
#ifndef TOOLS_NCCL_H
#define TOOLS_NCCL_H

#include <stdbool.h>
#include <stddef.h>

enum { NCCL_ID_BYTES = 128, NCCL_SUCCESS = 0, NCCL_IN_PROGRESS = 7, NCCL_BYTE = 0 /* ncclInt8 */ };

typedef struct nccl_communicator *nccl_comm;

typedef struct nccl_id {
    char bytes[NCCL_ID_BYTES];
} nccl_id;

struct nccl {
    int (*get_version)(int *version);
    int (*get_unique_id)(nccl_id *id);
    int (*comm_init_rank)(nccl_comm *comm, int ranks, nccl_id id, int rank);
    int (*comm_destroy)(nccl_comm comm);
    int (*comm_abort)(nccl_comm comm);
    int (*comm_get_async_error)(nccl_comm comm, int *error);
    int (*group_start)(void);
    int (*group_end)(void);
    int (*send)(const void *from, size_t count, int type, int peer, nccl_comm comm, void *stream);
    int (*recv)(void *to, size_t count, int type, int peer, nccl_comm comm, void *stream);
    const char *(*get_error_string)(int error);
};

/* It stays loaded, since threads of it may run until the process ends. False: the reason says why. */
bool nccl_load(struct nccl *nccl, char *reason, size_t bytes);

#endif
