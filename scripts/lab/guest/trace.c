// SPDX-License-Identifier: Apache-2.0
/* kprobe events and tracepoints through tracefs; the ring buffer is read raw. */
#define _GNU_SOURCE
#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CPU TRACING "per_cpu/cpu0/"
#define CALLS 64

int write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), failed;

    if (fd < 0)
        return errno;
    failed = write(fd, text, strlen(text)) < 0 ? errno : 0;
    close(fd);
    return failed;
}

static int append_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC), failed;

    if (fd < 0)
        return errno;
    failed = write(fd, text, strlen(text)) < 0 ? errno : 0;
    close(fd);
    return failed;
}

static int event_switch(const char *group, const char *name, const char *value)
{
    char path[256];

    snprintf(path, sizeof(path), TRACING "events/%s/%s/enable", group, name);
    return write_text(path, value);
}

static void event_format(const char *group, const char *name)
{
    char path[256];

    snprintf(path, sizeof(path), TRACING "events/%s/%s/format", group, name);
    stream_file("formats", name, path);
}

static int probe(const char *kind, const char *event, const char *place, const char *args)
{
    char command[512];

    snprintf(command, sizeof(command), "%s:lab/%s %s %s\n", kind, event, place, args);
    return append_text(TRACING "kprobe_events", command);
}

/* One event for all calls of a function; those at places that must not be probed are left out. */
static int calls_probe(const char *event, const char *callee, const char *args)
{
    uint64_t sites[CALLS];
    size_t count = call_sites(callee, sites, CALLS);
    int failed = ENOENT;

    for (size_t i = 0; i < count; i++) {
        char place[32];

        /* by symbol and offset: of plain addresses an event takes only one */
        snprintf(place, sizeof(place), "_stext+%#lx", sites[i]);
        if (!probe("p", event, place, args))
            failed = 0;
    }
    return failed;
}

/*
 * Each line of probes is "p|r EVENT SYMBOL ARGS", "c EVENT SYMBOL ARGS" for the calls of a function, or "t GROUP
 * EVENT" for a tracepoint. Of several lines for one event the first that the kernel accepts counts. The log gets
 * "EVENT SYMBOL ERRNO" for each line.
 */
void trace_setup(const char *probes, struct blob *log)
{
    char *text = strdup(probes), *rest = text, *line, entry[128];
    char done[4096] = " ";

    write_text(TRACING "tracing_on", "0");
    write_text(TRACING "buffer_size_kb", "65536");
    write_text(TRACING "options/overwrite", "0");
    write_text(TRACING "trace_clock", "mono");
    while ((line = strsep(&rest, "\n"))) {
        char kind[8], event[64], symbol[64], args[256] = "", seen[80];
        int failed;

        if (sscanf(line, "%7s %63s %63s %255[^\n]", kind, event, symbol, args) < 3)
            continue;
        snprintf(seen, sizeof(seen), " %s ", event);
        if (strstr(done, seen))
            continue;
        if (kind[0] == 't') {
            failed = event_switch(event, symbol, "1");
            if (!failed)
                event_format(event, symbol);
        } else {
            failed = kind[0] == 'c' ? calls_probe(event, symbol, args) : probe(kind, event, symbol, args);
            if (!failed && strcmp(event, "walk_mm"))
                failed = event_switch("lab", event, "1");
            if (!failed) {
                event_format("lab", event);
                strcat(done, seen + 1);
            }
        }
        blob_add(log, entry, snprintf(entry, sizeof(entry), "%s %s %d\n", event, symbol, failed));
    }
    free(text);
}

void trace_start(void)
{
    close(open(TRACING "trace", O_WRONLY | O_TRUNC | O_CLOEXEC)); /* empties the ring buffer */
    write_text(TRACING "tracing_on", "1");
}

void trace_stop(struct blob *raw, struct blob *stats)
{
    static char page[1 << 16];
    int fd;
    ssize_t n;

    write_text(TRACING "tracing_on", "0");
    fd = open(CPU "trace_pipe_raw", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        die("trace_pipe_raw");
    while ((n = read(fd, page, PAGE)) > 0)
        blob_add(raw, page, PAGE);
    close(fd);
    blob_read(stats, CPU "stats");
}

/* Reading a pagemap walks the page tables: the walk's first argument is the mm. */
uint64_t trace_mm_of(pid_t pid)
{
    struct blob text = {0};
    char path[64], *found;
    uint64_t mm = 0, word;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || event_switch("lab", "walk_mm", "1"))
        return 0;
    trace_start();
    /* Any address will do; a pagemap read always covers all that one page-table page maps. */
    if (pread(fd, &word, sizeof(word), 0) != sizeof(word))
        word = 0;
    write_text(TRACING "tracing_on", "0");
    event_switch("lab", "walk_mm", "0");
    close(fd);
    blob_read(&text, TRACING "trace");
    blob_add(&text, "", 1);
    found = strstr(text.data, "walk_mm: ");
    found = found ? strstr(found, " mm=0x") : NULL;
    if (found)
        mm = strtoull(found + 4, NULL, 16);
    blob_free(&text);
    return mm;
}
