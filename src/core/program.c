// SPDX-License-Identifier: Apache-2.0
#include "core/program.h"

#include <sys/stat.h>
#include <unistd.h>

bool program_is(const char *path)
{
    struct stat file;
    return stat(path, &file) == 0 && S_ISREG(file.st_mode) && access(path, X_OK) == 0;
}
