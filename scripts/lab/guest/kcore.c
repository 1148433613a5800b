// SPDX-License-Identifier: Apache-2.0
/* The kernel's memory through /proc/kcore: by kernel address, by physical address; where its struct pages are. */
#define _GNU_SOURCE
#include "lab.h"
#include "machine.h"

#include <elf.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int kcore = -1;
static Elf64_Phdr *segments;
static int segment_count;

static void kcore_open(void)
{
    Elf64_Ehdr header;

    if (kcore >= 0)
        return;
    kcore = open("/proc/kcore", O_RDONLY | O_CLOEXEC);
    if (kcore < 0 || pread(kcore, &header, sizeof(header), 0) != sizeof(header))
        die("/proc/kcore");
    segment_count = header.e_phnum;
    segments = calloc(segment_count, sizeof(*segments));
    if (pread(kcore, segments, segment_count * sizeof(*segments), header.e_phoff) < 0)
        die("/proc/kcore headers");
}

int kernel_read(uint64_t address, void *to, size_t size)
{
    kcore_open();
    for (int i = 0; i < segment_count; i++) {
        const Elf64_Phdr *s = &segments[i];

        if (s->p_type == PT_LOAD && address >= s->p_vaddr && address + size <= s->p_vaddr + s->p_memsz)
            return pread(kcore, to, size, s->p_offset + (address - s->p_vaddr)) == (ssize_t)size;
    }
    return 0;
}

/* Segments of RAM name their physical address, all others name none that there is. */
int page_read(uint64_t entry, void *page)
{
    uint64_t where = entry & FRAME;

    for (int i = 0; i < segment_count; i++) {
        const Elf64_Phdr *s = &segments[i];

        if (s->p_type == PT_LOAD && where >= s->p_paddr && where + PAGE <= s->p_paddr + s->p_memsz)
            return kernel_read(s->p_vaddr + (where - s->p_paddr), page, PAGE);
    }
    return 0;
}

/* The physical address behind a kernel address of RAM, 0 if it is none. */
uint64_t physical(uint64_t address)
{
    for (int i = 0; i < segment_count; i++) {
        const Elf64_Phdr *s = &segments[i];

        if (s->p_type == PT_LOAD && s->p_paddr != UINT64_MAX && address >= s->p_vaddr
            && address < s->p_vaddr + s->p_memsz)
            return s->p_paddr + (address - s->p_vaddr);
    }
    return 0;
}

#if defined(__x86_64__)

uint64_t struct_pages(void)
{
    return 0xffffea0000000000UL; /* with four-level page tables */
}

#elif defined(__aarch64__)

/* A number of the kernel's VMCOREINFO note, which /proc/kcore has. */
static uint64_t vmcoreinfo(const char *name)
{
    static char note[1 << 16];
    char *found = NULL;

    for (int i = 0; i < segment_count; i++) {
        size_t size = segments[i].p_filesz < sizeof(note) ? segments[i].p_filesz : sizeof(note);

        if (segments[i].p_type == PT_NOTE && pread(kcore, note, size, segments[i].p_offset) == (ssize_t)size)
            found = memmem(note, size, name, strlen(name));
    }
    if (!found)
        die(name);
    return strtoull(found + strlen(name), NULL, 0);
}

uint64_t struct_pages(void)
{
    kcore_open();
    /* signed: a kernel for 52-bit addresses that runs with 48 puts the beginning of RAM below 0 */
    return vmcoreinfo("NUMBER(VMEMMAP_START)=")
        - ((int64_t)vmcoreinfo("NUMBER(PHYS_OFFSET)=") / (int64_t)PAGE) * STRUCT_PAGE;
}

#endif
