// SPDX-License-Identifier: Apache-2.0
#include "lib/backend.h"

const struct test_backend *const test_backend = NULL;
