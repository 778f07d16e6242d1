// SPDX-License-Identifier: Apache-2.0
#include "weights/map.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int map_descriptor(const struct refusal *to, int descriptor, void **mapping, size_t *size)
{
    struct stat status;
    if (fstat(descriptor, &status) != 0) {
        return refuse(to, NULL, "cannot be examined: %s", strerror(errno));
    }
    if (!S_ISREG(status.st_mode)) {
        return refuse(to, NULL, "not a regular file");
    }
    void *mapped = NULL;
    if (status.st_size > 0) { /* mmap of 0 bytes is an error */
        mapped = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    }
    if (mapped == MAP_FAILED) {
        return refuse(to, NULL, "cannot be mapped: %s", strerror(errno));
    }
    *mapping = mapped;
    *size = (size_t)status.st_size;
    return 0;
}

/* The descriptor is closed again: a mapping keeps its file by itself. */
int map_file(const struct refusal *to, void **mapping, size_t *size)
{
    /* O_NONBLOCK, lest a pipe given by mistake should wait for a writer instead of being refused. */
    int descriptor = open(to->label, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) {
        return refuse(to, NULL, "cannot be opened: %s", strerror(errno));
    }
    int result = map_descriptor(to, descriptor, mapping, size);
    close(descriptor);
    return result;
}

void unmap_file(void *mapping, size_t size)
{
    if (mapping != NULL) {
        munmap(mapping, size);
    }
}
