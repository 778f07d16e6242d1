// SPDX-License-Identifier: Apache-2.0
/*
 * The backend that the exchange's tests run on. The same test programs are linked twice: with lib/backend_cpu.c, where
 * tensors lie in ordinary memory, and with gpu/backend_cuda.c, where each rank has a device, a stream and memory there.
 */
#ifndef LIB_BACKEND_H
#define LIB_BACKEND_H

#include <stddef.h>

#include "muster/group.h"
#include "muster/memory.h"

struct test_backend {
    muster_backend backend;
    int max_ranks; /* tests with more are left out */

    /* For the calling thread, which is one rank from here on. */
    void (*rank_begin)(int rank);
    muster_device (*device)(void);
    void *(*stream)(void);

    /* Memory for tensors. It is never taken from the device while a kernel may wait for another rank. */
    void *(*allocate)(size_t bytes);
    void (*release)(void *memory);
    void (*copy)(void *to, const void *from, size_t bytes); /* either may be the host's; waits for the stream */
};

/* NULL: the CPU. */
extern const struct test_backend *const test_backend;

/* The stream of the calling rank; NULL on the CPU. */
void *backend_stream(void);

/* Waits until all that was enqueued on it is done. */
void backend_wait(void);

/* What a call returns for a failure that its kernels find: on a device it only enqueues them, and the verdict tells. */
muster_status backend_status(muster_status status);

/* From or to memory of either side; waits for the stream. */
void backend_copy(void *to, const void *from, size_t bytes);

/* False, with a line that says so, if the backend of this program has not so many ranks. */
int backend_has_ranks(int ranks);

#endif
