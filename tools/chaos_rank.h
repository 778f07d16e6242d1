// SPDX-License-Identifier: Apache-2.0
/* A rank of a campaign: runs steps until it is told to leave, or dies. */
#ifndef TOOLS_CHAOS_RANK_H
#define TOOLS_CHAOS_RANK_H

enum { CHAOS_EXPELLED = 4 /* exit status: the others have gone on without this rank */ };

/* In a process that has MUSTER_RANK, MUSTER_RANKS and MUSTER_STORE. Its exit status. */
int chaos_rank_run(const char *board_path);

#endif
