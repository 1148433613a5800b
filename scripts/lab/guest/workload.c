// SPDX-License-Identifier: Apache-2.0
/*
 * The workload: builds the address space that a case describes, one operation per line, and exits.
 * Addresses and sizes are in pages; addresses count from BASE. See catalogue.py for the operations.
 */
#define _GNU_SOURCE
#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define BASE 0x100000000000UL
#define REACH (1UL << 34) /* operations map below BASE + REACH */
#define WORDS 12
#define THP "/sys/kernel/mm/transparent_hugepage/"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define MAX_FILES 16
#define REGISTER_BUFFERS 0 /* IORING_REGISTER_BUFFERS of linux/io_uring.h */

static char *words[WORDS];
static int count;
static struct { char name[64]; int fd; } files[MAX_FILES];
static int file_count;

/* A case that cannot be built must not pass for one: no exit event with a half-built address space. */
static void fail(void)
{
    int fd = open("/dev/kmsg", O_WRONLY);

    dprintf(fd, "lab: operation failed: %s %s %s %s: %s\n", words[0], words[1], words[2], words[3],
            strerror(errno));
    kill(getpid(), SIGKILL);
}

static long number(int i)
{
    if (i >= count)
        fail();
    return strtol(words[i], NULL, 0);
}

static char *at(int i)
{
    return (char *)BASE + number(i) * PAGE;
}

static size_t bytes(int i)
{
    return number(i) * PAGE;
}

static int has(int from, const char *word)
{
    for (int i = from; i < count; i++)
        if (!strcmp(words[i], word))
            return 1;
    return 0;
}

static int protection(const char *word)
{
    return (strchr(word, 'r') ? PROT_READ : 0) | (strchr(word, 'w') ? PROT_WRITE : 0)
        | (strchr(word, 'x') ? PROT_EXEC : 0);
}

static void setting(const char *path, const char *value)
{
    int fd = open(path, O_WRONLY);

    if (fd < 0 || write(fd, value, strlen(value)) < 0)
        fail();
    close(fd);
}

static int file_of(const char *name)
{
    for (int i = 0; i < file_count; i++)
        if (!strcmp(files[i].name, name))
            return files[i].fd;
    errno = ENOENT;
    fail();
    return -1;
}

static void remember(const char *name, int fd)
{
    if (fd < 0 || file_count == MAX_FILES)
        fail();
    snprintf(files[file_count].name, sizeof(files->name), "%s", name);
    files[file_count++].fd = fd;
}

/* map ADDR PAGES PROT private|shared [hugetlb[=SHIFT]] [noreserve]; 2^SHIFT is the size of a huge page */
static void op_map(void)
{
    int flags = MAP_ANONYMOUS | MAP_FIXED | (has(4, "shared") ? MAP_SHARED : MAP_PRIVATE)
        | (has(4, "hugetlb") ? MAP_HUGETLB : 0) | (has(4, "noreserve") ? MAP_NORESERVE : 0);

    for (int i = 4; i < count; i++)
        if (!strncmp(words[i], "hugetlb=", 8))
            flags |= MAP_HUGETLB | atoi(words[i] + 8) << MAP_HUGE_SHIFT;
    if (mmap(at(1), bytes(2), protection(words[3]), flags, -1, 0) == MAP_FAILED)
        fail();
}

/*
 * file PATH PAGES [PIECE]: a new file with that many written pages; the name is removed, the open file stays.
 * Written in large pieces, of so many pages: XFS sizes its folios by them.
 */
static void op_file(void)
{
    size_t size = (count > 3 ? number(3) : 128) * PAGE;
    char *piece = malloc(size);
    int fd = open(words[1], O_RDWR | O_CREAT | O_TRUNC, 0600);

    remember(words[1], fd);
    unlink(words[1]);
    if (!piece)
        fail();
    memset(piece, 7, size);
    for (size_t left = bytes(2); left;) {
        ssize_t done = write(fd, piece, left < size ? left : size);

        if (done <= 0)
            fail();
        left -= done;
    }
    free(piece);
}

/* sparse PATH PAGES: as file, but nothing written */
static void op_sparse(void)
{
    int fd = open(words[1], O_RDWR | O_CREAT | O_TRUNC, 0600);

    remember(words[1], fd);
    unlink(words[1]);
    if (ftruncate(fd, bytes(2)))
        fail();
}

/* memfd NAME PAGES [hugetlb] */
static void op_memfd(void)
{
    int fd = syscall(SYS_memfd_create, words[1], has(3, "hugetlb") ? 4U : 0U);

    remember(words[1], fd);
    if (ftruncate(fd, bytes(2)))
        fail();
}

/* mapfile ADDR PAGES PROT private|shared NAME OFFSET */
static void op_mapfile(void)
{
    int flags = MAP_FIXED | (has(4, "shared") ? MAP_SHARED : MAP_PRIVATE);

    if (mmap(at(1), bytes(2), protection(words[3]), flags, file_of(words[5]), bytes(6)) == MAP_FAILED)
        fail();
}

/* sync NAME: write back, which cleans the entries that map the file */
static void op_sync(void)
{
    if (fsync(file_of(words[1])))
        fail();
}

/* drop NAME: leave the page cache empty, so that the next fault reads ahead */
static void op_drop(void)
{
    op_sync();
    if (posix_fadvise(file_of(words[1]), 0, 0, POSIX_FADV_DONTNEED))
        fail();
}

/* read ADDR PAGES [STEP] */
static void op_read(void)
{
    long step = count > 3 ? number(3) : 1;
    volatile char *p = at(1);

    for (long i = 0, n = number(2); i < n; i += step)
        (void)p[i * PAGE];
}

/* write ADDR PAGES [STEP]: every page gets contents of its own */
static void op_write(void)
{
    long step = count > 3 ? number(3) : 1;
    char *p = at(1);

    for (long i = 0, n = number(2); i < n; i += step)
        *(volatile uint64_t *)(p + i * PAGE + 8) = (uint64_t)(uintptr_t)p + i * PAGE + getpid();
}

/* fill ADDR PAGES BYTE: pages of equal contents */
static void op_fill(void)
{
    memset(at(1), number(3), bytes(2));
}

/* advise ADDR PAGES NAME */
static void op_advise(void)
{
    static const struct { const char *name; int advice; } known[] = {
        {"hugepage", MADV_HUGEPAGE}, {"nohugepage", MADV_NOHUGEPAGE}, {"collapse", MADV_COLLAPSE},
        {"dontneed", MADV_DONTNEED}, {"pageout", MADV_PAGEOUT}, {"cold", MADV_COLD}, {"free", MADV_FREE},
        {"mergeable", MADV_MERGEABLE}, {"populate_read", MADV_POPULATE_READ},
        {"populate_write", MADV_POPULATE_WRITE}, {"remove", MADV_REMOVE}, {"guard", MADV_GUARD_INSTALL},
    };

    for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
        if (!strcmp(words[3], known[i].name)) {
            if (madvise(at(1), bytes(2), known[i].advice)) {
                if (known[i].advice == MADV_GUARD_INSTALL && errno == EINVAL)
                    _exit(NOT_FOR_THIS_KERNEL); /* since v6.13 */
                fail();
            }
            return;
        }
    fail();
}

static void op_protect(void)
{
    if (mprotect(at(1), bytes(2), protection(words[3])))
        fail();
}

static void op_unmap(void)
{
    if (munmap(at(1), bytes(2)))
        fail();
}

/* remap ADDR PAGES NEW_ADDR [dontunmap] */
static void op_remap(void)
{
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (has(4, "dontunmap") ? 4 : 0);

    if (mremap(at(1), bytes(2), bytes(2), flags, at(3)) == MAP_FAILED)
        fail();
}

/* lock ADDR PAGES */
static void op_lock(void)
{
    if (mlock(at(1), bytes(2)))
        fail();
}

/* unlock ADDR PAGES */
static void op_unlock(void)
{
    if (munlock(at(1), bytes(2)))
        fail();
}

/* lockall: what is mapped from here on is locked */
static void op_lockall(void)
{
    if (mlockall(MCL_FUTURE))
        fail();
}

/* pin ADDR PAGES: buffers of a ring, whose pages are pinned until the process has closed its files */
static void op_pin(void)
{
    static char settings[256]; /* struct io_uring_params, all 0: the defaults */
    struct iovec pages = {at(1), bytes(2)};
    int ring = syscall(SYS_io_uring_setup, 1, settings);

    if (ring < 0)
        _exit(NOT_FOR_THIS_KERNEL);
    if (syscall(SYS_io_uring_register, ring, REGISTER_BUFFERS, &pages, 1))
        fail();
}

static void wait_for_ever(void)
{
    for (;;)
        pause();
}

/* A child that does something first, or nothing, and then holds everything until the case is over. */
static void held_child(void (*first)(void))
{
    int ready[2];
    char byte;
    pid_t pid;

    if (pipe(ready))
        fail();
    pid = fork();
    if (pid < 0)
        fail();
    if (!pid) {
        if (first)
            first();
        close(ready[0]);
        close(ready[1]);
        wait_for_ever();
    }
    close(ready[1]);
    if (read(ready[0], &byte, 1) != 0)
        fail();
    close(ready[0]);
}

/* fork: a held child */
static void op_fork(void)
{
    held_child(NULL);
}

/* follow: the child goes on, the parent holds everything until the case is over */
static void op_follow(void)
{
    pid_t pid = fork();

    if (pid < 0)
        fail();
    if (pid)
        wait_for_ever();
}

/* forkcow ADDR PAGES STEP: a held child that has written those pages itself */
static void op_forkcow(void)
{
    held_child(op_write);
}

/* Everything that operations have mapped. */
static void unmap_all(void)
{
    if (munmap((void *)BASE, REACH))
        fail();
}

/* pipe ADDR PAGES: pages given to a pipe that a held child keeps: references that no mapping shows */
static void op_pipe(void)
{
    int ends[2];
    struct iovec pages = {at(1), bytes(2)};

    if (pipe(ends) || fcntl(ends[1], F_SETPIPE_SZ, 1 << 20) < 0)
        fail();
    if (vmsplice(ends[1], &pages, 1, 0) != (ssize_t)pages.iov_len)
        fail();
    held_child(unmap_all);
}

/* uffdwp ADDR PAGES: write-protected through userfaultfd */
static void op_uffdwp(void)
{
    static int fd = -1;
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    struct uffdio_register area = {{(uintptr_t)at(1), bytes(2)}, UFFDIO_REGISTER_MODE_WP, 0};
    struct uffdio_writeprotect protect = {{(uintptr_t)at(1), bytes(2)}, UFFDIO_WRITEPROTECT_MODE_WP};

    if (fd < 0) {
        fd = syscall(SYS_userfaultfd, O_CLOEXEC);
        if (fd < 0)
            fail();
        if (ioctl(fd, UFFDIO_API, &api))
            _exit(NOT_FOR_THIS_KERNEL); /* arm64 cannot write-protect before v6.10 */
    }
    if (ioctl(fd, UFFDIO_REGISTER, &area) || ioctl(fd, UFFDIO_WRITEPROTECT, &protect))
        fail();
}

/* thp always|madvise|never */
static void op_thp(void)
{
    setting(THP "enabled", words[1]);
}

/* mthp KIB always|madvise|inherit|never [shmem] */
static void op_mthp(void)
{
    char path[128];

    snprintf(path, sizeof(path), THP "hugepages-%skB/%s", words[1], has(3, "shmem") ? "shmem_enabled" : "enabled");
    setting(path, words[2]);
}

/* hugepages KIB COUNT: so many huge pages of hugetlb */
static void op_hugepages(void)
{
    char path[128];

    snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%skB/nr_hugepages", words[1]);
    setting(path, words[2]);
}

static long full_scans(void)
{
    char text[32] = "";
    int fd = open("/sys/kernel/mm/ksm/full_scans", O_RDONLY);

    if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
        fail();
    close(fd);
    return atol(text);
}

/* ksm: let ksmd merge what was advised mergeable, and stop it */
static void op_ksm(void)
{
    long until;

    setting("/sys/kernel/mm/ksm/pages_to_scan", "20000");
    setting("/sys/kernel/mm/ksm/sleep_millisecs", "1");
    setting("/sys/kernel/mm/ksm/run", "1");
    for (until = full_scans() + 3; full_scans() < until;)
        usleep(2000);
    setting("/sys/kernel/mm/ksm/run", "0");
}

/* need PATH: without it the case is not for this kernel */
static void op_need(void)
{
    if (access(words[1], F_OK))
        _exit(NOT_FOR_THIS_KERNEL);
}

/* sleep MILLISECONDS */
static void op_sleep(void)
{
    usleep(number(1) * 1000);
}

static const struct { const char *name; void (*run)(void); } operations[] = {
    {"map", op_map}, {"file", op_file}, {"sparse", op_sparse}, {"memfd", op_memfd}, {"mapfile", op_mapfile},
    {"sync", op_sync}, {"drop", op_drop}, {"read", op_read}, {"write", op_write}, {"fill", op_fill},
    {"advise", op_advise}, {"protect", op_protect}, {"unmap", op_unmap}, {"remap", op_remap},
    {"lock", op_lock}, {"fork", op_fork}, {"follow", op_follow}, {"forkcow", op_forkcow}, {"pipe", op_pipe},
    {"uffdwp", op_uffdwp}, {"thp", op_thp}, {"mthp", op_mthp}, {"ksm", op_ksm}, {"need", op_need},
    {"sleep", op_sleep}, {"hugepages", op_hugepages}, {"unlock", op_unlock}, {"lockall", op_lockall},
    {"pin", op_pin},
};

static void run_line(char *line)
{
    count = 0;
    memset(words, 0, sizeof(words));
    for (char *word = strtok(line, " "); word && count < WORDS; word = strtok(NULL, " "))
        words[count++] = word;
    if (!count)
        return;
    for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++)
        if (!strcmp(words[0], operations[i].name)) {
            operations[i].run();
            return;
        }
    errno = ENOSYS;
    fail();
}

int main(int argc, char **argv)
{
    char *line, *rest = argc > 1 ? argv[1] : "";

    while ((line = strsep(&rest, "\n")))
        run_line(line);
    return 0;
}
