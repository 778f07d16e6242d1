// SPDX-License-Identifier: Apache-2.0
/* How the readers of weights word what is wrong: "label: [tensor 'name' ]message", printable and cut to fit. */
#ifndef WEIGHTS_REFUSE_H
#define WEIGHTS_REFUSE_H

#include <stddef.h>

/* Whose fault it is, and where a complaint about it goes. */
struct refusal {
    const char *label; /* the file's name */
    char *error;
    size_t error_bytes; /* 0: nobody wants to know */
};

/* Words the complaint and returns -1, so that a check reads: return refuse(...). tensor may be NULL. */
__attribute__((format(printf, 3, 4))) int refuse(const struct refusal *to, const char *tensor, const char *format, ...);

/* Adds to what has been worded; returns -1. */
__attribute__((format(printf, 2, 3))) int refuse_more(const struct refusal *to, const char *format, ...);

#endif
