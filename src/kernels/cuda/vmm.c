// SPDX-License-Identifier: Apache-2.0
/*
 * Symmetric memory on a GPU: physical memory of the driver's virtual memory management, shared as a file descriptor.
 * It lives for as long as anybody maps it: a dead rank's memory stays a valid, harmless sink for its peers' stores.
 * The driver's functions are found at run time, so nothing here needs its library to link.
 */
#include <cuda.h>
#include <unistd.h>

#include "kernels/cuda/device.h"

struct driver {
    CUresult (*get_granularity)(size_t *, const CUmemAllocationProp *, CUmemAllocationGranularity_flags);
    CUresult (*create)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long);
    CUresult (*release)(CUmemGenericAllocationHandle);
    CUresult (*reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
    CUresult (*free_address)(CUdeviceptr, size_t);
    CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
    CUresult (*unmap)(CUdeviceptr, size_t);
    CUresult (*set_access)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
    CUresult (*export_handle)(void *, CUmemGenericAllocationHandle, CUmemAllocationHandleType, unsigned long long);
    CUresult (*import_handle)(CUmemGenericAllocationHandle *, void *, CUmemAllocationHandleType);
    CUresult (*error_name)(CUresult, const char **);
};

static struct driver driver;
static const char *driver_missing;

static void driver_find(const char *name, void **function)
{
    enum cudaDriverEntryPointQueryResult result;
    cudaError_t error = cudaGetDriverEntryPointByVersion(name, function, 12000, cudaEnableDefault, &result);
    if ((error != cudaSuccess || result != cudaDriverEntryPointSuccess) && !driver_missing)
        driver_missing = name;
}

static void driver_load(void)
{
    driver_find("cuMemGetAllocationGranularity", (void **)&driver.get_granularity);
    driver_find("cuMemCreate", (void **)&driver.create);
    driver_find("cuMemRelease", (void **)&driver.release);
    driver_find("cuMemAddressReserve", (void **)&driver.reserve);
    driver_find("cuMemAddressFree", (void **)&driver.free_address);
    driver_find("cuMemMap", (void **)&driver.map);
    driver_find("cuMemUnmap", (void **)&driver.unmap);
    driver_find("cuMemSetAccess", (void **)&driver.set_access);
    driver_find("cuMemExportToShareableHandle", (void **)&driver.export_handle);
    driver_find("cuMemImportFromShareableHandle", (void **)&driver.import_handle);
    driver_find("cuGetErrorName", (void **)&driver.error_name);
}

static muster_status driver_ready(const struct device *device)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, driver_load);
    if (!driver_missing)
        return MUSTER_OK;
    return device->config.error(MUSTER_ERR_UNSUPPORTED, "the CUDA driver has no %s: it is too old", driver_missing);
}

static muster_status driver_check(const struct device *device, CUresult result, const char *what, uint64_t bytes)
{
    const char *name = "an unknown error";
    if (result == CUDA_SUCCESS)
        return MUSTER_OK;
    driver.error_name(result, &name);
    return device->config.error(result == CUDA_ERROR_OUT_OF_MEMORY ? MUSTER_ERR_MEMORY : MUSTER_ERR_SYSTEM,
                                "device %d: %s of %llu bytes of symmetric memory: %s", device->ordinal, what,
                                (unsigned long long)bytes, name);
}

static CUmemAllocationProp vmm_properties(const struct device *device)
{
    return (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                 .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                 .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device->ordinal}};
}

/* What is really taken: the same on every rank, since all devices of a group are alike. */
static uint64_t vmm_bytes(const struct device *device, uint64_t bytes)
{
    CUmemAllocationProp properties = vmm_properties(device);
    size_t unit = 1 << 21;
    driver.get_granularity(&unit, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    return (bytes + unit - 1) / unit * unit;
}

/* Gives this device access to an allocation, at an address of its own. */
static muster_status vmm_place(const struct device *device, CUmemGenericAllocationHandle handle, uint64_t bytes,
                               unsigned char **base)
{
    CUdeviceptr address;
    CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device->ordinal},
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    muster_status status = driver_check(device, driver.reserve(&address, bytes, 0, 0, 0), "reserving addresses", bytes);
    if (status != MUSTER_OK)
        return status;
    status = driver_check(device, driver.map(address, bytes, 0, handle, 0), "mapping", bytes);
    if (status != MUSTER_OK)
        goto free_address;
    status = driver_check(device, driver.set_access(address, bytes, &access, 1), "opening access", bytes);
    if (status != MUSTER_OK)
        goto unmap;
    *base = (unsigned char *)(uintptr_t)address;
    return MUSTER_OK;

unmap:
    driver.unmap(address, bytes);
free_address:
    driver.free_address(address, bytes);
    return status;
}

static muster_status vmm_share(struct device *device, CUmemGenericAllocationHandle handle, uint64_t bytes,
                               unsigned char **base, int *fd)
{
    muster_status status =
        driver_check(device, driver.export_handle(fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0), "sharing",
                     bytes);
    if (status != MUSTER_OK)
        return status;
    status = vmm_place(device, handle, bytes, base);
    if (status != MUSTER_OK)
        goto close_fd;
    status = device_check(device, cudaMemset(*base, 0, bytes), "clearing symmetric memory");
    if (status == MUSTER_OK)
        status = device_check(device, cudaDeviceSynchronize(), "clearing symmetric memory");
    if (status == MUSTER_OK)
        return MUSTER_OK;
    vmm_unmap(device, *base, bytes);

close_fd:
    close(*fd);
    return status;
}

muster_status vmm_create(struct device *device, uint64_t bytes, unsigned char **base, int *fd)
{
    muster_status status = driver_ready(device);
    if (status != MUSTER_OK)
        return status;
    int before = device_switch(device);
    CUmemAllocationProp properties = vmm_properties(device);
    CUmemGenericAllocationHandle handle;
    uint64_t taken = vmm_bytes(device, bytes);
    status = driver_check(device, driver.create(&handle, taken, &properties, 0), "allocating", taken);
    if (status == MUSTER_OK) {
        status = vmm_share(device, handle, taken, base, fd);
        driver.release(handle); /* mapping and descriptor keep the memory */
    }
    if (status == MUSTER_OK)
        device->region = (struct cuda_region){*base, bytes};
    device_return(before);
    return status;
}

void vmm_destroy(struct device *device)
{
    vmm_unmap(device, device->region.base, device->region.bytes);
    device->region = (struct cuda_region){0};
}

muster_status vmm_map(struct device *device, int fd, uint64_t bytes, unsigned char **base)
{
    muster_status status = driver_ready(device);
    if (status != MUSTER_OK)
        return status;
    int before = device_switch(device);
    uint64_t taken = vmm_bytes(device, bytes);
    CUmemGenericAllocationHandle handle;
    status =
        driver_check(device,
                     driver.import_handle(&handle, (void *)(uintptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                     "importing", taken);
    if (status == MUSTER_OK) {
        status = vmm_place(device, handle, taken, base);
        driver.release(handle);
    }
    device_return(before);
    return status;
}

void vmm_unmap(struct device *device, unsigned char *base, uint64_t bytes)
{
    uint64_t taken = vmm_bytes(device, bytes);
    int before = device_switch(device);
    driver.unmap((CUdeviceptr)(uintptr_t)base, taken);
    driver.free_address((CUdeviceptr)(uintptr_t)base, taken);
    device_return(before);
}
