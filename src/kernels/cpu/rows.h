// SPDX-License-Identifier: Apache-2.0
/* Arithmetic on rows of hidden states. */
#ifndef CPU_ROWS_H
#define CPU_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/exchange.h"

/* Rows to add up, in this order. */
struct rows_sum {
    int32_t count;
    const void *row[MUSTER_EP_MAX_TOPK];
    const float *scales[MUSTER_EP_MAX_TOPK]; /* of rows of codes */
    float weight[MUSTER_EP_MAX_TOPK];
};

/* The arithmetic, in one build. `elements` makes a multiple of 16 bytes. */
struct rows_arithmetic {
    const char *name;
    /*
     * out = (((+0 + weight[0] * row[0]) + weight[1] * row[1]) + ...), each product and each sum rounded to fp32 on its
     * own, the end rounded once to the type of the rows (X15). No rows: zeros.
     */
    void (*add)(const struct rows_sum *sum, enum exchange_type type, size_t elements, void *out);
    /* Codes and scales of one row, a scale per group of MUSTER_EP_FP8_GROUP elements. */
    void (*quantise)(const void *row, enum exchange_type type, size_t elements, bool power_of_two, uint8_t *codes,
                     float *scales);
    /* As add(), but the end is quantised as it is, and not rounded to the type of the rows before. */
    void (*add_quantise)(const struct rows_sum *sum, enum exchange_type type, size_t elements, bool power_of_two,
                         uint8_t *codes, float *scales);
    /* As add(), of rows of codes, whose elements are code * scale, rounded to fp32. `type` is that of the output. */
    void (*add_quantised)(const struct rows_sum *sum, enum exchange_type type, size_t elements, void *out);
};

extern const struct rows_arithmetic rows_plain, rows_avx2, rows_avx512;

enum { ROWS_MAX_BUILDS = 3 };

/* The builds that this processor can run, all with the same results; the last is the fastest. Returns how many. */
int rows_builds(const struct rows_arithmetic *builds[ROWS_MAX_BUILDS]);

#endif
