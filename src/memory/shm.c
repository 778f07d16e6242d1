// SPDX-License-Identifier: Apache-2.0
#include "memory/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"

/* A region that may shrink would let one rank crash another with SIGBUS. */
#define SHM_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static unsigned char *shm_map_shared(int fd, uint64_t bytes)
{
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return base == MAP_FAILED ? NULL : base;
}

muster_status shm_create(uint64_t bytes, struct shm_region *region)
{
    int fd = memfd_create("muster", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return error_set(MUSTER_ERR_SYSTEM, "memfd_create for symmetric memory: %s", strerror(errno));
    if (ftruncate(fd, (off_t)bytes) != 0 || fcntl(fd, F_ADD_SEALS, SHM_SEALS) != 0)
        goto close_fd;
    unsigned char *base = shm_map_shared(fd, bytes);
    if (!base)
        goto close_fd;
    *region = (struct shm_region){.fd = fd, .bytes = bytes, .base = base};
    return MUSTER_OK;

close_fd:
    error_set(MUSTER_ERR_MEMORY, "cannot make %llu bytes of symmetric memory: %s", (unsigned long long)bytes,
              strerror(errno));
    close(fd);
    return MUSTER_ERR_MEMORY;
}

void shm_destroy(struct shm_region *region)
{
    shm_unmap(region->base, region->bytes);
    close(region->fd);
}

muster_status shm_map(int fd, uint64_t bytes, unsigned char **base)
{
    struct stat status;
    if (fstat(fd, &status) != 0 || (uint64_t)status.st_size != bytes)
        return error_set(MUSTER_ERR_MISMATCH, "a peer's symmetric memory has another size than memory_bytes = %llu",
                         (unsigned long long)bytes);
    if ((fcntl(fd, F_GET_SEALS) & SHM_SEALS) != SHM_SEALS)
        return error_set(MUSTER_ERR_MISMATCH, "a peer's symmetric memory is not sealed against shrinking");
    unsigned char *mapped = shm_map_shared(fd, bytes);
    if (!mapped)
        return error_set(MUSTER_ERR_MEMORY, "cannot map a peer's symmetric memory: %s", strerror(errno));
    *base = mapped;
    return MUSTER_OK;
}

void shm_unmap(unsigned char *base, uint64_t bytes)
{
    munmap(base, bytes);
}
