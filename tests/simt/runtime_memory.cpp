// SPDX-License-Identifier: Apache-2.0
/*
 * Memory of simulated devices: a memfd each, so that other processes can map it. Addresses are never used twice: what
 * was freed or unmapped faults for ever.
 */
#include "stream.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>

#include <cuda.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace
{

constexpr size_t page_bytes = 4096;
constexpr size_t unit_bytes = size_t{1} << 21; /* of symmetric memory */
constexpr size_t poisoned_bytes = size_t{16} << 20; /* at most; memory that is larger is taken page by page, as zeros */
constexpr int poison = 0xa5; /* what memory of a device holds that nobody has written to */
constexpr int on_host = -1;

/* ------------------------------------------------------------------------------------------------- addresses, backing */

size_t round_up(size_t bytes, size_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

/* NULL if there are none. */
unsigned char *reserve_addresses(size_t bytes)
{
    void *at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? nullptr : static_cast<unsigned char *>(at);
}

/* From here on they fault, and stay reserved, so that nothing else can come to lie there. */
void close_addresses(void *at, size_t bytes)
{
    mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

/* Bytes that were taken from each device. */
std::atomic<size_t> taken[simt_most_devices];

/* Memory itself, wherever it is mapped. Closed, and given back to its device, when nothing here holds it any more. */
struct backing {
    int fd;
    size_t bytes;
    int device; /* that it was taken from; on_host: from none, or by another process */
    bool shareable;

    backing(int memory, size_t size, int ordinal, bool may_share)
        : fd(memory), bytes(size), device(ordinal), shareable(may_share)
    {
    }
    backing(const backing &) = delete;
    backing &operator=(const backing &) = delete;
    ~backing()
    {
        close(fd);
        if (device != on_host)
            taken[device] -= bytes;
    }
};

using shared_backing = std::shared_ptr<const backing>;

bool backing_map(const backing &memory, void *at, int protection)
{
    return mmap(at, memory.bytes, protection, MAP_SHARED | MAP_FIXED, memory.fd, 0) != MAP_FAILED;
}

void backing_poison(const backing &memory)
{
    if (memory.device == on_host || memory.bytes > poisoned_bytes)
        return;
    void *at = mmap(nullptr, memory.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd, 0);
    if (at == MAP_FAILED)
        return;
    std::memset(at, poison, memory.bytes);
    munmap(at, memory.bytes);
}

bool take(int device, size_t bytes)
{
    if (device == on_host || (taken[device] += bytes) <= simt_memory_bytes)
        return true;
    taken[device] -= bytes;
    return false;
}

/* NULL if the device has not so much left. `bytes` are whole pages. */
shared_backing backing_make(int device, size_t bytes, bool shareable)
{
    if (bytes > simt_memory_bytes || !take(device, bytes))
        return nullptr;
    int fd = memfd_create("simulated device", MFD_CLOEXEC);
    shared_backing made = std::make_shared<backing>(fd, bytes, device, shareable);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0)
        return nullptr;
    backing_poison(*made);
    return made;
}

/* NULL if it is no memory. Takes the descriptor, whatever comes of it. */
shared_backing backing_of(int fd)
{
    struct stat about;
    if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0)
        return std::make_shared<backing>(fd, static_cast<size_t>(about.st_size), on_host, true);
    close(fd);
    return nullptr;
}

} // namespace

/* ------------------------------------------------------------------------------------------------- the runtime's memory */

namespace
{

enum class origin { device, host, other_process };

struct allocation {
    enum origin origin;
    shared_backing memory;
};

/* Never destroyed: threads may still use them while the process exits. */
struct allocations {
    std::mutex lock;
    std::map<void *, allocation> at;
};

allocations &all_allocations()
{
    static allocations *const all = new allocations;
    return *all;
}

/* A page behind it stays closed, so that what runs over its end faults. NULL if there is no room. */
void *allocation_place(enum origin origin, const shared_backing &memory)
{
    unsigned char *at = reserve_addresses(memory->bytes + page_bytes);
    if (!at || !backing_map(*memory, at, PROT_READ | PROT_WRITE))
        return nullptr;
    allocations &all = all_allocations();
    std::lock_guard<std::mutex> guard(all.lock);
    all.at[at] = {origin, memory};
    return at;
}

cudaError_t allocate(enum origin origin, int device, void **memory, size_t bytes)
{
    *memory = nullptr;
    if (bytes == 0)
        return cudaSuccess;
    if (bytes > simt_memory_bytes)
        return cudaErrorMemoryAllocation;
    shared_backing made = backing_make(device, round_up(bytes, page_bytes), false);
    if (made)
        *memory = allocation_place(origin, made);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

/* Its backing, if there is one of this origin at the address. */
shared_backing allocation_find(enum origin origin, void *at)
{
    allocations &all = all_allocations();
    std::lock_guard<std::mutex> guard(all.lock);
    auto found = all.at.find(at);
    return found != all.at.end() && found->second.origin == origin ? found->second.memory : nullptr;
}

cudaError_t allocation_close(enum origin origin, void *at)
{
    shared_backing memory = allocation_find(origin, at);
    if (!memory)
        return cudaErrorInvalidValue;
    close_addresses(at, memory->bytes);
    allocations &all = all_allocations();
    std::lock_guard<std::mutex> guard(all.lock);
    all.at.erase(at);
    return cudaSuccess;
}

/* Waits for what its device was given: a kernel may still use the memory. */
cudaError_t release(enum origin origin, void *at)
{
    int current;
    if (!at)
        return cudaSuccess;
    shared_backing memory = allocation_find(origin, at);
    if (!memory)
        return cudaErrorInvalidValue;
    cudaError_t error = cudaGetDevice(&current);
    if (error == cudaSuccess)
        error = simt_refuse_while_capturing();
    if (error != cudaSuccess)
        return error;
    simt_wait_for_device(memory->device == on_host ? current : memory->device);
    return allocation_close(origin, at);
}

} // namespace

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    int device;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = simt_refuse_while_capturing();
    return simt_report(error == cudaSuccess ? allocate(origin::device, device, memory, bytes) : error);
}

cudaError_t cudaFree(void *memory)
{
    return simt_report(release(origin::device, memory));
}

/* Of all flags, as all memory here is mapped everywhere. */
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned)
{
    cudaError_t error = simt_refuse_while_capturing();
    return simt_report(error == cudaSuccess ? allocate(origin::host, on_host, memory, bytes) : error);
}

cudaError_t cudaFreeHost(void *memory)
{
    return simt_report(release(origin::host, memory));
}

/* ---- other processes: a handle names a descriptor of the one that made it ---- */

namespace
{

constexpr uint64_t handle_mark = 0x656c646e61682121;

struct handle_text {
    uint64_t mark;
    int32_t process, fd;
};

static_assert(sizeof(handle_text) <= sizeof(cudaIpcMemHandle_t), "a handle holds it");

shared_backing handle_open(const handle_text &text)
{
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/fd/%d", text.process, text.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? nullptr : backing_of(fd);
}

} // namespace

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *memory)
{
    shared_backing found = allocation_find(origin::device, memory);
    if (!found)
        return simt_report(cudaErrorInvalidValue);
    handle_text text = {handle_mark, getpid(), found->fd};
    *handle = {};
    std::memcpy(handle, &text, sizeof text);
    return cudaSuccess;
}

/* Not in the process that made it, as on a device. */
cudaError_t cudaIpcOpenMemHandle(void **memory, cudaIpcMemHandle_t handle, unsigned flags)
{
    handle_text text;
    std::memcpy(&text, &handle, sizeof text);
    if (flags != cudaIpcMemLazyEnablePeerAccess || text.mark != handle_mark)
        return simt_report(cudaErrorInvalidValue);
    if (text.process == getpid())
        return simt_report(cudaErrorDeviceUninitialized);
    shared_backing found = handle_open(text);
    if (!found)
        return simt_report(cudaErrorMapBufferObjectFailed);
    *memory = allocation_place(origin::other_process, found);
    return simt_report(*memory ? cudaSuccess : cudaErrorMapBufferObjectFailed);
}

cudaError_t cudaIpcCloseMemHandle(void *memory)
{
    return simt_report(allocation_close(origin::other_process, memory));
}

/* ---------------------------------------------------------------------------------------- the driver's virtual memory */

namespace
{

struct mapping {
    size_t bytes;
    shared_backing memory;
};

/* Handles, reserved addresses and what is mapped there. Never destroyed. */
struct virtual_memory {
    std::mutex lock;
    CUmemGenericAllocationHandle last_handle = 0;
    std::map<CUmemGenericAllocationHandle, shared_backing> handles;
    std::map<CUdeviceptr, size_t> reserved;
    std::map<CUdeviceptr, mapping> mapped;
};

virtual_memory &all_virtual_memory()
{
    static virtual_memory *const all = new virtual_memory;
    return *all;
}

void *pointer(CUdeviceptr address)
{
    return reinterpret_cast<void *>(static_cast<uintptr_t>(address));
}

bool is_whole(size_t bytes)
{
    return bytes > 0 && bytes % unit_bytes == 0;
}

bool is_device(const CUmemLocation &location)
{
    int devices;
    return location.type == CU_MEM_LOCATION_TYPE_DEVICE && cudaGetDeviceCount(&devices) == cudaSuccess &&
           location.id >= 0 && location.id < devices;
}

CUmemGenericAllocationHandle handle_make(shared_backing memory)
{
    virtual_memory &all = all_virtual_memory();
    std::lock_guard<std::mutex> guard(all.lock);
    all.handles[++all.last_handle] = std::move(memory);
    return all.last_handle;
}

/* NULL if there is no such handle. */
shared_backing handle_find(CUmemGenericAllocationHandle handle)
{
    virtual_memory &all = all_virtual_memory();
    std::lock_guard<std::mutex> guard(all.lock);
    auto found = all.handles.find(handle);
    return found == all.handles.end() ? nullptr : found->second;
}

/* The next two: the caller holds the lock. */
bool is_reserved(const virtual_memory &all, CUdeviceptr at, size_t bytes)
{
    auto after = all.reserved.upper_bound(at);
    return after != all.reserved.begin() && std::prev(after)->first + std::prev(after)->second >= at + bytes;
}

bool is_mapped(const virtual_memory &all, CUdeviceptr at, size_t bytes)
{
    auto next = all.mapped.lower_bound(at);
    bool from_below = next != all.mapped.begin() && std::prev(next)->first + std::prev(next)->second.bytes > at;
    return from_below || (next != all.mapped.end() && next->first < at + bytes);
}

int protection(CUmemAccess_flags flags)
{
    switch (flags) {
    case CU_MEM_ACCESS_FLAGS_PROT_READ: return PROT_READ;
    case CU_MEM_ACCESS_FLAGS_PROT_READWRITE: return PROT_READ | PROT_WRITE;
    default: return PROT_NONE;
    }
}

} // namespace

CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *properties,
                                       CUmemAllocationGranularity_flags)
{
    if (!is_device(properties->location))
        return CUDA_ERROR_INVALID_DEVICE;
    *granularity = unit_bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *properties,
                     unsigned long long flags)
{
    if (!is_device(properties->location))
        return CUDA_ERROR_INVALID_DEVICE;
    if (properties->type != CU_MEM_ALLOCATION_TYPE_PINNED || !is_whole(bytes) || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    bool shareable = properties->requestedHandleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    shared_backing memory = backing_make(properties->location.id, bytes, shareable);
    if (!memory)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *handle = handle_make(std::move(memory));
    return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    virtual_memory &all = all_virtual_memory();
    std::lock_guard<std::mutex> guard(all.lock);
    return all.handles.erase(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* A hint where is not taken. */
CUresult cuMemAddressReserve(CUdeviceptr *at, size_t bytes, size_t alignment, CUdeviceptr, unsigned long long flags)
{
    size_t unit = std::max(alignment, unit_bytes);
    if (!is_whole(bytes) || (unit & (unit - 1)) != 0 || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    unsigned char *addresses = reserve_addresses(bytes + unit);
    if (!addresses)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *at = round_up(reinterpret_cast<uintptr_t>(addresses), unit);
    virtual_memory &all = all_virtual_memory();
    std::lock_guard<std::mutex> guard(all.lock);
    all.reserved[*at] = bytes;
    return CUDA_SUCCESS;
}

/* They stay closed: see above. */
CUresult cuMemAddressFree(CUdeviceptr at, size_t bytes)
{
    virtual_memory &all = all_virtual_memory();
    std::lock_guard<std::mutex> guard(all.lock);
    auto found = all.reserved.find(at);
    if (found == all.reserved.end() || found->second != bytes || is_mapped(all, at, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    all.reserved.erase(found);
    return CUDA_SUCCESS;
}

/* Whole allocations only. No device has access to it yet, and neither has the host. */
CUresult cuMemMap(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags)
{
    shared_backing memory = handle_find(handle);
    if (!memory || bytes != memory->bytes || offset != 0 || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    virtual_memory &all = all_virtual_memory();
    std::lock_guard<std::mutex> guard(all.lock);
    if (at % unit_bytes != 0 || !is_reserved(all, at, bytes) || is_mapped(all, at, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    if (!backing_map(*memory, pointer(at), PROT_NONE))
        return CUDA_ERROR_OUT_OF_MEMORY;
    all.mapped[at] = {bytes, std::move(memory)};
    return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr at, size_t bytes)
{
    virtual_memory &all = all_virtual_memory();
    std::lock_guard<std::mutex> guard(all.lock);
    auto found = all.mapped.find(at);
    if (found == all.mapped.end() || found->second.bytes != bytes)
        return CUDA_ERROR_INVALID_VALUE;
    close_addresses(pointer(at), bytes);
    all.mapped.erase(found);
    return CUDA_SUCCESS;
}

/* Every device, and the host, has the access that one is given: they share one page table. */
CUresult cuMemSetAccess(CUdeviceptr at, size_t bytes, const CUmemAccessDesc *access, size_t count)
{
    int allowed = PROT_NONE;
    for (size_t i = 0; i < count; i++) {
        if (!is_device(access[i].location))
            return CUDA_ERROR_INVALID_DEVICE;
        allowed |= protection(access[i].flags);
    }
    virtual_memory &all = all_virtual_memory();
    std::lock_guard<std::mutex> guard(all.lock);
    auto found = all.mapped.find(at);
    if (found == all.mapped.end() || found->second.bytes != bytes)
        return CUDA_ERROR_INVALID_VALUE;
    return mprotect(pointer(at), bytes, allowed) == 0 ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

CUresult cuMemExportToShareableHandle(void *fd, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
                                      unsigned long long flags)
{
    shared_backing memory = handle_find(handle);
    if (!memory || !memory->shareable || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    int exported = fcntl(memory->fd, F_DUPFD_CLOEXEC, 0);
    if (exported < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    std::memcpy(fd, &exported, sizeof exported);
    return CUDA_SUCCESS;
}

/* The descriptor stays the caller's. */
CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *fd, CUmemAllocationHandleType type)
{
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_INVALID_VALUE;
    int imported = fcntl(static_cast<int>(reinterpret_cast<intptr_t>(fd)), F_DUPFD_CLOEXEC, 0);
    shared_backing memory = imported < 0 ? nullptr : backing_of(imported);
    if (!memory)
        return CUDA_ERROR_INVALID_VALUE;
    *handle = handle_make(std::move(memory));
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name)
{
    switch (error) {
    case CUDA_SUCCESS: *name = "CUDA_SUCCESS"; break;
    case CUDA_ERROR_INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case CUDA_ERROR_OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case CUDA_ERROR_INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
    case CUDA_ERROR_OPERATING_SYSTEM: *name = "CUDA_ERROR_OPERATING_SYSTEM"; break;
    case CUDA_ERROR_UNKNOWN: *name = "CUDA_ERROR_UNKNOWN"; break;
    default: *name = nullptr; return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

/* ---------------------------------------------------------------------------------------------- the driver's functions */

namespace
{

struct driver_function {
    const char *name;
    void *address;
};

template <typename Function> driver_function driver_entry(const char *name, Function *function)
{
    return {name, reinterpret_cast<void *>(function)};
}

const driver_function driver_functions[] = {
    driver_entry("cuMemGetAllocationGranularity", cuMemGetAllocationGranularity),
    driver_entry("cuMemCreate", cuMemCreate),
    driver_entry("cuMemRelease", cuMemRelease),
    driver_entry("cuMemAddressReserve", cuMemAddressReserve),
    driver_entry("cuMemAddressFree", cuMemAddressFree),
    driver_entry("cuMemMap", cuMemMap),
    driver_entry("cuMemUnmap", cuMemUnmap),
    driver_entry("cuMemSetAccess", cuMemSetAccess),
    driver_entry("cuMemExportToShareableHandle", cuMemExportToShareableHandle),
    driver_entry("cuMemImportFromShareableHandle", cuMemImportFromShareableHandle),
    driver_entry("cuGetErrorName", cuGetErrorName),
};

} // namespace

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *result)
{
    auto found = std::find_if(std::begin(driver_functions), std::end(driver_functions),
                              [=](const driver_function &known) { return std::strcmp(known.name, name) == 0; });
    bool there = found != std::end(driver_functions);
    *function = there ? found->address : nullptr;
    if (result)
        *result = there ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
