// SPDX-License-Identifier: Apache-2.0
/*
 * Parts of the guest's init, each after those that it calls: the end, buffers, the output stream, the kernel's
 * memory, calls in it, the tracer, page tables, the collector, programs.
 */
#ifndef LAB_H
#define LAB_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#ifndef PAGE_SHIFT /* of the guest's kernel; the compiler is told */
#define PAGE_SHIFT 12
#endif
#define PAGE (1UL << PAGE_SHIFT)
#define TRACING "/sys/kernel/tracing/"
#define NOT_FOR_THIS_KERNEL 77 /* exit status of a workload whose kernel lacks what it needs */

/* Says what failed, with errno, and powers off. */
void die(const char *what) __attribute__((noreturn));

/* A growing memory buffer. */
struct blob {
    char *data;
    size_t size, room;
};

void blob_add(struct blob *blob, const void *data, size_t size);
void blob_read(struct blob *blob, const char *path); /* appends a whole file; nothing if it cannot be read */
void blob_free(struct blob *blob);

/* The output disk, written as one ustar archive. */
void stream_open(const char *device);
void stream_member(const char *folder, const char *name, const void *data, size_t size);
void stream_file(const char *folder, const char *name, const char *path);
void stream_close(void);

/* /proc/kcore. Reads return 0 if there is no such memory. */
#define STRUCT_PAGE 64 /* bytes */
int kernel_read(uint64_t address, void *to, size_t size);
int page_read(uint64_t entry, void *page); /* the page that a page-table entry names */
uint64_t physical(uint64_t address);       /* behind a kernel address of RAM, 0 if it is none */
uint64_t struct_pages(void);               /* kernel address of the struct page of frame 0 */

/* Calls of a function, as bytes from _stext. It may be there several times: a copy in each file. Returns how many. */
size_t call_sites(const char *callee, uint64_t *sites, size_t room);

/* kprobe events and tracepoints. */
int write_text(const char *path, const char *text); /* 0, or an errno */
void trace_setup(const char *probes, struct blob *log);
void trace_start(void);
void trace_stop(struct blob *raw, struct blob *stats);
uint64_t trace_mm_of(pid_t pid); /* kernel address of the mm_struct, 0 if it cannot be known */

/* Leaf entries of the page tables of one process, the references of pages, and the mapcounts of large folios. */
struct leaf {
    uint64_t where; /* virtual page number; bits 60.. hold the level: 1 PTE, 2 PMD, 3 PUD */
    uint64_t entry; /* the raw entry */
};
void leaves_read(uint64_t mm, const struct blob *pagemap, struct blob *leaves);
void refcounts_read(size_t frames, struct blob *counts); /* u32 per page frame */
/* Two u32 per page frame; of the second page of a large folio its _large_mapcount and its _entire_mapcount. */
void mapcounts_read(size_t frames, struct blob *counts);

/* One case: run it, catch it at its exit, dump it, let it go under the tracer. */
void collect(const char *name, const char *spec);

/* One program of the root disk, run to its end. */
void run_program(const char *name, char *spec);

#endif
