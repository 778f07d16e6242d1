// SPDX-License-Identifier: Apache-2.0
/*
 * Where a GPU waits for a peer; what takes longer than a few polls is all in wait_until(). A wait ends in one of three ways
 * (X1): the flag is reached; the live epoch is no longer the step's, or the step became void elsewhere; the peer's deadline
 * has passed or it is known not to come.
 */
#ifndef CUDA_WAIT_CUH
#define CUDA_WAIT_CUH

#include "kernels/cuda/turn.cuh"

/* What one thread waits for. */
struct wait {
    const uint64_t *flag;
    uint64_t stamp;
    int32_t peer;
    muster_phase phase;
};

/* Most operations that go well take less than WAIT_LONG_NS, so no thread of theirs waits for the host's bus. */
enum { WAIT_POLLS_PER_LOOK = 64, WAIT_LONG_NS = 200000 };

__device__ __forceinline__ const uint64_t *wait_step_word(const struct cuda_launch &l, int peer)
{
    /* struct region_header: a cache line for each rank, at the beginning of the region. */
    return (const uint64_t *)(l.own.base + (size_t)peer * 64);
}

/* How far a wait has come: when it began, whom it is for now, and when that peer was first seen inside the step. */
struct wait_clock {
    uint64_t started_ns, begun_ns;
    int32_t peer;
};

/* What a look finds in this device's memory. */
struct wait_sight {
    uint64_t now_ns, failure, gate;
    uint64_t word; /* how far the peer's step is */
    uint64_t step_timeout_ns, operation_timeout_ns;
    uint32_t exits; /* of this kernel's blocks: see turn_count_out() */
};

/* All loads are under way at once, so that a flag that comes meanwhile is seen hardly later. */
__device__ __forceinline__ struct wait_sight wait_see(const struct cuda_launch &l, int peer)
{
    const struct cuda_control *c = l.control;
    return {clock_ns(),
            word_look(&c->failure),
            word_look(&c->gate),
            word_look(wait_step_word(l, peer)),
            word_look(&c->step_timeout_ns),
            word_look(&c->operation_timeout_ns),
            count_look(&l.exchange->exits)};
}

/*
 * X2: a peer has step_timeout to come to the step, and operation_timeout from when it was first seen inside it. Who is looked at
 * late, since others were waited for before, has no longer than both.
 */
__device__ inline bool wait_overdue(const struct wait_sight &now, struct wait_clock *clock, bool begun)
{
    uint64_t waited_ns = now.now_ns - clock->started_ns;
    if (!begun)
        return waited_ns > now.step_timeout_ns;
    if (clock->begun_ns == 0)
        clock->begun_ns = now.now_ns;
    if (now.now_ns - clock->begun_ns > now.operation_timeout_ns)
        return true;
    return waited_ns > now.step_timeout_ns && waited_ns - now.step_timeout_ns > now.operation_timeout_ns;
}

/*
 * Whether it is this thread's turn to look into host memory. Thousands of threads may wait at a time, and their looks would
 * fill the bus, where every release at system scope has to pass. One thread's look serves all, since what it finds it
 * records.
 */
__device__ inline bool wait_may_look(const struct cuda_launch &l, uint64_t now_ns)
{
    uint64_t looked_ns = word_look(&l.control->looked_ns);
    return now_ns > looked_ns + WAIT_LONG_NS &&
           atomicCAS((unsigned long long *)&l.control->looked_ns, looked_ns, now_ns) == looked_ns;
}

/* The live epoch as this device knows it; once the wait has lasted long, as the agent's own word has it. */
__device__ inline bool wait_epoch_lives(const struct cuda_launch &l, const struct turn *turn,
                                        const struct wait_sight &now, uint64_t started_ns)
{
    if ((uint32_t)(now.gate >> CUDA_GATE_EPOCH_SHIFT) != turn->epoch)
        return false;
    if (now.now_ns - started_ns < WAIT_LONG_NS || !wait_may_look(l, now.now_ns))
        return true;
    return (uint32_t)word_look(&l.mailbox->live_epoch) == turn->epoch;
}

/* A look at everything but the flag. False: the wait is over, and why has been recorded. */
__device__ __forceinline__ bool wait_look(const struct cuda_launch &l, const struct turn *turn, const struct wait &w,
                                          struct wait_clock *clock)
{
    struct wait_sight now = wait_see(l, w.peer);
    if (clock->started_ns == 0)
        clock->started_ns = now.now_ns;
    if (clock->peer != w.peer) /* X2: the deadline belongs to the peer */
        *clock = {clock->started_ns, 0, w.peer};
    if (now.failure)
        return false;
    if (l.begins_step && now.exits >= EXITS_VOID) { /* what this thread waits for may be those blocks' work */
        turn_disagree(l, turn);
        return false;
    }
    if (!wait_epoch_lives(l, turn, now, clock->started_ns)) {
        turn_fail(l, MUSTER_REASON_EPOCH, w.phase, -1, turn->epoch, 0);
        return false;
    }
    uint64_t begun = turn_stamp(turn->epoch, 2 * turn->number + 1);
    bool overdue = wait_overdue(now, clock, now.word >= begun);
    if (now.word <= begun && !overdue)
        return true;
    /* X3: the flag was raised before the word was stored, if it ever will be; and this thread may itself be late. */
    bool refused = flag_read(wait_step_word(l, w.peer)) > begun;
    if (flag_read(w.flag) >= w.stamp)
        return true;
    if (!refused)
        *(volatile uint8_t *)&l.mailbox->overdue[w.peer] = 1;
    turn_fail(l, refused ? MUSTER_REASON_REFUSED : MUSTER_REASON_TIMEOUT, w.phase, w.peer, turn->epoch, 0);
    return false;
}

/*
 * Polls, and looks at everything else now and then. reached() reads what is waited for; late() says what of it has not come: of
 * several peers one after the other. False: the step is void. FT false: waits for ever (promise 10).
 */
template <bool FT, typename Reached, typename Late>
__device__ __forceinline__ bool wait_until(const struct cuda_launch &l, const struct turn *turn, Reached reached,
                                           Late late)
{
    struct wait_clock clock = {0, 0, -1};
    for (uint32_t polls = 1; !reached(); polls++)
        if (FT && polls % WAIT_POLLS_PER_LOOK == 0 && !wait_look(l, turn, late(), &clock))
            return false;
    return true;
}

/*
 * All lanes of a warp wait together, each for its own flag, but for those that have none (flag NULL). What the peers stored
 * before is then visible to the warp, and to the block after its next barrier. CALM: many warps of the device do so at a
 * time; looks that order nothing, now and then, do not disturb what is on its way. False: the step is void.
 *
 * The first polls stand apart, so that what is remembered later takes no registers from them; and there is no call, which
 * would take some from whoever waits.
 */
template <bool FT, bool CALM>
__device__ inline bool wait_flags(const struct cuda_launch &l, const struct turn *turn, const struct wait &w)
{
    bool come = !w.flag;
    auto reached = [&] {
        come = come || (CALM ? word_look(w.flag) : flag_read(w.flag)) >= w.stamp;
        if (CALM && !come)
            __nanosleep(200);
        return come;
    };
    bool all = false;
    for (uint32_t polls = 0; !all && (!FT || polls < WAIT_POLLS_PER_LOOK); polls++)
        all = __all_sync(~0u, reached());
    if (FT && !all && !__all_sync(~0u, wait_until<true>(l, turn, reached, [&] { return w; })))
        return false;
    if (CALM && w.flag)
        flag_read(w.flag);
    __syncwarp(); /* what each flag's reader may see, its whole warp may see */
    return true;
}

/*
 * One thread waits for a flag of the pair; what the peer stored before is then visible to this thread, and to the block after
 * its next barrier. False: the step is void. A call, as is the next: who waits once in a kernel need not have all this
 * in what it runs over.
 */
template <bool FT>
static __device__ __noinline__ bool wait_flag(const struct cuda_launch &l, const struct turn *turn,
                                              const uint64_t *flag, int32_t peer, muster_phase phase)
{
    auto late = [&] { return wait{flag, turn->stamp, peer, phase}; };
    return wait_until<FT>(
        l, turn, [&] { return flag_read(flag) >= turn->stamp; }, late);
}

/* The same for a word that brings its value with it, and nothing else; if it has not come, its stamp is older. */
template <bool FT>
static __device__ __noinline__ struct exchange_word wait_word(const struct cuda_launch &l, const struct turn *turn,
                                                              const struct exchange_word *word, int32_t peer,
                                                              muster_phase phase)
{
    struct exchange_word read;
    auto late = [&] { return wait{&word->stamp, turn->stamp, peer, phase}; };
    auto reached = [&] {
        read = word_read(word);
        return read.stamp >= turn->stamp;
    };
    wait_until<FT>(l, turn, reached, late);
    return read;
}

#endif
