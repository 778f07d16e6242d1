// SPDX-License-Identifier: Apache-2.0
#include "weights/refuse.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Names come from the file: they may hold what a terminal would obey, or fill the whole message. */
static void make_printable(char *text)
{
    for (; *text != '\0'; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f) {
            *text = '?';
        }
    }
}

int refuse(const struct refusal *to, const char *tensor, const char *format, ...)
{
    if (to->error_bytes == 0) {
        return -1;
    }
    char message[320];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    if (tensor != NULL) {
        snprintf(to->error, to->error_bytes, "%s: tensor '%.100s' %s", to->label, tensor, message);
    } else {
        snprintf(to->error, to->error_bytes, "%s: %s", to->label, message);
    }
    make_printable(to->error);
    return -1;
}

int refuse_more(const struct refusal *to, const char *format, ...)
{
    if (to->error_bytes == 0) {
        return -1;
    }
    size_t used = strlen(to->error);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(to->error + used, to->error_bytes - used, format, arguments);
    va_end(arguments);
    make_printable(to->error);
    return -1;
}
