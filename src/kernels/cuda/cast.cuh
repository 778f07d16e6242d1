// SPDX-License-Identifier: Apache-2.0
/*
 * Number formats, bit for bit those of kernels/cpu/number.h: the same integer arithmetic, so that no intrinsic's
 * treatment of NaN or of the largest value can differ. The device converts fp16 itself, as IEEE 754 says and number.h
 * does, with subnormals and infinities; only a NaN loses sign and payload, which a sum on the device does anyway.
 */
#ifndef CUDA_CAST_CUH
#define CUDA_CAST_CUH

#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>

__device__ __forceinline__ float number_from_bf16(uint16_t half)
{
    return __uint_as_float((uint32_t)half << 16);
}

__device__ __forceinline__ uint16_t number_to_bf16(float value)
{
    uint32_t bits = __float_as_uint(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    uint32_t nan = bits >> 16 | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

__device__ __forceinline__ float number_from_fp16(uint16_t half)
{
    return __half2float(__ushort_as_half(half));
}

/* e4m3fn: what is too large saturates at +-448, only NaN becomes NaN. See number.h for why this is right. */
__device__ __forceinline__ uint8_t number_to_e4m3(float value)
{
    uint32_t bits = __float_as_uint(value);
    uint32_t size = bits & 0x7fffffff;
    uint32_t small = __float_as_uint(__fadd_rn(__uint_as_float(size), 16384.0f)) & 0xff;
    uint32_t normal = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120u << 3);
    uint32_t code = size < 0x3c800000 ? small : normal;
    code = size >= 0x43e00000 ? 0x7e : code;
    code = size > 0x7f800000 ? 0x7f : code;
    return (uint8_t)((bits >> 24 & 0x80) | (code & 0x7f));
}

/* Two at once, the first in the lower byte. The instruction drops the sign of a NaN, which the CPU keeps. */
__device__ __forceinline__ uint32_t numbers_to_e4m3(float first, float second)
{
#if __CUDA_ARCH__ >= 890
    uint16_t codes;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(second), "f"(first));
    return codes | (__float_as_uint(first) >> 24 & 0x80) | (__float_as_uint(second) >> 16 & 0x8000);
#else
    return number_to_e4m3(first) | (uint32_t)number_to_e4m3(second) << 8;
#endif
}

/* The smallest power of two that is >= a positive normal number. */
__device__ __forceinline__ float number_power_of_two_above(float value)
{
    return __uint_as_float((__float_as_uint(value) + 0x7fffff) & 0xff800000);
}

/* Two codes, the lower address first. Exact: fp16 holds every value of e4m3. */
__device__ __forceinline__ float2 numbers_from_e4m3(uint16_t codes)
{
    return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(codes, __NV_E4M3)));
}

/* The two bf16 numbers of a word, the lower address first. */
__device__ __forceinline__ float2 numbers_from_bf16(uint32_t word)
{
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000));
}

__device__ __forceinline__ uint32_t numbers_to_bf16(float low, float high)
{
    return number_to_bf16(low) | (uint32_t)number_to_bf16(high) << 16;
}

/* Likewise of fp16. */
__device__ __forceinline__ float2 numbers_from_fp16(uint32_t word)
{
    return make_float2(number_from_fp16((uint16_t)word), number_from_fp16((uint16_t)(word >> 16)));
}

__device__ __forceinline__ uint32_t numbers_to_fp16(float low, float high)
{
    __half2 both = __floats2half2_rn(low, high);
    return __half_as_ushort(__low2half(both)) | (uint32_t)__half_as_ushort(__high2half(both)) << 16;
}

#endif
