// SPDX-License-Identifier: Apache-2.0
/* Finds and loads the CUDA backend: beside this library first, then wherever the loader looks. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "kernels/device.h"
#include "kernels/runtime.h"

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

/* A function of the backend's by its name; NULL, with the reason in *status, if it cannot be had. */
static void *load_symbol(const char *name, muster_status *status)
{
    void *library = load_library(); /* stays loaded: kernels of it may run until the process ends */
    if (!library) {
        *status = error_set(MUSTER_ERR_UNSUPPORTED, "the CUDA backend cannot be loaded: %s", dlerror());
        return NULL;
    }
    void *symbol = dlsym(library, name);
    if (!symbol)
        *status = error_set(MUSTER_ERR_UNSUPPORTED, "%s has no %s: it is of another version", file_name, name);
    return symbol;
}

muster_status device_load(const struct device_ops **ops)
{
    muster_status status = MUSTER_OK;
    union {
        void *symbol;
        const struct device_ops *(*function)(void);
    } entry = {load_symbol("muster_cuda_backend", &status)};
    if (!entry.symbol)
        return status;
    *ops = entry.function();
    if ((*ops)->version == DEVICE_OPS_VERSION)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_UNSUPPORTED, "%s is of another version of this library", file_name);
}

muster_status runtime_load(const struct runtime **runtime)
{
    muster_status status = MUSTER_OK;
    union {
        void *symbol;
        const struct runtime *(*function)(runtime_error_function *error);
    } entry = {load_symbol("muster_cuda_runtime", &status)};
    if (!entry.symbol)
        return status;
    *runtime = entry.function(error_set);
    if ((*runtime)->version == RUNTIME_VERSION)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_UNSUPPORTED, "%s is of another version of this library", file_name);
}
