/* SPDX-License-Identifier: Apache-2.0 */
/* markers guard|wp|poison: 1000 pages, the first 100 of them written to; page-table entries that are no memory and
 * no swap are put behind those. Prints how many, and waits. Status 77: the kernel has no such marker.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGES = 1000, WRITTEN = 100, GUARDS = 500, GUARD_INSTALL = 102, UNSUPPORTED = 77 };

#define WP_UNPOPULATED (1ULL << 13)
#define FEATURE_POISON (1ULL << 14)

struct poison {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define POISON _IOWR(UFFDIO, 0x08, struct poison)

static int registered(void *area, size_t size, uint64_t features, uint64_t mode)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register wanted = { .range = { (uintptr_t)area, size }, .mode = mode };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &wanted))
		return -1;
	return fd;
}

static int protect(char *area, size_t size)
{
	struct uffdio_writeprotect all = { { (uintptr_t)area, size }, UFFDIO_WRITEPROTECT_MODE_WP };
	int fd = registered(area, size, UFFD_FEATURE_PAGEFAULT_FLAG_WP | WP_UNPOPULATED, UFFDIO_REGISTER_MODE_WP);

	return fd < 0 || ioctl(fd, UFFDIO_WRITEPROTECT, &all) ? 0 : PAGES - WRITTEN;
}

static int poison(char *area, size_t page)
{
	struct poison some = { { (uintptr_t)area + 200 * page, 300 * page }, 0, 0 };
	int fd = registered(area, PAGES * page, FEATURE_POISON, UFFDIO_REGISTER_MODE_MISSING);

	return fd < 0 || ioctl(fd, POISON, &some) ? 0 : 300;
}

int main(int argc, char **argv)
{
	size_t page = sysconf(_SC_PAGESIZE);
	char *area = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const char *kind = argc > 1 ? argv[1] : "";
	int markers = 0;

	madvise(area, PAGES * page, MADV_NOHUGEPAGE);
	memset(area, 1, WRITTEN * page);
	if (!strcmp(kind, "guard"))
		markers = madvise(area + 200 * page, GUARDS * page, GUARD_INSTALL) ? 0 : GUARDS;
	else if (!strcmp(kind, "wp"))
		markers = protect(area, PAGES * page);
	else if (!strcmp(kind, "poison"))
		markers = poison(area, page);
	if (!markers)
		return UNSUPPORTED;
	printf("%d\n", markers);
	fflush(stdout);
	pause();
	return 0;
}
