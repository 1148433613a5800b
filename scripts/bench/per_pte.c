/* SPDX-License-Identifier: Apache-2.0
 *
 * The rival of scripts/bench_replay: the algorithm `baseline`, PTE by PTE, in C.
 *
 * usage: per_pte ROWS < rows, 10 int64 each: mm kind pages pfn folio order anon mapcount folio_mapped
 * folio_mapcount, in the order of the trace. Prints the seconds that the teardowns took, then counts.
 * A page is a struct of its own, as in the kernel; atomic operations are atomic.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MM, KIND, PAGES, PFN, FOLIO, ORDER, ANON, MAPCOUNT, FOLIO_MAPPED, FOLIO_MAPCOUNT, COLUMNS };
enum { KIND_PAGE, KIND_PMD, KIND_HUGETLB };
enum { BUNDLE = 8, BATCH = 510, BATCHES = 19 };

struct page {
	int32_t mapcount, refs, mapped;
	uint8_t order, anon, queued;
	uint32_t head;
};

static struct page *map;
static int64_t ptes, rmap_calls, mapcount_atomics, nr_mapped_atomics, refcount_atomics, split_calls, queued,
	freed, flushes;
static uint32_t gather[BUNDLE + BATCH * BATCHES];
static size_t used;

static void release(void)
{
	if (!used)
		return;
	flushes++;
	for (size_t i = 0; i < used; i++) {
		struct page *head = &map[map[gather[i]].head];

		refcount_atomics++;
		if (__atomic_sub_fetch(&head->refs, 1, __ATOMIC_SEQ_CST) == 0) {
			freed++;
			head->queued = 0;
		}
	}
	used = 0;
}

static void add(uint32_t pfn)
{
	gather[used++] = pfn;
	if (used == BUNDLE + BATCH * BATCHES)
		release();
}

static void remove_rmap(uint32_t pfn)
{
	struct page *page = &map[pfn], *head = &map[page->head];
	int last = __atomic_sub_fetch(&page->mapcount, 1, __ATOMIC_SEQ_CST) == 0;

	rmap_calls++;
	mapcount_atomics++;
	if (!head->order || !last)
		return;
	__atomic_sub_fetch(&head->mapped, 1, __ATOMIC_SEQ_CST);
	nr_mapped_atomics++;
	if (head->anon) {
		split_calls++;
		if (head->order > 1 && !head->queued) {
			head->queued = 1;
			queued++;
		}
	}
}

static void prepare(const int64_t *row)
{
	uint32_t first = row[ORDER] ? row[FOLIO] : row[PFN], end = row[PFN] + row[PAGES];
	int64_t size = (int64_t)1 << row[ORDER];

	for (uint32_t pfn = row[PFN]; pfn < end; pfn++) {
		map[pfn].mapcount = row[MAPCOUNT];
		map[pfn].head = row[ORDER] ? first : pfn;
		if (!row[ORDER]) {
			map[pfn].order = 0;
			map[pfn].anon = row[ANON];
			map[pfn].refs = row[MAPCOUNT] + !row[ANON];
		}
	}
	if (row[ORDER]) {
		struct page *head = &map[first];

		head->order = row[ORDER];
		head->anon = row[ANON];
		head->mapped = row[FOLIO_MAPPED];
		head->refs = row[FOLIO_MAPCOUNT] + (row[ANON] ? 0 : size);
		head->queued = row[ANON] && row[ORDER] > 1 && row[FOLIO_MAPPED] < size;
	}
}

static void tear_down(const int64_t *row)
{
	if (row[KIND] != KIND_PAGE)
		return;
	for (uint32_t pfn = row[PFN], end = pfn + row[PAGES]; pfn < end; pfn++) {
		ptes++;
		remove_rmap(pfn);
		add(pfn);
	}
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	size_t rows = argc > 1 ? strtoull(argv[1], NULL, 10) : 0, bytes = rows * COLUMNS * sizeof(int64_t);
	int64_t *row = malloc(bytes), most = 0;
	double seconds = 0;

	if (!row || fread(row, 1, bytes, stdin) != bytes) {
		fprintf(stderr, "per_pte: fewer rows than said, or no memory for them\n");
		return 1;
	}
	for (size_t i = 0; i < rows; i++)
		if (row[i * COLUMNS + KIND] <= KIND_HUGETLB) {
			const int64_t *r = &row[i * COLUMNS];
			int64_t end = r[FOLIO] + ((int64_t)1 << r[ORDER]);

			most = end > most ? end : most;
			most = r[PFN] + r[PAGES] > most ? r[PFN] + r[PAGES] : most;
		}
	map = calloc(most + 1, sizeof(*map));
	if (!map)
		return 1;
	for (size_t i = 0, next; i < rows; i = next) {
		for (next = i; next < rows && row[next * COLUMNS] == row[i * COLUMNS]; next++)
			if (row[next * COLUMNS + KIND] <= KIND_HUGETLB)
				prepare(&row[next * COLUMNS]);
		double began = now();

		for (size_t n = i; n < next; n++)
			tear_down(&row[n * COLUMNS]);
		release();
		seconds += now() - began;
	}
	printf("%.9f %ld %ld %ld %ld %ld %ld\n", seconds, (long)ptes, (long)rmap_calls, (long)mapcount_atomics,
	       (long)nr_mapped_atomics, (long)split_calls, (long)freed);
	return 0;
}
