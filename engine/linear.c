// SPDX-License-Identifier: Apache-2.0
#include "linear.h"

#include <math.h>
#include <string.h>

/* Four floats side by side; arithmetic on them is that on each, rounded each by itself. */
typedef float lanes __attribute__((vector_size(16)));

static inline lanes load(const float *p)
{
    lanes v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline float add_up(lanes a, lanes b, lanes c, lanes d)
{
    lanes sum = (a + b) + (c + d);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static inline float dot(const float *a, const float *b, int32_t n)
{
    lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        s0 += load(a + i) * load(b + i);
        s1 += load(a + i + 4) * load(b + i + 4);
        s2 += load(a + i + 8) * load(b + i + 8);
        s3 += load(a + i + 12) * load(b + i + 12);
    }
    float sum = add_up(s0, s1, s2, s3);
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

float linear_dot(const float *a, const float *b, int32_t n)
{
    return dot(a, b, n);
}

void linear_apply(const float *weight, int32_t outputs, int32_t inputs, const float *x, float *y)
{
    for (int32_t o = 0; o < outputs; o++)
        y[o] = dot(weight + (size_t)o * (size_t)inputs, x, inputs);
}

/* 16 columns, whose sums stay in registers. */
static void mix_columns(const float *share, const float *rows, int32_t count, int32_t columns, float *y)
{
    lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (int32_t i = 0; i < count; i++, rows += columns) {
        lanes wide = {share[i], share[i], share[i], share[i]};
        s0 += wide * load(rows);
        s1 += wide * load(rows + 4);
        s2 += wide * load(rows + 8);
        s3 += wide * load(rows + 12);
    }
    memcpy(y, &s0, sizeof(s0));
    memcpy(y + 4, &s1, sizeof(s1));
    memcpy(y + 8, &s2, sizeof(s2));
    memcpy(y + 12, &s3, sizeof(s3));
}

static float mix_column(const float *share, const float *rows, int32_t count, int32_t columns)
{
    float sum = 0;
    for (int32_t i = 0; i < count; i++)
        sum += share[i] * rows[(size_t)i * (size_t)columns];
    return sum;
}

void linear_mix(const float *share, const float *rows, int32_t count, int32_t columns, float *y)
{
    int32_t c = 0;
    for (; c + 16 <= columns; c += 16)
        mix_columns(share, rows + c, count, columns, y + c);
    for (; c < columns; c++)
        y[c] = mix_column(share, rows + c, count, columns);
}

void linear_rms_norm(const float *weight, const float *x, int32_t n, float eps, float *y)
{
    float scale = 1.0f / sqrtf(linear_dot(x, x, n) / (float)n + eps);
    for (int32_t i = 0; i < n; i++)
        y[i] = weight[i] * (x[i] * scale);
}

float linear_exp_sum(float *x, int32_t n)
{
    float largest = x[0], sum = 0;
    for (int32_t i = 1; i < n; i++)
        largest = x[i] > largest ? x[i] : largest;
    for (int32_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - largest);
        sum += x[i];
    }
    return sum;
}
