// SPDX-License-Identifier: Apache-2.0
// One address space in several processes: argv[1] clones with CLONE_VM and without CLONE_THREAD, and the parent.
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

static int wait_for_ever(void *unused)
{
	(void)unused;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	int clones = argc > 1 ? atoi(argv[1]) : 3;
	size_t size = 8 << 20, stack = 1 << 16;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	madvise(memory, size, MADV_NOHUGEPAGE);
	memset(memory, 1, size);
	printf("%d", getpid());
	for (int i = 0; i < clones; i++) {
		char *area = mmap(NULL, stack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		printf(" %d", clone(wait_for_ever, area + stack, CLONE_VM | SIGCHLD, NULL));
	}
	puts("");
	fflush(stdout);
	return wait_for_ever(NULL);
}
