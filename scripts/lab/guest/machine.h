// SPDX-License-Identifier: Apache-2.0
/* What the architectures differ in: where user memory ends, how deep page tables are, how an entry says what it is. */
#ifndef MACHINE_H
#define MACHINE_H

#define PRESENT 1UL

#if defined(__x86_64__)

#define USER_PAGES_END ((1UL << 47) - PAGE)
#define LEVELS 4
#define FRAME 0x000ffffffffff000UL
#define HUGE_MASK (1UL << 7) /* of a present entry above the PTE level: is it a leaf? */
#define HUGE_VALUE (1UL << 7)
#define INVERTED_WHEN_ABSENT 1 /* the frame of PROT_NONE entries (L1TF) */

#elif defined(__aarch64__)

#define USER_PAGES_END (1UL << 48)
/* without FEAT_LPA2, kernels of 16 KiB pages for 52-bit addresses run with 47 bits: a level less */
#define LEVELS (PAGE_SHIFT == 12 ? 4 : 3)
#define FRAME (0x0000ffffffffffffUL & -PAGE)
#define HUGE_MASK (1UL << 1)
#define HUGE_VALUE 0UL
#define INVERTED_WHEN_ABSENT 0

#else
#error "the lab does not know this architecture"
#endif

#endif
