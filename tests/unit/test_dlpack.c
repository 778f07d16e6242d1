// SPDX-License-Identifier: Apache-2.0
/* muster_tensor against DLPack's own header, where that is installed; exit status 77 (skipped) where it is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "muster/memory.h"

#ifdef __has_include
#if __has_include(<dlpack/dlpack.h>)
#define HAVE_DLPACK 1
#endif
#endif

#ifdef HAVE_DLPACK
#include <dlpack/dlpack.h>

#define SAME_FIELD(type, field, dl_type, dl_field)                                      \
    do {                                                                                \
        assert_int_equal(offsetof(type, field), offsetof(dl_type, dl_field));           \
        assert_int_equal(sizeof(((type *)0)->field), sizeof(((dl_type *)0)->dl_field)); \
    } while (0)

static void tensor_has_the_layout_of_dltensor(void **state)
{
    (void)state;
    assert_int_equal(sizeof(muster_tensor), sizeof(DLTensor));
    SAME_FIELD(muster_tensor, data, DLTensor, data);
    SAME_FIELD(muster_tensor, device, DLTensor, device);
    SAME_FIELD(muster_tensor, ndim, DLTensor, ndim);
    SAME_FIELD(muster_tensor, dtype, DLTensor, dtype);
    SAME_FIELD(muster_tensor, shape, DLTensor, shape);
    SAME_FIELD(muster_tensor, strides, DLTensor, strides);
    SAME_FIELD(muster_tensor, byte_offset, DLTensor, byte_offset);
}

static void small_structs_have_their_layouts(void **state)
{
    (void)state;
    SAME_FIELD(muster_dtype, code, DLDataType, code);
    SAME_FIELD(muster_dtype, bits, DLDataType, bits);
    SAME_FIELD(muster_dtype, lanes, DLDataType, lanes);
    SAME_FIELD(muster_device, type, DLDevice, device_type);
    SAME_FIELD(muster_device, index, DLDevice, device_id);
}

static void codes_have_their_values(void **state)
{
    (void)state;
    assert_int_equal(MUSTER_TYPE_INT, kDLInt);
    assert_int_equal(MUSTER_TYPE_UINT, kDLUInt);
    assert_int_equal(MUSTER_TYPE_FLOAT, kDLFloat);
    assert_int_equal(MUSTER_TYPE_BFLOAT, kDLBfloat);
    assert_int_equal(MUSTER_DEVICE_CPU, kDLCPU);
    assert_int_equal(MUSTER_DEVICE_CUDA, kDLCUDA);
    assert_int_equal(MUSTER_DEVICE_CUDA_MANAGED, kDLCUDAManaged);
#if defined(DLPACK_MAJOR_VERSION) && \
    (DLPACK_MAJOR_VERSION > 1 || (DLPACK_MAJOR_VERSION == 1 && DLPACK_MINOR_VERSION >= 1))
    assert_int_equal(MUSTER_TYPE_FLOAT8_E4M3FN, kDLFloat8_e4m3fn);
#endif
}

/* A DLTensor made by somebody else is read through a muster_tensor pointer as it stands. */
static void a_dltensor_can_be_handed_over(void **state)
{
    (void)state;
    int64_t shape[2] = {3, 8};
    char data[8];
    union {
        DLTensor theirs;
        muster_tensor ours;
    } t = {.theirs = {.data = data,
                      .device = {kDLCPU, 0},
                      .ndim = 2,
                      .dtype = {kDLBfloat, 16, 1},
                      .shape = shape,
                      .byte_offset = 4}};
    assert_ptr_equal(t.ours.data, data);
    assert_int_equal(t.ours.device.type, MUSTER_DEVICE_CPU);
    assert_int_equal(t.ours.ndim, 2);
    assert_int_equal(t.ours.dtype.code, MUSTER_BF16.code);
    assert_int_equal(t.ours.dtype.bits, MUSTER_BF16.bits);
    assert_int_equal(t.ours.dtype.lanes, MUSTER_BF16.lanes);
    assert_int_equal(t.ours.shape[1], 8);
    assert_null(t.ours.strides);
    assert_int_equal(t.ours.byte_offset, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensor_has_the_layout_of_dltensor),
        cmocka_unit_test(small_structs_have_their_layouts),
        cmocka_unit_test(codes_have_their_values),
        cmocka_unit_test(a_dltensor_can_be_handed_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void)
{
    puts("skipped: <dlpack/dlpack.h> is not installed (package libdlpack-dev)");
    return 77;
}

#endif
