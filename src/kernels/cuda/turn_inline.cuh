// SPDX-License-Identifier: Apache-2.0
/* How a block enters and leaves: included by turn.cuh, apart from it so that the contract can be read alone. */

__device__ __forceinline__ bool turn_begins_pair(enum turn_operation operation)
{
    return operation == TURN_DISPATCH_SEND || operation == TURN_DISPATCH;
}

__device__ __forceinline__ muster_phase turn_phase(enum turn_operation operation)
{
    return operation < TURN_COMBINE_SEND ? MUSTER_PHASE_DISPATCH : MUSTER_PHASE_COMBINE;
}

/* The step that this kernel belongs to: the open one, or with begins_step the one after the last. */
__device__ __forceinline__ void turn_take_step(const struct cuda_launch &l, const struct cuda_step &step,
                                               struct turn *turn)
{
    if (!l.begins_step)
        turn->number = step.number;
    else
        turn->number = step.epoch == turn->epoch ? step.number + 1 : turn->view.first_sequence / 2;
}

__device__ inline muster_mask mask_of_both(muster_mask a, muster_mask b)
{
    a.word[0] &= b.word[0];
    a.word[1] &= b.word[1];
    return a;
}

/* X10: a new pair's numbers begin afresh with the epoch, and so does its mask; the halves that follow use the same. */
__device__ __forceinline__ void turn_take_pair(enum turn_operation operation, const struct cuda_exchange &x,
                                               struct turn *turn)
{
    bool same_epoch = x.pair.epoch == turn->epoch;
    if (turn_begins_pair(operation)) {
        turn->sequence = 1 + (same_epoch ? x.pair.sequence : turn->view.first_sequence);
        turn->mask = turn->view.mask;
        if (x.narrowed_epoch == turn->epoch)
            turn->mask = mask_of_both(turn->mask, x.narrowed);
    } else {
        turn->sequence = x.pair.sequence;
        turn->mask = x.pair.mask;
    }
    turn->stamp = turn_stamp(turn->epoch, turn->sequence);
}

/*
 * X13: each step takes two numbers and each pair one; an epoch ends before they do. The agent asks for the next one, and so
 * many are kept in reserve that work goes on until it comes.
 */
__device__ inline void turn_note_number(const struct cuda_launch &l, uint32_t epoch, uint64_t number)
{
    if (number > STAMP_MAX_SEQUENCE - STAMP_SEQUENCE_RESERVE)
        word_store(&l.mailbox->used_up_epoch, epoch);
}

/* X10: with none left, a stamp would be one of the next epoch. */
__device__ inline bool turn_has_number(uint64_t number)
{
    return number <= STAMP_MAX_SEQUENCE;
}

/* What the kernel before may have changed. */
struct turn_state {
    uint64_t gate, failure;
    struct cuda_step step;
    struct cuda_exchange exchange;
};

/* By one thread, into its registers: all loads are under way at once, and what follows waits for no memory. */
__device__ __forceinline__ struct turn_state turn_read_state(const struct cuda_launch &l)
{
    const volatile struct cuda_control *c = l.control;
    const volatile struct cuda_exchange *x = l.exchange;
    struct turn_state now;
    now.gate = word_look(&l.control->gate); /* blocks that enter or fail change these two meanwhile */
    now.failure = word_look(&l.control->failure);
    now.step.epoch = c->step.epoch;
    now.step.number = c->step.number;
    now.step.total = c->step.total;
    now.exchange.pair.epoch = x->pair.epoch;
    now.exchange.pair.sequence = x->pair.sequence;
    now.exchange.narrowed_epoch = x->narrowed_epoch;
    for (int i = 0; i < 2; i++) {
        now.exchange.pair.mask.word[i] = x->pair.mask.word[i];
        now.exchange.narrowed.word[i] = x->narrowed.word[i];
    }
    return now;
}

/* Of a step that was void from its start; why has been read meanwhile, and forgotten. */
__device__ __forceinline__ muster_reason turn_void_from_start(uint64_t gate)
{
    return gate & CUDA_GATE_OPEN ? MUSTER_REASON_UNREAD : MUSTER_REASON_NOT_READY;
}

/*
 * What the gate is when the kernel before is over decides. A step that is void, or of another epoch, gets no further; a pair
 * whose dispatch was of another epoch neither; nor a step or pair for which no number is left.
 */
__device__ __forceinline__ muster_reason turn_admission(const struct cuda_launch &l, enum turn_operation operation,
                                                        const struct turn_state &now, const struct turn *turn)
{
    if (l.begins_step && !(now.gate & CUDA_GATE_OPEN))
        return MUSTER_REASON_NOT_READY;
    if (!l.begins_step && now.step.epoch == 0)
        return turn_void_from_start(now.gate);
    if (!l.begins_step && now.step.epoch != turn->epoch)
        return MUSTER_REASON_EPOCH;
    if (!turn_begins_pair(operation) && now.exchange.pair.epoch != turn->epoch)
        return MUSTER_REASON_EPOCH;
    bool numbered = turn_has_number(turn->sequence) && turn_has_number(2 * turn->number + 2);
    return numbered ? MUSTER_REASON_NONE : MUSTER_REASON_ABORT;
}

/* By the lanes of a warp: one after the other the loads would take many times as long. */
__device__ __forceinline__ void turn_copy(void *to, const void *from, size_t bytes)
{
#pragma unroll 1
    for (size_t i = threadIdx.x & 31; i < bytes / sizeof(uint64_t); i += 32)
        ((volatile uint64_t *)to)[i] = ((const volatile uint64_t *)from)[i];
}

/* The view's first words, one for each lane: as a rule that is all of it. */
enum { TURN_VIEW_BYTES = 32 * sizeof(uint64_t) };

/* Begins to load the lane's. What the view tells stays as it is while a block is inside the gate that found it open. */
__device__ __forceinline__ uint64_t turn_load_view(const struct cuda_launch &l)
{
    return ((const volatile uint64_t *)&l.control->view)[threadIdx.x & 31];
}

/* They, and those behind them. */
__device__ inline void turn_keep_view(const struct cuda_launch &l, struct turn *turn, uint64_t word)
{
    size_t bytes = offsetof(struct cuda_view, peers) + (size_t)l.shape.ranks * sizeof(void *);
    ((volatile uint64_t *)&turn->view)[threadIdx.x & 31] = word;
    if (bytes > TURN_VIEW_BYTES)
        turn_copy((unsigned char *)&turn->view + TURN_VIEW_BYTES, (unsigned char *)&l.control->view + TURN_VIEW_BYTES,
                  bytes - TURN_VIEW_BYTES);
    __syncwarp();
    if (threadIdx.x == 0) {
        turn->rank = turn->view.rank;
        turn->ranks = turn->view.ranks;
    }
}

template <bool FT>
__device__ __forceinline__ void turn_begin(const struct cuda_launch &l, enum turn_operation operation,
                                           struct turn *turn, const struct turn_state &now)
{
    turn->step = now.step;
    turn->epoch = gate_epoch(now.gate);
    turn->live = !FT || now.failure == 0;
    turn_take_step(l, now.step, turn);
    turn_take_pair(operation, now.exchange, turn);
    muster_reason refused = FT && turn->live ? turn_admission(l, operation, now, turn) : MUSTER_REASON_NONE;
    if (refused == MUSTER_REASON_NONE)
        return;
    bool ended = refused == MUSTER_REASON_EPOCH || refused == MUSTER_REASON_ABORT;
    turn_fail(l, refused, ended ? turn_phase(operation) : MUSTER_PHASE_STEP, -1, turn->epoch, 0);
    turn->live = false;
}

/*
 * The kernel before this one in the stream is over, and its stores are seen. Until then a block that is launched early
 * (see launch_kernel()) sleeps here.
 */
__device__ __forceinline__ void turn_await_stream()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* All blocks of this kernel have their places, so those of the next may take what is left, and what becomes free. */
__device__ __forceinline__ void turn_let_next_come()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/*
 * The agent must know of a step before the kernel that begins it is outside the gate. One block tells as it enters: a store into
 * host memory takes most of a microsecond, for which the last block would have to wait.
 */
__device__ inline void step_tell_begun(const struct cuda_launch &l, const struct turn *turn)
{
    word_store(&l.mailbox->step_open, (uint64_t)(turn->live ? turn->epoch : 0) << 1 | 1);
}

/*
 * The door comes first: if it is open, its epoch's view stays while this block is inside. If it was not, the view may be about
 * to change, and is read again. Whether the epoch is open, and has not failed, is asked at the gate when the kernel before is
 * over.
 */
template <bool FT, typename Prepare>
__device__ bool turn_enter(const struct cuda_launch &l, enum turn_operation operation, struct turn *turn,
                           Prepare prepare)
{
    if (threadIdx.x < 32) {
        uint64_t gate = 0;
        if (threadIdx.x == 0)
            gate = FT ? gate_enter(l.control, blockIdx.x) : word_look(&l.control->gate);
        bool open = __shfl_sync(~0u, gate & CUDA_GATE_OPEN, 0);
        __syncwarp(); /* what the lane that has asked the gate may see, all may */
        uint64_t view = turn_load_view(l);
        turn_await_stream();
        struct turn_state now = {};
        if (threadIdx.x == 0)
            now = turn_read_state(l);
        turn_keep_view(l, turn, view);
        if (!open) {
            __threadfence(); /* by the lane that has read the gate, before any reads the view */
            __syncwarp();
            turn_keep_view(l, turn, turn_load_view(l));
        }
        if (threadIdx.x == 0)
            turn_begin<FT>(l, operation, turn, now);
        if (l.begins_step && threadIdx.x == 0 && blockIdx.x == gridDim.x - 1)
            step_tell_begun(l, turn);
    } else {
        turn_await_stream();
        prepare((int)threadIdx.x - 32, (int)blockDim.x - 32);
    }
    turn_let_next_come();
    __syncthreads();
    return turn->live;
}

/*
 * Tells every peer how far this rank's step is: see struct region_header. By threads `first`, `first` + `step` and so on.
 * Orders nothing by itself.
 */
__device__ inline void turn_publish_step(const struct cuda_view *view, uint64_t word, int first, int step)
{
    for (int r = first; r < view->ranks; r += step)
        if (view->mask.word[r >> 6] >> (r & 63) & 1)
            word_store((uint64_t *)(view->peers[r] + (size_t)view->rank * 64), word);
}

/* By the last threads of the block, since the first ones have other things to do. */
__device__ inline void turn_publish_begun(const struct cuda_launch &l, const struct turn *turn)
{
    uint64_t word = turn_stamp(turn->epoch, 2 * turn->number + 1);
    if (l.begins_step)
        turn_publish_step(&turn->view, word, (int)(blockDim.x - 1 - threadIdx.x), (int)blockDim.x);
}

/* Step begun: by the kernel that begins it, in its epilogue for the rank itself. */
__device__ inline void step_note_begun(const struct cuda_launch &l, const struct turn *turn)
{
    l.control->step = {turn->live ? turn->epoch : 0, 1, turn->number, turn->step.total + 1, turn->step.voids};
    if (turn->live)
        turn_note_number(l, turn->epoch, 2 * turn->number + 2);
}

/*
 * X3: the flags of the step are seen before its end is: whoever raised them has fenced them off at system scope, before
 * this thread came here. PTX would have this thread fence at that scope, too, which takes most of a microsecond; the GPUs do
 * without, and on one that does not a peer would call a good step off, and no more.
 *
 * The verdict: the failure that stands, or none; a step that found an earlier failure unread did nothing either.
 * `view` and `step` are those of the control block, or copies of them.
 */
__device__ inline void step_note_ended(const struct cuda_launch &l, const struct cuda_view *view,
                                       const struct cuda_step &step, uint64_t failure, uint32_t live_epoch)
{
    struct cuda_verdict *v = &l.mailbox->verdict[(step.total - 1) % CUDA_VERDICTS];
    uint64_t word = step.total << CUDA_VERDICT_STEP_SHIFT | step.epoch;
    if (step.epoch != 0 && step.epoch == live_epoch) /* a word of an older epoch could replace one of a newer */
        turn_publish_step(view, turn_stamp(step.epoch, 2 * step.number + 2), 0, 1);
    l.control->step.open = 0;
    word_store(&l.mailbox->step_open, (uint64_t)step.epoch << 1);
    if (failure == 0 &&
        step.epoch == 0) /* it began when an earlier one was unread, which the caller has read meanwhile */
        failure = turn_failure(MUSTER_REASON_UNREAD, MUSTER_PHASE_STEP, -1, live_epoch);
    if (failure == 0) {
        word_store(&v->word, word);
        return;
    }
    v->failure = failure;
    v->failure_detail = l.control->failure_detail;
    v->voids = l.control->step.voids = step.voids + 1;
    flag_raise(&v->word, word | CUDA_VERDICT_VOID);
}

/* Blocks that leave are counted below this, those of them that found the step void above. */
enum { EXITS_VOID = 1 << 16 };

/* Of the kernel that begins a step, a block that did nothing; of the one that ends it, that saw a failure, now. */
__device__ __forceinline__ bool turn_found_void(const struct cuda_launch &l, const struct turn *turn)
{
    return l.begins_step ? !turn->live : l.ends_step && turn_void(l);
}

/*
 * Counts this block out. True: it is the last one, and has all the others' stores before it; `found` is how many of them
 * have found the step void. One atomic operation tells both.
 */
__device__ inline bool turn_count_out(const struct cuda_launch &l, const struct turn *turn, bool told_peers,
                                      uint32_t *found)
{
    bool mine = turn_found_void(l, turn);
    if (l.ends_step && told_peers)
        __threadfence_system(); /* X3: see step_note_ended(); here all blocks do it at the same time */
    else
        __threadfence();
    uint32_t before = count_add_acquire(&l.exchange->exits, mine ? 1u + EXITS_VOID : 1u);
    *found = before / EXITS_VOID + mine;
    return before % EXITS_VOID == gridDim.x - 1;
}

/*
 * Some blocks of a kernel began the step, and others did not: a failure was forgotten, or the gate opened, while they
 * entered. So the step is void, and its numbers, of which peers may have heard, are not used again: its epoch ends, of which
 * the agent hears even if another failure stands. If this block is of an epoch that has not begun, they are of the one before.
 */
static __device__ __noinline__ void turn_disagree(const struct cuda_launch &l, const struct turn *turn)
{
    turn_fail(l, MUSTER_REASON_ABORT, MUSTER_PHASE_STEP, -1, turn->epoch, 0);
    if (!gate_in_epoch(l.control, turn->epoch))
        return;
    turn_close_epoch(l, turn->epoch);
    word_store(&l.mailbox->used_up_epoch, turn->epoch);
}

/*
 * By the last block of a kernel: it alone changes what the next kernel reads. What the turn has copied is still so, and
 * nearer than the control block.
 */
__device__ inline void turn_epilogue(const struct cuda_launch &l, enum turn_operation operation,
                                     const struct turn *turn, uint32_t found_void)
{
    struct cuda_exchange *x = l.exchange;
    x->exits = 0;
    x->counted = 0;
    x->dealt = 0;
    if (l.begins_step && found_void > 0 && found_void < gridDim.x)
        turn_disagree(l, turn);
    if (l.begins_step)
        step_note_begun(l, turn);
    if (turn->live && turn_begins_pair(operation)) {
        x->pair.epoch = turn->epoch;
        x->pair.sequence = turn->sequence;
        x->pair.mask = turn->mask;
        turn_note_number(l, turn->epoch, turn->sequence);
    }
    if (l.ends_step)
        step_note_ended(l, &turn->view, turn->step, found_void ? word_look(&l.control->failure) : 0, turn->epoch);
}

template <bool FT>
__device__ void turn_leave(const struct cuda_launch &l, enum turn_operation operation, const struct turn *turn,
                           bool told_peers)
{
    __syncthreads();
    if (threadIdx.x >= 32)
        return;
    uint32_t found_void = 0;
    bool last = threadIdx.x == 0 && turn_count_out(l, turn, told_peers, &found_void);
    if (!__any_sync(~0u, last))
        return;
    __syncwarp();
    __threadfence(); /* what the first thread has from the other blocks all have, and fence off */
    if (last)
        turn_epilogue(l, operation, turn, found_void);
    __syncwarp();
    if (FT && l.ends_step)
        __threadfence(); /* peers have been told; what only this stream's kernels read needs no fence */
    if (FT)
        gate_leave(l.control, gridDim.x);
}
