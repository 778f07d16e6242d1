// SPDX-License-Identifier: Apache-2.0
/*
 * Memory in which every store is late. A rank sees its own stores at once, as a processor does; everybody else sees
 * them when they are due, all of 16 bytes or less at a time. Loads are done where they stand, so an acquire load orders
 * those that come after it.
 */
#include <string.h>

#include "kernels/cpu/memory.h"

#include "sim_memory/sim.h"

/* --------------------------------------------------------------------------------------------------------- the heap */

static bool earlier(const struct sim_store *a, const struct sim_store *b)
{
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->order < b->order;
}

static void swap(int a, int b)
{
    struct sim_store kept = sim.store[a];
    sim.store[a] = sim.store[b];
    sim.store[b] = kept;
}

static void heap_up(int i)
{
    for (int parent = (i - 1) / 2; i > 0 && earlier(&sim.store[i], &sim.store[parent]); parent = (i - 1) / 2) {
        swap(i, parent);
        i = parent;
    }
}

static void heap_down(void)
{
    for (int i = 0;;) {
        int least = i;
        for (int child = 2 * i + 1; child <= 2 * i + 2 && child < sim.stores; child++)
            if (earlier(&sim.store[child], &sim.store[least]))
                least = child;
        if (least == i)
            return;
        swap(i, least);
        i = least;
    }
}

uint64_t sim_next_store_ns(void)
{
    return sim.stores ? sim.store[0].due_ns : UINT64_MAX;
}

void sim_deliver(void)
{
    const struct sim_store *store = &sim.store[0];
    uint64_t word = 0;
    memcpy(store->to, store->data, store->bytes);
    memcpy(&word, store->data, store->bytes < sizeof(word) ? store->bytes : sizeof(word));
    sim_hash(word ^ (uint64_t)store->writer << 56);
    sim.store[0] = sim.store[--sim.stores];
    heap_down();
}

/* The order stays as it is. */
void sim_delay_stores(uint64_t ns)
{
    for (int i = 0; i < sim.stores; i++)
        sim.store[i].due_ns += ns;
}

bool sim_stores_pending(int writer)
{
    for (int i = 0; i < sim.stores; i++)
        if (sim.store[i].writer == writer)
            return true;
    return false;
}

/* ----------------------------------------------------------------------------------------------------------- stores */

static bool overlaps(const struct sim_store *store, const unsigned char *to, size_t bytes)
{
    return store->to < to + bytes && to < store->to + store->bytes;
}

/* Stores of one rank to one place keep their order: that much every memory promises. */
static uint64_t due_after_same_place(int writer, const unsigned char *to, size_t bytes, uint64_t due_ns)
{
    for (int i = 0; i < sim.stores; i++)
        if (sim.store[i].writer == writer && overlaps(&sim.store[i], to, bytes) && sim.store[i].due_ns >= due_ns)
            due_ns = sim.store[i].due_ns + 1;
    return due_ns;
}

static uint64_t store_delay_ns(void)
{
    bool calm = sim.now_ns > sim.faults_end_ns;
    uint64_t most = sim.store_ns;
    if (!calm && random_chance(&sim.net, sim.very_slow))
        most *= 1000;
    else if (random_chance(&sim.net, sim.slow))
        most *= 50;
    return random_below(&sim.net, most + 1);
}

static void store_push(void *to, const void *from, size_t bytes, bool release)
{
    struct sim_rank *writer = sim.running;
    uint64_t due_ns = sim.now_ns + store_delay_ns();
    if (sim.stores == SIM_MAX_STORES) {
        sim_fail("more than %d stores under way", SIM_MAX_STORES);
        return;
    }
    due_ns = due_after_same_place(writer->rank, to, bytes, due_ns);
    if (due_ns <= writer->fenced_ns)
        due_ns = writer->fenced_ns + 1;
    if (release && due_ns <= writer->last_due_ns)
        due_ns = writer->last_due_ns + 1;
    if (due_ns > writer->last_due_ns)
        writer->last_due_ns = due_ns;
    struct sim_store *store = &sim.store[sim.stores++];
    *store = (struct sim_store){due_ns, sim.orders++, to, writer->rank, (uint32_t)bytes, {0}};
    memcpy(store->data, from, bytes);
    heap_up(sim.stores - 1);
}

/* One access of the running rank: it may die or stop right before it, or another rank may go first. */
static void sim_access(void)
{
    struct sim_rank *rank = sim.running;
    rank->accesses++;
    if (rank->accesses == rank->die_at)
        control_kill(rank);
    else if (rank->accesses == rank->stop_at)
        rank->stopped_ns = sim.now_ns + 1 + random_below(&sim.faults, 3000) * SIM_US;
    if (rank->life != SIM_RUNS || rank->stopped_ns || random_chance(&sim.net, sim.yields))
        sim_pause(1 + random_below(&sim.net, 200));
}

static size_t piece(size_t left)
{
    size_t most = left < SIM_STORE_BYTES ? left : SIM_STORE_BYTES;
    return 1 + (size_t)random_below(&sim.net, most);
}

void remote_copy(void *to, const void *from, size_t bytes)
{
    if (!sim.running) {
        memcpy(to, from, bytes);
        return;
    }
    for (size_t done = 0, size; done < bytes; done += size) {
        size = bytes - done >= SIM_STORE_BYTES ? SIM_STORE_BYTES : piece(bytes - done);
        sim_access();
        store_push((unsigned char *)to + done, (const unsigned char *)from + done, size, false);
    }
}

void flag_raise(_Atomic uint64_t *flag, uint64_t stamp)
{
    if (!sim.running) {
        atomic_store(flag, stamp);
        return;
    }
    sim_access();
    store_push(flag, &stamp, sizeof(stamp), true);
}

void store_fence(void)
{
    if (sim.running)
        sim.running->fenced_ns = sim.running->last_due_ns;
}

/* ----------------------------------------------------------------------------------------------------------- loads */

/* Loads are done in their order anyway. */
void load_fence(void)
{
}

/* Lays the rank's own stores, in their order, over what it has loaded. */
static void see_own(unsigned char *loaded, const unsigned char *from, size_t bytes)
{
    uint64_t after = 0;
    for (;;) {
        const struct sim_store *next = NULL;
        for (int i = 0; i < sim.stores; i++) {
            const struct sim_store *s = &sim.store[i];
            if (s->writer == sim.running->rank && s->order >= after && overlaps(s, from, bytes) &&
                (!next || s->order < next->order))
                next = s;
        }
        if (!next)
            return;
        after = next->order + 1;
        for (uint32_t i = 0; i < next->bytes; i++)
            if (next->to + i >= from && next->to + i < from + bytes)
                loaded[next->to + i - from] = next->data[i];
    }
}

void remote_read(void *to, const void *from, size_t bytes)
{
    if (!sim.running) {
        memcpy(to, from, bytes);
        return;
    }
    for (size_t done = 0, size; done < bytes; done += size) {
        size = bytes - done < 64 ? bytes - done : 64;
        sim_access();
        memcpy((unsigned char *)to + done, (const unsigned char *)from + done, size);
        see_own((unsigned char *)to + done, (const unsigned char *)from + done, size);
    }
}

uint64_t flag_read(const _Atomic uint64_t *flag)
{
    uint64_t value;
    if (!sim.running)
        return atomic_load(flag);
    sim_access();
    memcpy(&value, (const void *)flag, sizeof(value));
    see_own((unsigned char *)&value, (const unsigned char *)flag, sizeof(value));
    return value;
}

void *remote_open(void *to, void *scratch)
{
    (void)to;
    return scratch;
}

void remote_close(void *to, const void *opened, size_t bytes)
{
    remote_copy(to, opened, bytes);
}

const void *remote_view(const void *from, void *scratch, size_t bytes)
{
    remote_read(scratch, from, bytes);
    return scratch;
}

/* ------------------------------------------------------------------------------------------------------------ waits */

void wait_poll(void)
{
    sim_pause(20 + random_below(&sim.net, 60));
}

void wait_yield(void)
{
    sim_pause(200 + random_below(&sim.net, 800));
}

void wait_sleep(uint64_t ns)
{
    sim_pause(ns + random_below(&sim.net, 10 * SIM_US));
}

uint64_t wait_clock_ns(void)
{
    return sim.now_ns;
}
