// SPDX-License-Identifier: Apache-2.0
#include "memory/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "memory/room.h"

/* A region that may shrink would let one rank crash another with SIGBUS. */
#define SHM_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* So much is taken between two looks at what is left, at most: that lasts 4 ms, and a look a tenth of one. */
#define SHM_STEP_BYTES (UINT64_C(16) << 20)

static const char symmetric_memory[] = "config.memory_bytes: symmetric memory";

static muster_status shm_map_shared(int fd, uint64_t bytes, const char *whose, unsigned char **base)
{
    char why[ROOM_TEXT_BYTES];
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED) {
        *base = mapped;
        return MUSTER_OK;
    }
    room_explain_map(errno, bytes, why);
    return error_set(MUSTER_ERR_MEMORY, "cannot map %llu bytes of %s symmetric memory: %s", (unsigned long long)bytes,
                     whose, why);
}

/* To go beyond this limit would raise SIGXFSZ, which ends the process. */
static muster_status shm_check_file_size(uint64_t bytes)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || bytes <= limit.rlim_cur)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_MEMORY, "%s: %llu bytes are needed, and RLIMIT_FSIZE (ulimit -f) is %llu",
                     symmetric_memory, (unsigned long long)bytes, (unsigned long long)limit.rlim_cur);
}

/* Those who take memory at the same time see the same room: together they must not take more of it than there is. */
static uint64_t shm_step(uint64_t room, uint64_t rest, uint64_t most, int sharers)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), share = room / (2 * (uint64_t)sharers);
    uint64_t step = (share < most ? share : most) / page * page;
    step = step > page ? step : page;
    return step < rest ? step : rest;
}

static muster_status shm_not_taken(int error, uint64_t done, uint64_t bytes, const struct room *room)
{
    char why[ROOM_TEXT_BYTES];
    room_explain_take("/proc", error, why);
    return error_set(MUSTER_ERR_MEMORY, "%s: %llu of %llu bytes could be taken, though %llu are left of %s: %s",
                     symmetric_memory, (unsigned long long)done, (unsigned long long)bytes,
                     (unsigned long long)room->bytes, room->limit, why);
}

/*
 * Takes every page now, so that what was promised is there when it is used: no rank is ended for it in the middle of a step.
 * That is done in steps, each after a look at what is left, since the kernel ends processes rather than to refuse. A step
 * that a signal breaks off is undone, so the next ones are shorter: signals may come more often than a long one takes.
 */
static muster_status shm_commit(int fd, uint64_t bytes, int sharers)
{
    struct room room;
    uint64_t most = SHM_STEP_BYTES;
    for (uint64_t done = 0; done < bytes;) {
        muster_status status = room_check(bytes - done, symmetric_memory, &room);
        if (status != MUSTER_OK)
            return status;
        uint64_t step = shm_step(room.bytes, bytes - done, most, sharers);
        if (fallocate(fd, 0, (off_t)done, (off_t)step) == 0)
            done += step;
        else if (errno == EINTR)
            most /= 2;
        else
            return shm_not_taken(errno, done, bytes, &room);
    }
    return MUSTER_OK;
}

static muster_status shm_size(int fd, uint64_t bytes)
{
    if (ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, SHM_SEALS) == 0)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_MEMORY, "%s: cannot make a file of %llu bytes: %s", symmetric_memory,
                     (unsigned long long)bytes, strerror(errno));
}

muster_status shm_create(uint64_t bytes, int sharers, struct shm_region *region)
{
    struct room room;
    unsigned char *base = NULL;
    muster_status status = shm_check_file_size(bytes);
    if (status == MUSTER_OK)
        status = room_check(bytes, symmetric_memory, &room);
    if (status != MUSTER_OK)
        return status;
    int fd = memfd_create("muster", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return error_set(MUSTER_ERR_SYSTEM, "memfd_create for symmetric memory: %s", strerror(errno));
    status = shm_size(fd, bytes);
    if (status == MUSTER_OK)
        status = shm_map_shared(fd, bytes, "this rank's", &base);
    if (status != MUSTER_OK)
        goto close_fd;
    status = shm_commit(fd, bytes, sharers);
    if (status != MUSTER_OK)
        goto unmap;
    *region = (struct shm_region){.fd = fd, .bytes = bytes, .base = base};
    return MUSTER_OK;

unmap:
    shm_unmap(base, bytes);
close_fd:
    close(fd);
    return status;
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
    return shm_map_shared(fd, bytes, "a peer's", base);
}

void shm_unmap(unsigned char *base, uint64_t bytes)
{
    munmap(base, bytes);
}
