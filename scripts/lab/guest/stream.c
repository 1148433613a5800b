// SPDX-License-Identifier: Apache-2.0
/* The output disk as one ustar archive, written with O_DIRECT: no page cache grows while a case is held. */
#define _GNU_SOURCE
#include "lab.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 512
#define CHUNK (1 << 20)

static int out = -1;
static char *chunk;
static size_t filled;

void stream_open(const char *device)
{
    out = open(device, O_WRONLY | O_DIRECT | O_CLOEXEC);
    if (out < 0)
        die(device);
    if (posix_memalign((void **)&chunk, PAGE, CHUNK))
        die("stream buffer");
}

static void flush_chunk(void)
{
    if (write(out, chunk, filled) != (ssize_t)filled)
        die("write to the output disk");
    filled = 0;
}

static void put(const void *data, size_t size)
{
    while (size) {
        size_t part = size < CHUNK - filled ? size : CHUNK - filled;

        memcpy(chunk + filled, data, part);
        filled += part;
        data = (const char *)data + part;
        size -= part;
        if (filled == CHUNK)
            flush_chunk();
    }
}

void stream_member(const char *folder, const char *name, const void *data, size_t size)
{
    static const char zeros[BLOCK];
    char header[BLOCK] = {0};
    unsigned sum = 0;

    snprintf(header, 100, "%s/%s", folder, name);
    memcpy(header + 100, "0000644", 7);
    memcpy(header + 108, "0000000", 7);
    memcpy(header + 116, "0000000", 7);
    snprintf(header + 124, 12, "%011lo", (unsigned long)size);
    memcpy(header + 136, "00000000000", 11);
    memset(header + 148, ' ', 8);
    header[156] = '0';
    memcpy(header + 257, "ustar\00000", 8);
    for (int i = 0; i < BLOCK; i++)
        sum += (unsigned char)header[i];
    snprintf(header + 148, 8, "%06o", sum);
    put(header, BLOCK);
    put(data, size);
    put(zeros, (BLOCK - size % BLOCK) % BLOCK);
}

void stream_file(const char *folder, const char *name, const char *path)
{
    struct blob blob = {0};

    blob_read(&blob, path);
    stream_member(folder, name, blob.data, blob.size);
    blob_free(&blob);
}

void stream_close(void)
{
    static const char zeros[BLOCK];

    put(zeros, BLOCK);
    do
        put(zeros, BLOCK);
    while (filled % PAGE);
    if (filled)
        flush_chunk();
    fsync(out);
    close(out);
}
