// SPDX-License-Identifier: Apache-2.0
/* A growing memory buffer. */
#define _GNU_SOURCE
#include "lab.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void blob_add(struct blob *blob, const void *data, size_t size)
{
    if (blob->size + size > blob->room) {
        blob->room = (blob->size + size) * 2;
        blob->data = realloc(blob->data, blob->room);
        if (!blob->data)
            die("out of memory");
    }
    memcpy(blob->data + blob->size, data, size);
    blob->size += size;
}

void blob_read(struct blob *blob, const char *path)
{
    static char part[1 << 16];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return;
    while ((n = read(fd, part, sizeof(part))) > 0)
        blob_add(blob, part, n);
    close(fd);
}

void blob_free(struct blob *blob)
{
    free(blob->data);
    memset(blob, 0, sizeof(*blob));
}
