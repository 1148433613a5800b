// SPDX-License-Identifier: Apache-2.0
/* The end of a guest that cannot go on: its last words, then power off. */
#define _GNU_SOURCE
#include "lab.h"

#include <errno.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

void die(const char *what)
{
    printf("lab: failed: %s: %s\n", what, strerror(errno));
    sync();
    reboot(RB_POWER_OFF);
    _exit(1);
}
