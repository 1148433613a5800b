// SPDX-License-Identifier: Apache-2.0
/*
 * Calls of a function, found in the machine code: functions that are inline by their source, and are not inlined,
 * must not be probed themselves. Only for arm64, whose calls are single words.
 */
#define _GNU_SOURCE
#include "lab.h"

#include <stdlib.h>
#include <string.h>

#define COPIES 32
#define BRANCH_MASK 0xfc000000u
#define BRANCH_AND_LINK 0x94000000u

static uint64_t copies[COPIES];
static size_t copy_count;

static int is_copy(uint64_t address)
{
    for (size_t i = 0; i < copy_count; i++)
        if (copies[i] == address)
            return 1;
    return 0;
}

/* The bounds of the kernel's code, and where the function is. */
static void symbols(const char *callee, uint64_t *start, uint64_t *end)
{
    struct blob text = {0};
    char *rest, *line;

    blob_read(&text, "/proc/kallsyms");
    blob_add(&text, "", 1);
    rest = text.data;
    copy_count = 0;
    while ((line = strsep(&rest, "\n"))) {
        char name[128], kind;
        uint64_t address;

        if (sscanf(line, "%lx %c %127s", &address, &kind, name) != 3 || strchr(line, '['))
            continue;
        if (!strcmp(name, "_stext"))
            *start = address;
        else if (!strcmp(name, "_etext"))
            *end = address;
        else if (!strcmp(name, callee) && copy_count < COPIES)
            copies[copy_count++] = address;
    }
    blob_free(&text);
}

size_t call_sites(const char *callee, uint64_t *sites, size_t room)
{
    uint64_t start = 0, end = 0;
    uint32_t words[PAGE / 4];
    size_t found = 0;

    symbols(callee, &start, &end);
    for (uint64_t at = start & -PAGE; copy_count && at < end; at += PAGE) {
        if (!kernel_read(at, words, PAGE))
            continue;
        for (size_t i = 0; i < PAGE / 4 && found < room; i++) {
            /* the distance is signed, and counts words */
            int64_t distance = (int64_t)((uint64_t)words[i] << 38) >> 36;

            if ((words[i] & BRANCH_MASK) == BRANCH_AND_LINK && is_copy(at + 4 * i + distance))
                sites[found++] = at + 4 * i - start;
        }
    }
    return found;
}
