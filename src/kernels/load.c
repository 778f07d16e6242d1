// SPDX-License-Identifier: Apache-2.0
/* Finds and loads the CUDA backend: beside this library first, then wherever the loader looks. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "kernels/device.h"

static const char file_name[] = "libmuster_cuda.so.0";

/* The path of a file beside the one that holds this code. */
static bool load_path(char *path, size_t bytes)
{
    Dl_info info;
    if (!dladdr((const void *)file_name, &info) || !info.dli_fname)
        return false;
    const char *slash = strrchr(info.dli_fname, '/');
    int length = slash ? (int)(slash - info.dli_fname) + 1 : 0;
    return (size_t)snprintf(path, bytes, "%.*s%s", length, info.dli_fname, file_name) < bytes;
}

static void *load_library(void)
{
    char path[512];
    void *library = load_path(path, sizeof path) ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    return library ? library : dlopen(file_name, RTLD_NOW | RTLD_LOCAL);
}

muster_status device_load(const struct device_ops **ops)
{
    void *library = load_library(); /* stays loaded: kernels of it may run until the process ends */
    if (!library)
        return error_set(MUSTER_ERR_UNSUPPORTED, "the CUDA backend cannot be loaded: %s", dlerror());
    union {
        void *symbol;
        const struct device_ops *(*function)(void);
    } entry = {dlsym(library, "muster_cuda_backend")};
    const struct device_ops *found = entry.symbol ? entry.function() : NULL;
    if (!found || found->version != DEVICE_OPS_VERSION)
        return error_set(MUSTER_ERR_UNSUPPORTED, "%s is of another version of this library", file_name);
    *ops = found;
    return MUSTER_OK;
}
