/* A process of a few pages: writes argv[1] pages of anonymous memory and exits. Built without the C library. */
#include <sys/mman.h>
#include <sys/syscall.h>

#define PAGE 4096UL
#define AT 0x100000000000UL

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

__asm__(".globl _start\n_start:\n mov %rsp, %rdi\n and $-16, %rsp\n call run\n");
