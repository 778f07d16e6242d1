// SPDX-License-Identifier: Apache-2.0
/* What operations need of a group: its memory, its step, and the right to run a kernel in it. */
#ifndef CONTROL_GROUP_H
#define CONTROL_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/device.h"
#include "kernels/kernels.h"
#include "muster/group.h"

/* An object of the group that a view's installation sets afresh: exchanges register one of these. */
struct group_child {
    /* The watchdog reads these: the flags that peers raise here, at `flag(child, phase, peer)`. */
    const _Atomic uint64_t *(*flag)(const struct group_child *child, muster_phase phase, int32_t peer);
    /* Whether an operation is half done, so that a good step cannot end yet. */
    bool (*busy)(const struct group_child *child);
    const char *operation; /* "ep" */
    struct group_child *next;
};

/* Takes `bytes` of symmetric memory (collective in effect: every rank takes the same in the same order). */
muster_status group_memory_take(muster_group *g, uint64_t bytes, uint64_t *offset);

/* This rank's own region, at a fixed address for the group's life; offsets count from here. */
unsigned char *group_memory_base(const muster_group *g);

/* An object that every member has, under the same number and at the same place in symmetric memory. */
struct group_object {
    uint32_t number; /* of the attempts to create one on this rank, from 0 */
    uint64_t offset; /* of its memory in each region */
    char name[24]; /* kind and number, as messages name it: "ep0" */
};

/*
 * Takes `bytes` of symmetric memory for an object of this kind ("ep"), and compares `fields` ("name=value\n" lines), number
 * and offset with what the other members say. Blocks until all have said it, at most start_timeout_us. Errors: MEMORY;
 * UNSUPPORTED (too many at a time); MISMATCH names the field and each rank's value, or what the others have instead; TIMEOUT
 * names who has not come. After an error the memory is free again, and the number used.
 */
muster_status group_object_create(muster_group *g, const char *kind, const char *fields, uint64_t bytes,
                                  struct group_object *object);

/* This rank has it no longer: a newcomer that creates it is told so. Does not block. */
void group_object_destroy(muster_group *g, const struct group_object *object);

void group_add_child(muster_group *g, struct group_child *child);
void group_remove_child(muster_group *g, struct group_child *child);
int32_t group_ranks(const muster_group *g);

/* The device of the group's backend; both NULL when kernels run on the caller's thread. */
const struct device_ops *group_device_ops(const muster_group *g);
struct device *group_device(const muster_group *g);

/* Whether the caller has a step open. With a device an operation that opens or closes one itself says so by `mark`. */
bool group_step_is_open(const muster_group *g);
void group_step_mark(muster_group *g, bool open);

/* Without a device: the step that is open, or NULL. Its epoch, mask and number are fixed until it ends. */
const struct kernel_step *group_step(const muster_group *g);

/*
 * Brackets every kernel. Enter: OK, or VOID when the step is void or its epoch has ended (which makes it void); after
 * OK the agent does not acknowledge a new epoch until exit. Exit: turns the step's failure, if there is one, into the
 * status of the call: TIMEOUT, PEER, VOID, ARGUMENT (bad value), with muster_last_error() set; wakes the agent.
 */
muster_status group_kernel_enter(muster_group *g, muster_phase phase);
muster_status group_kernel_exit(muster_group *g, muster_phase phase);

/*
 * Tells the watchdog of a wait that begins (the flags of `child` should reach `stamp` for the ranks in `mask`); first
 * in, first out. Never blocks; the completion is read off the flags.
 */
void group_watch(muster_group *g, const struct group_child *child, muster_phase phase, uint64_t stamp,
                 muster_mask mask);

/*
 * Makes the open step void, unless it is already, for a reason that this rank's own call has found. With a device that is
 * kept here until the step ends: the call that ends it tells the device.
 */
void group_step_fail(muster_group *g, muster_reason reason, muster_phase phase);
/* Whether that was done in the step that is open. */
bool group_step_has_failed(const muster_group *g);

/* The step that is open, counted by calls over the life of the handle; 0: none is. */
uint64_t group_step_total(const muster_group *g);

/* Asks for a same-mask epoch because this one's sequence numbers run out. The step that runs stays good. */
void group_epoch_used_up(muster_group *g);

/* The first sequence number of a new epoch (setting MUSTER_FIRST_SEQUENCE). */
uint64_t group_first_sequence(const muster_group *g);

uint64_t group_start_timeout_us(const muster_group *g);

/*
 * Whether this process is a forked child of the one that has the group. Asked before any lock is taken: a thread that is
 * not in the child may hold it there for ever.
 */
bool group_is_forked(const muster_group *g);

/* FORKED in a forked child, or the sticky error of the group; MUSTER_OK if none. With muster_last_error() set. */
muster_status group_check(muster_group *g);

#endif
