// SPDX-License-Identifier: Apache-2.0
/*
 * Symmetric memory on the host: one anonymous, sealed shared-memory file per rank. Nothing of it has a name, so nothing
 * is left behind when a process dies; a dead rank's memory stays a valid, harmless sink for as long as it is mapped.
 */
#ifndef MEMORY_SHM_H
#define MEMORY_SHM_H

#include <stdint.h>

#include "muster/status.h"

struct shm_region {
    int fd;
    uint64_t bytes;
    unsigned char *base;
};

/*
 * Makes this rank's region, zeroed; its size is sealed, and every page of it is taken. `sharers` ranks may do so at a time.
 * MEMORY names the limit that is in the way. On failure *region is untouched.
 */
muster_status shm_create(uint64_t bytes, int sharers, struct shm_region *region);
void shm_destroy(struct shm_region *region);

/* Maps a peer's region; refuses one of another size or one that could be cut short under us. Keeps fd open. */
muster_status shm_map(int fd, uint64_t bytes, unsigned char **base);
void shm_unmap(unsigned char *base, uint64_t bytes);

#endif
