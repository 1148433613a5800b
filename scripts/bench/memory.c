// SPDX-License-Identifier: Apache-2.0
/* A process with memory of one kind: memory KIND MIB; prints "ready", then watches its own clock.
 *
 * On SIGUSR1 it prints the longest time, in ms, between two looks at the clock since the last SIGUSR1. It
 * sleeps for 1 ms between looks.
 *
 * scattered  order-0 pages, touched in random order: every page an extent of its own
 * pmd        huge pages, each mapped by one PMD
 * pte        huge pages mapped by PTEs: every PMD split by mprotect() there and back
 * small      touched in order with huge pages allowed; with hugepages-32kB on: order-3 folios
 * sparse     20 TiB reserved, 100 pages of it touched
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };
static const size_t PMD = 2 << 20;

static char *reserve(size_t size)
{
	char *start = mmap(NULL, size + PMD, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (start == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return (char *)(((uintptr_t)start + PMD - 1) & ~(PMD - 1));
}

/* A full-cycle generator over a power of two visits every page once. */
static void touch_scattered(char *start, size_t pages)
{
	size_t cycle = 1, next = 12345;

	while (cycle < pages)
		cycle *= 2;
	for (size_t i = 0; i < cycle; i++) {
		next = (next * 6364136223846793005u + 1442695040888963407u) & (cycle - 1);
		size_t page = (next ^ (next >> 7)) & (cycle - 1);

		if (page < pages)
			start[page * PAGE] = 1;
	}
}

static void touch(char *start, size_t size)
{
	for (size_t at = 0; at < size; at += PAGE)
		start[at] = 1;
}

static volatile sig_atomic_t asked;

static void ask(int number)
{
	(void)number;
	asked = 1;
}

static double now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static void watch_the_clock(void)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	double last = now_ms(), longest = 0;

	for (;;) {
		nanosleep(&pause, NULL);
		double now = now_ms();

		if (now - last > longest)
			longest = now - last;
		last = now;
		if (asked) {
			asked = 0;
			printf("%.3f\n", longest);
			fflush(stdout);
			longest = 0;
			last = now_ms();
		}
	}
}

int main(int argc, char **argv)
{
	const char *kind = argc == 3 ? argv[1] : "";
	size_t size = argc == 3 ? strtoul(argv[2], NULL, 0) << 20 : 0;
	char *start;

	if (!strcmp(kind, "sparse")) {
		start = reserve((size_t)20 << 40);
		madvise(start, (size_t)20 << 40, MADV_NOHUGEPAGE);
		for (size_t i = 0; i < 100; i++)
			start[i * ((size_t)200 << 30)] = 1;
	} else if (!strcmp(kind, "scattered")) {
		start = reserve(size);
		madvise(start, size, MADV_NOHUGEPAGE);
		touch_scattered(start, size / PAGE);
	} else if (!strcmp(kind, "pmd") || !strcmp(kind, "pte") || !strcmp(kind, "small")) {
		start = reserve(size);
		madvise(start, size, MADV_HUGEPAGE);
		touch(start, size);
		if (!strcmp(kind, "pte"))
			for (size_t at = 0; at < size; at += PMD) {
				mprotect(start + at, PAGE, PROT_READ);
				mprotect(start + at, PAGE, PROT_READ | PROT_WRITE);
			}
	} else {
		fprintf(stderr, "usage: memory scattered|pmd|pte|small|sparse MIB\n");
		return 2;
	}
	signal(SIGUSR1, ask);
	puts("ready");
	fflush(stdout);
	watch_the_clock();
	return 0;
}
