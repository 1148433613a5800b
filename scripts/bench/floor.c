// SPDX-License-Identifier: Apache-2.0
/* The least that a capture can cost: floor PLAN reads what PLAN lists and keeps nothing.
 *
 * PLAN: one read a line, "FILE FIRST COUNT", in 64-bit words of the file; prints the seconds it took and
 * the words of each file.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { FILES = 32, BLOCK = 256 << 10 };

struct read {
	int file;
	off_t first;
	size_t count;
};

static char names[FILES][256];
static int fds[FILES];
static char block[BLOCK];

static int file_of(const char *name)
{
	for (int i = 0; i < FILES; i++) {
		if (!names[i][0]) {
			snprintf(names[i], sizeof(names[i]), "%s", name);
			fds[i] = open(name, O_RDONLY);
			if (fds[i] < 0) {
				perror(name);
				exit(1);
			}
		}
		if (!strcmp(names[i], name))
			return i;
	}
	exit(1);
}

int main(int argc, char **argv)
{
	FILE *plan = argc == 2 ? fopen(argv[1], "r") : NULL;
	size_t capacity = 1 << 16, reads = 0, words[FILES] = {0};
	struct read *list = malloc(capacity * sizeof(*list));
	struct timespec begin, end;
	char name[256];
	long first, count;

	if (!plan) {
		fprintf(stderr, "usage: floor PLAN\n");
		return 2;
	}
	while (fscanf(plan, "%255s %ld %ld", name, &first, &count) == 3) {
		if (reads == capacity)
			list = realloc(list, (capacity *= 2) * sizeof(*list));
		list[reads++] = (struct read){file_of(name), first, count};
	}
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (size_t i = 0; i < reads; i++) {
		size_t left = list[i].count * 8;
		off_t at = list[i].first * 8;

		while (left) {
			ssize_t got = pread(fds[list[i].file], block, left < BLOCK ? left : BLOCK, at);

			if (got <= 0)
				break;
			left -= got;
			at += got;
			words[list[i].file] += got / 8;
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%.6f", (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) * 1e-9);
	for (int i = 0; i < FILES && names[i][0]; i++)
		printf(" %s=%zu", names[i], words[i]);
	puts("");
	return 0;
}
