// SPDX-License-Identifier: Apache-2.0
/* The inside of a group: what the caller's thread and the agent's thread share, and who writes what. */
#ifndef CONTROL_GROUP_STATE_H
#define CONTROL_GROUP_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "control/claim.h"
#include "control/group.h"
#include "control/member.h"
#include "control/store.h"
#include "control/watchdog.h"
#include "core/fork.h"
#include "kernels/device.h"
#include "memory/shm.h"

enum { GROUP_VERDICTS = 64 };

/* A peer's region as mapped here; keyed by incarnation so that a new process never inherits an old mapping. */
struct group_mapping {
    uint32_t incarnation; /* 0: nothing is mapped */
    unsigned char *base;
};

/* Something that is to be written under a key of this rank's own, or to be removed. */
struct group_put {
    struct group_put *next;
    bool remove;
    char key[STORE_MAX_KEY];
    char value[STORE_MAX_VALUE];
};

/* A value that a rank published for comparison. */
struct group_field_set {
    struct group_field_set *next;
    int32_t rank;
    char object[24];
    char fields[STORE_MAX_VALUE + 1];
};

/* What the caller's threads ask of the agent; taken under `lock`, announced through `wake_fd`. */
struct group_mail {
    bool start, leave, quit;
    uint32_t failed_epoch;
    uint32_t overdue_epoch;
    muster_mask overdue;
    struct group_put *puts; /* in this order */
};

/* The open step; only the caller's thread touches it. */
struct group_step_state {
    bool open;
    uint64_t
        total; /* steps begun over the life of the handle; with a device: by calls, of which a graph may run more */
    uint32_t last_epoch; /* of the last step that was not void from the start */
    uint64_t next_number; /* in last_epoch */
    uint64_t begun_ns;
    muster_reason failed; /* group_step_fail() was called, and with which phase */
    muster_phase failed_phase;
    struct kernel_step kernel;
    struct kernel_step ended; /* the last one that has told its peers that it is over; epoch 0: none has */
    unsigned char *peers[MUSTER_MAX_RANKS];
};

struct muster_group {
    muster_group_config config; /* resolved: no field is "from the environment" any more */
    pid_t pid;
    uint32_t forks; /* fork_count() of the process that made it: another has no agent thread, and must keep off */
    struct claim claim; /* of the rank's place in the store */
    struct kernel_control control;
    struct store *store;
    struct shm_region region; /* this rank's symmetric memory; on the device if there is one */
    uint64_t region_used;
    const struct device_ops *device_ops; /* of a backend with a device; otherwise NULL, like the next */
    struct device *device;

    pthread_t thread;
    int wake_fd;

    /* Written by the agent, read by kernels and steps without a lock. */
    _Atomic uint32_t begun; /* the epoch whose steps may begin; 0 while a view is being agreed */
    muster_mask begun_mask; /* of that epoch; written before `begun`, read after it */
    _Atomic int sticky; /* muster_status that ended the group; 0 = none */

    /* Written by the caller's thread, read by the agent: see agent_check_quiesced() and agent_check_ready(). */
    _Atomic bool executing; /* a kernel, or a step's own stores, are running */
    _Atomic bool step_open;
    _Atomic uint32_t step_epoch; /* of the open step, which an abort voids; 0: there is nothing to void */
    _Atomic uint32_t unread_void; /* verdicts of void steps that wait in the queue */
    _Atomic uint32_t ready_called; /* last epoch of muster_group_ready() */
    _Atomic uint32_t aborted_epoch; /* last epoch of muster_group_abort() */
    _Atomic uint64_t progress_said; /* by muster_group_set_progress(); MEMBER_NO_PROGRESS: nothing */
    _Atomic uint64_t progress_counted; /* M32; the agent writes it when an epoch begins: no step is open then */

    pthread_mutex_t lock; /* short sections only; never held across a wait other than the condition's own */
    pthread_cond_t changed;
    muster_view view; /* under lock */
    char sticky_text[512]; /* under lock */
    struct group_mail mail; /* under lock */
    struct group_field_set *fields; /* under lock */
    muster_mask expected; /* under lock; whose configuration counts: see member_expected() */
    bool founder; /* under lock; its configuration was compared with all others', not with a group's that goes on */
    bool founding; /* under lock; see member_is_deserted() */
    struct group_put *removals; /* under lock; of destroyed objects: see group_object_destroy() */
    uint32_t objects_before[MUSTER_MAX_RANKS]; /* under lock; objects that each rank had created when this one joined */
    struct group_child *children; /* under lock */
    struct watchdog watchdog; /* its ring is lock-free; children are read under lock */
    bool left; /* under lock */

    /* The agent's own. */
    struct member member;
    struct member_actions actions;
    struct group_mapping mapping[MUSTER_MAX_RANKS]; /* of the installed view */
    struct group_mapping prepared[MUSTER_MAX_RANKS]; /* newcomers of the view being prepared */
    struct view raising; /* the prepare that is not acknowledged yet */
    uint64_t memory_again_ns; /* when what of its newcomers' memory could not be had is asked for again; 0: all could */
    int memory_rounds; /* how often that has been done for it */
    uint32_t opening; /* with a device: the epoch that it was told to open, and has not yet; 0: none */
    uint64_t progress_least, progress_most; /* of the epoch that begins: a device may open it when members have gone */
    bool leaving; /* muster_group_leave() was called, and a device may still be at work */
    uint32_t ready_sent;
    uint64_t swap_id;
    struct view swap_view;
    uint32_t overdue_epoch; /* of the last timeout here: what this rank waited for, should it be accused itself */
    muster_mask overdue;
    uint64_t device_failure; /* the last one that was taken from the device's report */
    uint64_t device_steps; /* good ones, when the epoch began: see agent_progress() */
    uint32_t device_used_up; /* likewise the epoch whose numbers ran short */
    uint32_t presence[MUSTER_MAX_RANKS]; /* incarnation of the presence last seen */
    uint64_t ran_ns; /* when the agent last woke */
    uint64_t paused_ns; /* how long it has just not run, until its member has been told */
    uint64_t pause_end_ns; /* when the last such pause was over; 0: there was none */
    bool stopped;
    bool deaf; /* nothing wakes it but time */
    bool departed; /* it has told the store that this rank leaves; read by the caller when the agent has ended */
    muster_status unmapped; /* why memory for the view being prepared could not be mapped; MUSTER_OK: it could so far */
    char unmapped_text[512];

    /* The caller's own. */
    struct group_step_state step;
    muster_verdict verdict[GROUP_VERDICTS];
    uint32_t verdict_first, verdict_count;
    uint32_t objects; /* attempts to create one */
    int objects_held; /* those that were created and not destroyed */
};

/* group_memory.c */
muster_status group_memory_open(muster_group *g);
void group_memory_close(muster_group *g);
muster_status group_memory_map(muster_group *g, int fd, unsigned char **base);
void group_memory_unmap(muster_group *g, unsigned char *base);

/* step_device.c: steps that a device runs in stream order. */
muster_status step_device_begin(muster_group *g, void *stream);
muster_status step_device_end(muster_group *g, void *stream);
muster_status step_device_verdict(muster_group *g, muster_verdict *verdict);

/* step.c */
muster_status step_failure_status(uint64_t failure);

/* Tells the agent of a failure of this rank's own. `overdue`: with a timeout, whom it has waited for in vain. */
void step_report(muster_group *g, uint64_t failure, muster_mask overdue);
bool step_busy(muster_group *g); /* an exchange is half done */
/* Whether every member has ended the last step that this rank has told of its end, or there is none. */
bool step_peers_have_ended(const muster_group *g);
void step_open(muster_group *g); /* the caller's own count and marks, for a step that begins */

/* agent.c */
muster_status agent_start(muster_group *g);
void agent_wake(muster_group *g);

/* group_compare.c */
/* Compares the group's own configuration: as group_object_create() does an object's. */
muster_status group_compare(muster_group *g, const char *fields);
/* What a rank has published, and has published no longer; under the lock. */
void group_take_fields(muster_group *g, const char *object, int rank, const void *fields, size_t bytes);
void group_drop_fields(muster_group *g, const char *object, int rank);
void group_drop_rank(muster_group *g, int rank);
/* When this rank has joined: which objects are older than that. */
void group_note_objects(muster_group *g);
void group_forget_fields(muster_group *g);

/* group.c */
/* The moment in `timeout_us` from now, by the condition's clock. */
struct timespec group_deadline(uint64_t timeout_us);
/* Waits for a change; false when the deadline has passed. Called with the lock held. */
bool group_wait_change(muster_group *g, const struct timespec *deadline);
void group_stop(muster_group *g, muster_status status, const char *text);
/* An operation failed here: no step of this epoch begins here any more, even before the agent has raised the next. */
void group_epoch_failed(muster_group *g, uint32_t epoch);
/* M32: the default progress of a rank is its count of good steps. */
void group_count_step(muster_group *g, bool good);

#endif
