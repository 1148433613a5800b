// SPDX-License-Identifier: Apache-2.0
/*
 * The page tables of a stopped process, the references of all pages and the mapcounts of large folios, read through
 * /proc/kcore: procfs shows neither the dirty bit of an entry nor, before Linux 6.7, which entries are PMD entries, no
 * references, and with CONFIG_NO_PAGE_MAPCOUNT averages of mapcounts.
 *
 * Page tables of LEVELS levels are assumed, on x86-64 without KASLR (the lab boots with nokaslr). The
 * offset of mm->pgd differs between kernels, so it is not assumed: the word of the mm_struct is taken whose page
 * tables give the same page frames as /proc/PID/pagemap.
 */
#define _GNU_SOURCE
#include "lab.h"
#include "machine.h"

#include <string.h>

#define INDEX_BITS (PAGE_SHIFT - 3) /* of one level: entries are 8 bytes wide */
#define ENTRIES (1 << INDEX_BITS)
#define MM_WORDS 256
/* Offsets in struct page: of any page, and of the second page of a large folio (Linux since v6.15) */
#define REFCOUNT 52
#define LARGE_MAPCOUNT 16
#define ENTIRE_MAPCOUNT 24

static int is_leaf(uint64_t entry, int level)
{
    return level == 1 || (level < 4 && (!(entry & PRESENT) || (entry & HUGE_MASK) == HUGE_VALUE));
}

/* Appends the 32-bit words at some offsets of the struct pages of frames, of each page in this order. */
static void struct_words(size_t frames, const int *offsets, int words, struct blob *out)
{
    uint64_t first = struct_pages();
    char part[PAGE];

    for (size_t frame = 0; frame < frames; frame += PAGE / STRUCT_PAGE) {
        if (!kernel_read(first + frame * STRUCT_PAGE, part, PAGE))
            memset(part, 0, PAGE);
        for (size_t i = 0; i < PAGE / STRUCT_PAGE && frame + i < frames; i++)
            for (int word = 0; word < words; word++)
                blob_add(out, part + i * STRUCT_PAGE + offsets[word], sizeof(uint32_t));
    }
}

void refcounts_read(size_t frames, struct blob *counts)
{
    const int offsets[] = {REFCOUNT};

    struct_words(frames, offsets, 1, counts);
}

void mapcounts_read(size_t frames, struct blob *counts)
{
    const int offsets[] = {LARGE_MAPCOUNT, ENTIRE_MAPCOUNT};

    struct_words(frames, offsets, 2, counts);
}

/* Appends the leaves of one table (level LEVELS = PGD) that lie in pages [from, to). */
static void walk(uint64_t entry, int level, uint64_t base, uint64_t from, uint64_t to, struct blob *leaves)
{
    uint64_t table[ENTRIES], span = 1UL << (INDEX_BITS * (level - 1));

    if (!page_read(entry, table))
        return;
    for (int i = 0; i < ENTRIES; i++) {
        uint64_t vpn = base + i * span;

        if (vpn + span <= from || vpn >= to || !table[i])
            continue;
        if (is_leaf(table[i], level)) {
            struct leaf leaf = {vpn | (uint64_t)level << 60, table[i]};

            blob_add(leaves, &leaf, sizeof(leaf));
        } else if (table[i] & PRESENT) {
            walk(table[i], level - 1, vpn, from, to, leaves);
        }
    }
}

/* The page frame that page tables give for vpn, whose entry is present or PROT_NONE; 0 for none. */
static uint64_t frame_of(uint64_t pgd, uint64_t vpn)
{
    uint64_t entry = pgd, table[ENTRIES];

    for (int level = LEVELS; level >= 1; level--) {
        if (!page_read(entry, table))
            return 0;
        entry = table[(vpn >> (INDEX_BITS * (level - 1))) & (ENTRIES - 1)];
        if (is_leaf(entry, level)) {
            if (INVERTED_WHEN_ABSENT && !(entry & PRESENT))
                entry = ~entry;
            return ((entry & FRAME) >> PAGE_SHIFT) + (vpn & ((1UL << (INDEX_BITS * (level - 1))) - 1));
        }
        if (!(entry & PRESENT))
            return 0;
    }
    return 0;
}

static int same_frames(uint64_t pgd, const struct blob *pagemap)
{
    const uint64_t *words = (const uint64_t *)pagemap->data;
    size_t total = pagemap->size / 8, checked = 0;

    for (size_t at = 0; at + 2 <= total && checked < 64; at += 2 + words[at + 1])
        for (size_t i = 0; i < words[at + 1] && checked < 64; i++) {
            uint64_t word = words[at + 2 + i];

            if (!(word >> 63))
                continue;
            if (frame_of(pgd, (words[at] >> PAGE_SHIFT) + i) != (word & ((1UL << 55) - 1)))
                return 0;
            checked++;
        }
    return checked > 0;
}

void leaves_read(uint64_t mm, const struct blob *pagemap, struct blob *leaves)
{
    const uint64_t *words = (const uint64_t *)pagemap->data;
    uint64_t fields[MM_WORDS];

    if (!mm || !kernel_read(mm, fields, sizeof(fields)))
        return;
    for (int i = 0; i < MM_WORDS; i++) {
        uint64_t pgd = physical(fields[i]);

        if (!pgd || (pgd & (PAGE - 1)) || !same_frames(pgd, pagemap))
            continue;
        for (size_t at = 0; at + 2 <= pagemap->size / 8; at += 2 + words[at + 1])
            walk(pgd, LEVELS, 0, words[at] >> PAGE_SHIFT, (words[at] >> PAGE_SHIFT) + words[at + 1], leaves);
        return;
    }
}
