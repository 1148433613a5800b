// SPDX-License-Identifier: Apache-2.0
/* A process of a few pages: writes argv[1] pages of anonymous memory and exits. Built without the C library. */
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef PAGE_SHIFT
#define PAGE_SHIFT 12
#endif
#define PAGE (1UL << PAGE_SHIFT)
#define AT 0x100000000000UL

#if defined(__x86_64__)

static long call(long number, long a, long b, long c, long d)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = -1;
    register long r9 __asm__("r9") = 0;
    long result;

    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

__asm__(".globl _start\n_start:\n mov %rsp, %rdi\n and $-16, %rsp\n call run\n");

#elif defined(__aarch64__)

static long call(long number, long a, long b, long c, long d)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = -1;
    register long x5 __asm__("x5") = 0;

    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

__asm__(".globl _start\n_start:\n mov x0, sp\n b run\n");

#endif

__attribute__((used)) static void run(long *stack)
{
    unsigned long pages = 0;
    const char *digit = stack[0] > 1 ? (const char *)stack[2] : "";

    while (*digit)
        pages = pages * 10 + (*digit++ - '0');
    if (pages)
        call(SYS_mmap, AT, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED);
    for (unsigned long i = 0; i < pages; i++)
        *(volatile char *)(AT + i * PAGE) = 1;
    call(SYS_exit_group, 0, 0, 0, 0);
}
