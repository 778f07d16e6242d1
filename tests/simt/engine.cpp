// SPDX-License-Identifier: Apache-2.0
#include "simt/engine.h"
#include "simt/races.h"

#include <sched.h>

#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

namespace
{

namespace context = boost::context;

enum { WARP = 32, BARRIERS = 16, STACK_BYTES = 64 << 10, LOOKS = 8 };

enum class waits { nothing, word, barrier, warp, over };

struct fiber {
    context::fiber body;
    simt_index index;
    waits state = waits::nothing;
    unsigned barrier = 0;
    uint64_t round = 0; /* of the barrier or the warp, when this fiber came to it */
    void *racer = nullptr; /* see races.h, as the next two */
    bool fenced = false; /* since it last learnt what others have stored: its stores tell of all that */
    const void *looked[LOOKS] = {}; /* at words, lately: behind its next fence it sees what they tell of */
    unsigned looks = 0;
};

/* Who has come; when all have, the round is over. */
struct barrier {
    unsigned come = 0, wanted = 0, yes = 0, counted = 0;
    uint64_t round = 0;
    char order[2]; /* of what lies before a round, and what comes after it; rounds take turns */
};

struct warp {
    uint64_t given[2][WARP]; /* rounds take turns: nobody can end the next before all have read this one's */
    simt_operation operation;
    unsigned come = 0;
    uint64_t round = 0;
    char order[2];
};

struct block {
    simt_index index, size, grid;
    std::vector<fiber> fibers;
    std::vector<warp> warps;
    barrier barriers[BARRIERS];
    unsigned running;
    context::fiber scheduler; /* what a fiber goes back to */
    void *racer = nullptr; /* as which the scheduler is seen */
};

thread_local block *here;
thread_local fiber *self;

unsigned number_of(const fiber &f)
{
    return f.index.x;
}

[[noreturn]] void stop(const char *why)
{
    fprintf(stderr, "simt: block %u of %u, %u threads: %s\n", here->index.x, here->grid.x, here->size.x, why);
    static const char *const names[] = {"may run", "looks at a word", "waits at barrier", "waits for its warp",
                                        "is over"};
    for (const fiber &f : here->fibers)
        if (number_of(f) % WARP == 0 || f.state != here->fibers[number_of(f) - 1].state)
            fprintf(stderr, "  from thread %u: %s %u\n", number_of(f), names[(int)f.state],
                    f.state == waits::barrier ? f.barrier : 0);
    abort();
}

/* Back to the scheduler, until it thinks that this fiber may go on. */
void pause(waits state)
{
    self->state = state;
    races_switch(here->racer);
    here->scheduler = std::move(here->scheduler).resume();
    self->state = waits::nothing;
}

bool barrier_done(barrier &b)
{
    unsigned wanted = b.wanted ? b.wanted : here->running;
    if (b.come < wanted || b.come == 0)
        return false;
    b.come = 0;
    b.counted = b.yes;
    b.yes = 0;
    b.round++;
    return true;
}

bool may_go_on(const fiber &f)
{
    switch (f.state) {
    case waits::barrier: return here->barriers[f.barrier].round != f.round;
    case waits::warp: return here->warps[number_of(f) / WARP].round != f.round;
    case waits::over: return false;
    default: return true;
    }
}

/* Every fiber that may, once. False: none could but those that look at words. */
bool go_round(std::minstd_rand &random)
{
    size_t count = here->fibers.size(), first = random() % count;
    bool moved = false, any = false;
    for (size_t i = 0; i < count; i++) {
        fiber &f = here->fibers[(first + i) % count];
        if (!may_go_on(f))
            continue;
        any = true;
        moved = moved || f.state != waits::word;
        self = &f;
        races_switch(f.racer);
        f.body = std::move(f.body).resume();
    }
    if (!any)
        stop("nobody can go on");
    return moved;
}

void run_block(block &b, const std::function<void()> &kernel)
{
    static thread_local std::minstd_rand random{std::random_device{}()};
    here = &b;
    b.racer = races_self();
    simt_begin_block();
    races_before(&b);
    for (unsigned i = 0; i < b.size.x; i++) {
        fiber &f = b.fibers[i];
        f.index = {i, 0, 0};
        f.racer = races_open();
        f.body =
            context::fiber(std::allocator_arg, context::fixedsize_stack(STACK_BYTES), [&](context::fiber &&scheduler) {
                here->scheduler = std::move(scheduler);
                races_after(here);
                kernel();
                races_before(here);
                self->state = waits::over;
                here->running--;
                barrier_done(here->barriers[0]); /* who has ended is not waited for */
                races_switch(here->racer);
                return std::move(here->scheduler);
            });
    }
    while (b.running > 0)
        if (!go_round(random) && b.running > 0)
            sched_yield();
    races_after(&b);
    for (fiber &f : b.fibers)
        races_close(f.racer);
}

} // namespace

const simt_index &simt_thread_index()
{
    return self->index;
}

const simt_index &simt_block_index()
{
    return here->index;
}

const simt_index &simt_block_size()
{
    return here->size;
}

const simt_index &simt_grid_size()
{
    return here->grid;
}

void simt_run(unsigned blocks, unsigned threads, unsigned late_ms, const std::function<void()> &kernel)
{
    std::vector<std::thread> hosts;
    for (unsigned i = 0; i < blocks; i++)
        hosts.emplace_back([=, &kernel] {
            if (i > 0 && i == blocks - 1)
                std::this_thread::sleep_for(std::chrono::milliseconds(late_ms));
            block b{{i, 0, 0}, {threads, 1, 1}, {blocks, 1, 1}, {}, {}, {}, threads, {}};
            b.fibers = std::vector<fiber>(threads);
            b.warps = std::vector<warp>((threads + WARP - 1) / WARP);
            run_block(b, kernel);
        });
    for (std::thread &host : hosts)
        host.join();
}

void simt_look()
{
    if (self)
        pause(waits::word);
}

void simt_barrier(unsigned number, unsigned threads)
{
    barrier &b = here->barriers[number];
    if (b.come > 0 && b.wanted != threads)
        stop("a barrier is waited for by different numbers of threads");
    self->barrier = number;
    self->round = b.round;
    b.wanted = threads;
    b.come++;
    void *order = &b.order[b.round % 2];
    races_before(order);
    if (!barrier_done(b))
        pause(waits::barrier);
    races_after(order);
    simt_joined();
}

unsigned simt_barrier_count(bool yes)
{
    here->barriers[0].yes += yes;
    simt_barrier(0, 0);
    return here->barriers[0].counted; /* nobody can end the next round before this fiber has come to it */
}

unsigned simt_lanes()
{
    unsigned left = here->size.x - number_of(*self) / WARP * WARP;
    return left < WARP ? left : (unsigned)WARP;
}

const uint64_t *simt_exchange(simt_operation operation, uint64_t value)
{
    warp &w = here->warps[number_of(*self) / WARP];
    if (w.come > 0 && w.operation != operation)
        stop("lanes of a warp came for different operations");
    unsigned turn = w.round % 2;
    w.operation = operation;
    w.given[turn][number_of(*self) % WARP] = value;
    self->round = w.round;
    if (operation == SIMT_SYNC) /* the others order nothing */
        races_before(&w.order[turn]);
    if (++w.come < simt_lanes()) {
        pause(waits::warp);
    } else {
        w.come = 0;
        w.round++;
    }
    if (operation == SIMT_SYNC) {
        races_after(&w.order[turn]);
        simt_joined();
    }
    return w.given[turn];
}

void simt_fence()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!self)
        return;
    self->fenced = true;
    for (unsigned i = 0; i < LOOKS; i++)
        if (self->looked[i])
            races_after(const_cast<void *>(self->looked[i]));
}

bool simt_fenced()
{
    return self && self->fenced;
}

void simt_joined()
{
    if (self)
        self->fenced = false;
}

void simt_looked(const void *word)
{
    if (self)
        self->looked[self->looks++ % LOOKS] = word;
}
