// SPDX-License-Identifier: Apache-2.0
/* Runs one case, catches its process at PTRACE_EVENT_EXIT, dumps it and lets it exit under the tracer. */
#define _GNU_SOURCE
#include "lab.h"
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#define ATTEMPTS 4

/* The PAGEMAP_SCAN ioctl (Linux 6.7), declared here because the build host's headers may be older. */
struct scan_region {
    uint64_t start, end, categories;
};
struct scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN _IOWR('f', 16, struct scan_arg)
#define SCAN_PRESENT (1 << 3)
#define SCAN_SWAPPED (1 << 4)
static const struct { unsigned bit; const char *name; } categories[] = {
    {1 << 1, "written"}, {1 << 2, "file"}, {1 << 3, "present"}, {1 << 4, "swapped"},
    {1 << 5, "pfnzero"}, {1 << 6, "huge"}, {1 << 7, "softdirty"},
};
#define SCAN_RETURN (0xfc) /* all but "written", which means nothing without userfaultfd */

/* Background work that would change page tables or page state between dump and exit. */
static const char *const noisy[] = {
    "thp_collapse_alloc ", "pgmigrate_success ", "pswpin ", "pswpout ", "ksm_swpin_copy ", "compact_success ",
    "numa_pte_updates ", "pgsteal_kswapd ", "pgsteal_direct ", "pgsteal_khugepaged ",
};

static void proc_path(char *path, size_t room, pid_t pid, const char *name)
{
    snprintf(path, room, "/proc/%d/%s", pid, name);
}

static void dump_text(const char *folder, pid_t pid, const char *name)
{
    char path[64];

    proc_path(path, sizeof(path), pid, name);
    stream_file(folder, name, path);
}

/* pagemap of every VMA: u64 start address, u64 n, n words. */
static void pagemap_read(pid_t pid, struct blob *pagemap)
{
    struct blob maps = {0};
    char path[64], *rest, *line;
    int fd;

    proc_path(path, sizeof(path), pid, "maps");
    blob_read(&maps, path);
    blob_add(&maps, "", 1);
    proc_path(path, sizeof(path), pid, "pagemap");
    fd = open(path, O_RDONLY | O_CLOEXEC);
    rest = maps.data;
    while ((line = strsep(&rest, "\n"))) {
        uint64_t start, end, head[2];
        struct blob words = {0};

        if (sscanf(line, "%lx-%lx", &start, &end) != 2)
            continue;
        while (start + words.size / 8 * PAGE < end) {
            char part[1 << 15];
            size_t want = (end - start) / PAGE * 8 - words.size;
            ssize_t n = pread(fd, part, want < sizeof(part) ? want : sizeof(part), start / PAGE * 8 + words.size);

            if (n <= 0)
                break;
            blob_add(&words, part, n);
        }
        head[0] = start;
        head[1] = words.size / 8;
        blob_add(pagemap, head, sizeof(head));
        blob_add(pagemap, words.data, words.size);
        blob_free(&words);
    }
    close(fd);
    blob_free(&maps);
}

/* One line per region: start-end and the categories that hold there. Empty where the ioctl is missing. */
static void scan_read(pid_t pid, struct blob *text)
{
    static struct scan_region regions[512];
    char path[64];
    uint64_t from = 0;
    int fd;

    proc_path(path, sizeof(path), pid, "pagemap");
    fd = open(path, O_RDONLY | O_CLOEXEC);
    while (from < USER_PAGES_END) {
        struct scan_arg arg = {
            .size = sizeof(arg), .start = from, .end = USER_PAGES_END, .vec = (uintptr_t)regions, .vec_len = 512,
            .category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED, .return_mask = SCAN_RETURN,
        };
        int n = ioctl(fd, SCAN, &arg);

        if (n < 0)
            break;
        for (int i = 0; i < n; i++) {
            char line[160];
            int at = snprintf(line, sizeof(line), "%lx-%lx", regions[i].start, regions[i].end);

            for (size_t c = 0; c < sizeof(categories) / sizeof(*categories); c++)
                if (regions[i].categories & categories[c].bit)
                    at += snprintf(line + at, sizeof(line) - at, " %s", categories[c].name);
            line[at++] = '\n';
            blob_add(text, line, at);
        }
        from = arg.walk_end;
    }
    close(fd);
}

static void vmstat_read(long *values)
{
    struct blob text = {0};

    blob_read(&text, "/proc/vmstat");
    blob_add(&text, "", 1);
    for (size_t i = 0; i < sizeof(noisy) / sizeof(*noisy); i++) {
        char *found = strstr(text.data, noisy[i]);

        values[i] = found ? atol(found + strlen(noisy[i])) : 0;
    }
    blob_free(&text);
}

/*
 * Of all page frames: their flags, and the references that they have. Read last, into memory that has been written
 * before: a page fault of ours may empty the LRU-add batch in which pages of the process wait, and Linux since v6.16
 * frees at its exit what has left that batch, and not what waits there.
 */
static struct blob flags, references;

static void page_state_read(void)
{
    /* since the fork each page faults once more */
    if (flags.room)
        memset(flags.data, 0, flags.room);
    if (references.room)
        memset(references.data, 0, references.room);
    flags.size = references.size = 0;
    blob_read(&flags, "/proc/kpageflags");
    refcounts_read(flags.size / 8, &references);
}

/* Returns 0 if the page tables are not what pagemap said: background work changed them meanwhile. */
static int dump(const char *folder, pid_t pid)
{
    struct blob pagemap = {0}, leaves = {0}, scan = {0}, mapcounts = {0};
    int alike;

    dump_text(folder, pid, "maps");
    dump_text(folder, pid, "smaps");
    dump_text(folder, pid, "status");
    dump_text(folder, pid, "comm");
    pagemap_read(pid, &pagemap);
    stream_member(folder, "pagemap.bin", pagemap.data, pagemap.size);
    stream_file(folder, "kpagecount.bin", "/proc/kpagecount");
    scan_read(pid, &scan);
    stream_member(folder, "pagemap_scan", scan.data, scan.size);
    leaves_read(trace_mm_of(pid), &pagemap, &leaves);
    stream_member(folder, "leaves.bin", leaves.data, leaves.size);
    alike = leaves.size > 0;
    blob_free(&pagemap);
    blob_free(&leaves);
    blob_free(&scan);
    mapcounts_read(flags.size / 8, &mapcounts);
    stream_member(folder, "mapcounts.bin", mapcounts.data, mapcounts.size);
    blob_free(&mapcounts);
    page_state_read();
    stream_member(folder, "kpageflags.bin", flags.data, flags.size);
    stream_member(folder, "refcounts.bin", references.data, references.size);
    return alike;
}

/* The child becomes the workload, or a program of the root disk ("program" and one argument per line). */
static void become(const char *spec)
{
    static char *args[64];
    char *text = strdup(spec), *rest = text, *line;
    int n = 0, null;

    null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
    setpgid(0, 0);
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    if (strncmp(spec, "program\n", 8)) {
        args[n++] = "workload";
        args[n++] = text;
        execv("/workload", args);
        _exit(127);
    }
    strsep(&rest, "\n");
    while ((line = strsep(&rest, "\n")) && n < 63)
        if (*line)
            args[n++] = line;
    if (chroot("/disk") || chdir("/"))
        _exit(126);
    execv(args[0], args);
    _exit(127);
}

/* Runs everything that is traced until one process stops at its exit; 0 if none does. */
static pid_t run_to_exit(pid_t child, int follow)
{
    int status;
    pid_t pid;

    waitpid(child, &status, 0);
    ptrace(PTRACE_SETOPTIONS, child, 0,
           PTRACE_O_TRACEEXIT | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL | (follow ? PTRACE_O_TRACEFORK : 0));
    ptrace(PTRACE_CONT, child, 0, 0);
    while ((pid = waitpid(-1, &status, __WALL)) > 0) {
        int event, signal;

        if (!WIFSTOPPED(status)) {
            if (pid == child)
                return 0;
            continue;
        }
        event = status >> 16;
        signal = WSTOPSIG(status);
        if (event == PTRACE_EVENT_EXIT)
            return pid;
        if (event || signal == SIGSTOP || signal == SIGTRAP)
            signal = 0;
        ptrace(PTRACE_CONT, pid, 0, signal);
    }
    return 0;
}

static void end_group(pid_t group)
{
    int status;
    pid_t pid;

    kill(-group, SIGKILL);
    while ((pid = waitpid(-1, &status, __WALL)) > 0)
        if (WIFSTOPPED(status)) /* at its own exit event */
            ptrace(PTRACE_CONT, pid, 0, 0);
}

/* One attempt. Returns 0 if no background work changed anything while the process was held and torn down. */
static int attempt(const char *folder, const char *spec)
{
    struct blob raw = {0}, stats = {0}, moved = {0};
    size_t kinds = sizeof(noisy) / sizeof(*noisy);
    long before[kinds], after[kinds], status_word = -1;
    struct sched_param fifo = {.sched_priority = 50};
    char line[128];
    pid_t child, pid;
    int count, status;

    page_state_read(); /* so that the memory is there */
    child = fork();
    if (child < 0)
        die("fork");
    if (!child)
        become(spec);
    pid = run_to_exit(child, strncmp(spec, "program\n", 8) != 0);
    if (!pid || ptrace(PTRACE_GETEVENTMSG, pid, 0, &status_word) || status_word) {
        stream_member(folder, status_word == NOT_FOR_THIS_KERNEL << 8 ? "skipped" : "failed", line,
                      snprintf(line, sizeof(line), "wait status %#lx\n", status_word));
        if (pid)
            ptrace(PTRACE_CONT, pid, 0, 0);
        end_group(child);
        return 0;
    }
    vmstat_read(before);
    count = !dump(folder, pid);
    sched_setscheduler(pid, SCHED_FIFO, &fifo);
    trace_start();
    ptrace(PTRACE_CONT, pid, 0, 0);
    while (waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status))
        ptrace(PTRACE_CONT, pid, 0, 0);
    trace_stop(&raw, &stats);
    vmstat_read(after);
    end_group(child);

    stream_member(folder, "trace.raw", raw.data, raw.size);
    stream_member(folder, "trace.stats", stats.data, stats.size);
    for (size_t i = 0; i < kinds; i++)
        if (after[i] != before[i]) {
            blob_add(&moved, line, snprintf(line, sizeof(line), "%s%ld\n", noisy[i], after[i] - before[i]));
            count++;
        }
    stream_member(folder, "moved", moved.data, moved.size);
    stream_member(folder, "pid", line, snprintf(line, sizeof(line), "%d\n", pid));
    blob_free(&raw);
    blob_free(&stats);
    blob_free(&moved);
    return count;
}

void collect(const char *name, const char *spec)
{
    for (int i = 1; i <= ATTEMPTS; i++) {
        char folder[96];

        snprintf(folder, sizeof(folder), "cases/%s/%d", name, i);
        if (!attempt(folder, spec))
            return;
    }
}
