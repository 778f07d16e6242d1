// SPDX-License-Identifier: Apache-2.0
/*
 * Sums over rows, the same bits everywhere. Every sum has one fixed order, chosen by its length alone. For a dot product
 * it is: 16 partial sums (element i goes to sum i % 16), added up pairwise, then the rest one by one. The vectors in
 * linear.c only say that order in a way that compilers turn into vector instructions; no compiler may change it. And
 * every row is computed by itself: which other rows are in the batch has no influence.
 */
#ifndef ENGINE_LINEAR_H
#define ENGINE_LINEAR_H

#include <stdint.h>

/* Sum of a[i] * b[i]. */
float linear_dot(const float *a, const float *b, int32_t n);

/* y = W x: weight [outputs][inputs], x [inputs], y [outputs]. */
void linear_apply(const float *weight, int32_t outputs, int32_t inputs, const float *x, float *y);

/* y = sum of share[i] * rows[i], added one by one from 0: rows [count][columns], y [columns]. */
void linear_mix(const float *share, const float *rows, int32_t count, int32_t columns, float *y);

/* y = x / sqrt(mean(x^2) + eps) * weight; y may be x. */
void linear_rms_norm(const float *weight, const float *x, int32_t n, float eps, float *y);

/* x becomes exp(x - max) in place; returns the sum of that, added one by one. n >= 1. */
float linear_exp_sum(float *x, int32_t n);

#endif
