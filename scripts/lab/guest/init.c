// SPDX-License-Identifier: Apache-2.0
/*
 * Init of the guest: mounts, modules, settings, then every program of /programs and every case of /cases in
 * order, then power off.
 * Disks by order: the output (vda), an ext4 root with programs (vdb), swap (vdc), XFS if given (vdd).
 */
#define _GNU_SOURCE
#include "lab.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THP "/sys/kernel/mm/transparent_hugepage/"

static void mount_at(const char *device, const char *place, const char *type, const char *options, int needed)
{
    mkdir(place, 0755);
    if (mount(device, place, type, 0, options) && needed)
        die(place);
}

static char *slurp(const char *path)
{
    struct blob blob = {0};

    blob_read(&blob, path);
    blob_add(&blob, "", 1);
    return blob.data;
}

/* Calls use for every entry of a folder, in name order. */
static void each(const char *folder, void (*use)(const char *path, const char *name))
{
    struct dirent **entries;
    int n = scandir(folder, &entries, NULL, alphasort);

    for (int i = 0; i < n; i++) {
        char path[512];

        if (entries[i]->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "%s/%s", folder, entries[i]->d_name);
        use(path, entries[i]->d_name);
    }
}

static void load_module(const char *path, const char *name)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
        printf("lab: module %s: %s\n", name, strerror(errno));
    close(fd);
}

/* Every case starts from the same switches. */
static void mthp_default(const char *path, const char *name)
{
    char file[600], pmd[64];
    const char *word;

    snprintf(pmd, sizeof(pmd), "hugepages-%lukB", PAGE / 8 * PAGE / 1024);
    word = strcmp(name, pmd) ? "never" : "inherit";
    if (strncmp(name, "hugepages-", 10))
        return;
    snprintf(file, sizeof(file), "%s/enabled", path);
    write_text(file, word);
    snprintf(file, sizeof(file), "%s/shmem_enabled", path);
    write_text(file, word);
}

static void switches(void)
{
    write_text(THP "enabled", "madvise");
    write_text(THP "shmem_enabled", "advise");
    write_text(THP "defrag", "madvise");
    /* khugepaged must not collapse what a case has built; MADV_COLLAPSE does not need it. */
    write_text(THP "khugepaged/scan_sleep_millisecs", "3600000");
    write_text(THP "khugepaged/alloc_sleep_millisecs", "3600000");
    write_text("/sys/kernel/mm/ksm/run", "0");
    write_text("/proc/sys/kernel/numa_balancing", "0");
    write_text("/proc/sys/kernel/sched_rt_runtime_us", "-1");
    write_text("/proc/sys/kernel/randomize_va_space", "0");
    write_text("/proc/sys/vm/compaction_proactiveness", "0");
    write_text("/proc/sys/vm/dirty_writeback_centisecs", "0");
    each("/sys/kernel/mm/transparent_hugepage", mthp_default);
}

static int cases_done;

static void run_case(const char *path, const char *name)
{
    char *spec = slurp(path);

    switches();
    printf("lab: case %s\n", name);
    collect(name, spec);
    free(spec);
    cases_done++;
}

static void run_each_program(const char *path, const char *name)
{
    char *spec = slurp(path);

    if (!cases_done) {
        mount_at("sysfs", "/disk/sys", "sysfs", NULL, 1);
        mount_at("tmpfs", "/disk/tmp", "tmpfs", NULL, 1);
    }
    printf("lab: program %s\n", name);
    run_program(name, spec);
    free(spec);
    cases_done++;
}

int main(void)
{
    struct blob probes = {0};
    char address[32], *text;

    mount_at("devtmpfs", "/dev", "devtmpfs", NULL, 1);
    mount_at("proc", "/proc", "proc", NULL, 1);
    mount_at("sysfs", "/sys", "sysfs", NULL, 1);
    mount_at("tracefs", "/sys/kernel/tracing", "tracefs", NULL, 1);
    setvbuf(stdout, NULL, _IOLBF, 0);
    dup2(open("/dev/console", O_RDWR), 1);
    if (sysconf(_SC_PAGESIZE) != (long)PAGE)
        die("the lab took the kernel for one of another page size");
    each("/modules", load_module);
    stream_open("/dev/vda");
    mount_at("/dev/vdb", "/disk", "ext4", NULL, 1);
    mount_at("/dev/vdd", "/xfs", "xfs", NULL, 0);
    mount_at("tmpfs", "/tmp", "tmpfs", NULL, 1);
    mount_at("tmpfs", "/huge", "tmpfs", "huge=always", 1);
    mount_at("hugetlbfs", "/hugetlb", "hugetlbfs", NULL, 0);
    mount_at("proc", "/disk/proc", "proc", NULL, 0);
    mount_at("devtmpfs", "/disk/dev", "devtmpfs", NULL, 0);
    write_text("/proc/sys/vm/nr_hugepages", "24");
    if (swapon("/dev/vdc", 0))
        die("swapon");
    switches();

    /* programs first: they make probes of their own */
    each("/programs", run_each_program);
    text = slurp("/probes");
    trace_setup(text, &probes);
    stream_member("boot", "probes", probes.data, probes.size);
    stream_file("boot", "version", "/proc/version");
    stream_file("boot", "kallsyms", "/proc/kallsyms");
    stream_member("boot", "struct_pages", address, snprintf(address, sizeof(address), "%lx\n", struct_pages()));
    stream_member("boot", "page_size", address, snprintf(address, sizeof(address), "%lu\n", PAGE));
    stream_file("boot", "header_page", TRACING "events/header_page");
    stream_file("boot", "header_event", TRACING "events/header_event");
    each("/cases", run_case);
    stream_member("boot", "done", "", 0);
    stream_close();
    printf("lab: done %d\n", cases_done);
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}
