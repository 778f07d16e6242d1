// SPDX-License-Identifier: Apache-2.0
/*
 * What the agent, the step and the kernels of one rank share on a GPU. Read by the host compiler and by nvcc.
 *
 * The gate is a word, live epoch (24 bits) | open (1), and has doors, each live epoch (24) | open (1) | blocks inside (32), on a
 * line of its own: at a single word the blocks of a kernel would queue. A block enters by its door with one atomic addition,
 * which tells it the epoch in the same instant as it makes itself known; the agent ends an epoch with one atomic operation on
 * each door, and then sees how many blocks are still inside. So either a block sees the new epoch and does nothing, or the agent
 * sees the block and waits for it. The agent shuts the gate before the doors, and opens it after them; a failure shuts the gate
 * alone. So who finds a door open sees the view, and who looks at the gate after that sees no older epoch than the door's.
 */
#ifndef CUDA_CONTROL_H
#define CUDA_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#include "muster/group.h"

enum { CUDA_GATE_EPOCH_SHIFT = 40, CUDA_DOORS = 32, CUDA_VERDICTS = 1024, CUDA_VERDICT_STEP_SHIFT = 25 };

#define CUDA_GATE_OPEN (UINT64_C(1) << 39)
#define CUDA_DOOR_INSIDE UINT64_C(0xffffffff) /* the rest of a door is as the gate */
#define CUDA_VERDICT_VOID (UINT64_C(1) << 24)

/*
 * The installed view. Written only while the gate is closed and no block is inside that found it open: such a block may read
 * the view for as long as it is inside. One that found it closed may be inside meanwhile, and does nothing with what it reads.
 */
struct cuda_view {
    uint32_t epoch;
    int32_t rank, ranks;
    muster_mask mask;
    uint64_t first_sequence; /* of the epoch */
    unsigned char *peers[MUSTER_MAX_RANKS]; /* base of each rank's region here; NULL where it is not mapped */
};

/* On a line of its own. */
struct cuda_door {
    uint64_t word;
    uint64_t pad[15];
};

/* The step that is open, or was last. Written by the kernel that begins or ends it, by one thread. */
struct cuda_step {
    uint32_t epoch; /* 0: void from its start */
    uint32_t open;
    uint64_t number; /* in the epoch */
    uint64_t total; /* steps begun over the life of the group */
    uint64_t voids; /* of those that have ended */
};

/* One per rank, in its device memory. */
struct cuda_control {
    struct cuda_door door[CUDA_DOORS]; /* of the gate; of block b: b % CUDA_DOORS */
    uint64_t gate;
    uint64_t failure; /* failure_pack(): of the oldest void step whose verdict is unread; the first writer wins */
    uint64_t failure_detail; /* MUSTER_REASON_VALUE: token << 32 | k */
    uint64_t operation_timeout_ns; /* of one wait */
    uint64_t step_timeout_ns; /* of a wait on a rank that has not begun the step */
    uint64_t looked_ns; /* when a thread last looked at the mailbox: see wait_epoch_lives() */
    struct cuda_step step;
    struct cuda_view view;
};

/*
 * A step's end, as muster_step_verdict() tells it. A good step's is the first word alone, so that no store has to wait for
 * another on its way to the host.
 */
struct cuda_verdict {
    uint64_t word; /* the step's total (39 bits) | void (1) | epoch (24); written last */
    uint64_t failure; /* of a void step, like the next two */
    uint64_t failure_detail;
    uint64_t voids; /* void steps over the life of the group, this one counted */
};

/* One per rank, in host memory that the device sees. A kernel looks here only when it has waited for long. */
struct cuda_mailbox {
    uint64_t live_epoch; /* the agent's: before anything else is told to the device */
    uint64_t quiet_epoch; /* the device's: no block of an older epoch is inside the gate */
    uint64_t failure; /* the device's copy, for the agent: it looks here between its other duties */
    uint64_t open_epoch; /* the device's: steps of this epoch may begin */
    uint64_t step_open; /* epoch << 1 | 1 while a step is open */
    struct cuda_verdict verdict[CUDA_VERDICTS]; /* of step n at (n - 1) % CUDA_VERDICTS */
    /* By peer: its deadline had passed; written before a TIMEOUT failure. Bytes, since the bus has no atomic operations. */
    uint8_t overdue[MUSTER_MAX_RANKS];
    uint64_t used_up_epoch; /* the device's: the sequence numbers of this epoch run short */
    uint64_t look; /* the device's: number of the last look at peers' steps << 1 | all have ended what this rank has */
};

#endif
