/* Ways to exec, one for each name: for test_execs.py. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void touch(int pages)
{
	char *area = mmap(NULL, pages * 4096L, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (int i = 0; i < pages; i++)
		area[i * 4096L] = 1;
}

static int said(const char *what, long number)
{
	printf("%s %ld\n", what, number);
	fflush(stdout);
	return 0;
}

static int copied(const char *from, int to)
{
	int source = open(from, O_RDONLY);
	struct stat info;

	fstat(source, &info);
	while (sendfile(to, source, NULL, info.st_size) > 0)
		;
	close(source);
	return to;
}

static void *tries(void *path) { execl(path, path, "quiet", (char *)NULL); return (void *)(long)errno; }
static pthread_barrier_t together;
static void *tries_together(void *path) { pthread_barrier_wait(&together); return tries(path); }
static void *allocates(void *unused) { for (;;) touch(1); }

static volatile int leave;
static int leaves(void *path)
{
	while (!leave)
		;
	execl(path, path, "quiet", (char *)NULL);
	return 9;
}

/* Two processes with one memory exec: at the same moment, or the second `pause` ms after it was let go. */
static void share(char *path, int pause)
{
	touch(100);
	clone(leaves, (char *)malloc(1 << 16) + (1 << 16), CLONE_VM | SIGCHLD, path);
	usleep(2000);
	leave = 1;
	usleep(pause * 1000);
	execl(path, path, "quiet", (char *)NULL);
}

static long filtered(unsigned int flags, struct sock_filter *steps, int count)
{
	struct sock_fprog program = { count, steps };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "quiet";
	int fd, status;
	pthread_t thread;
	pid_t pid;

	if (!strcmp(name, "failing")) {
		for (int i = 2; i < argc; i++) {
			execl(argv[i], argv[i], "quiet", (char *)NULL);
			said(argv[i], errno);
		}
	} else if (!strcmp(name, "failing-thread")) {
		void *result;

		pthread_create(&thread, NULL, tries, argv[2]);
		pthread_join(thread, &result);
		said("thread", (long)result);
	} else if (!strcmp(name, "memfd")) { /* memfd PROGRAM [FAILING...] */
		for (int i = 3; i < argc; i++)
			execl(argv[i], argv[i], "quiet", (char *)NULL);
		fd = copied(argv[2], memfd_create("program", MFD_CLOEXEC));
		fexecve(fd, (char *[]){ argv[2], "quiet", NULL }, environ);
		return 9;
	} else if (!strcmp(name, "mounts")) { /* mounts FOLDER PROGRAM */
		char path[4096];

		if (mount("none", argv[2], "tmpfs", 0, NULL))
			return 8;
		snprintf(path, sizeof(path), "%s/program", argv[2]);
		fd = copied(argv[3], open(path, O_CREAT | O_WRONLY, 0755));
		close(fd);
		execl(path, path, "quiet", (char *)NULL);
		return 9;
	} else if (!strcmp(name, "busy-threads")) {
		for (int i = 0; i < 4; i++)
			pthread_create(&thread, NULL, allocates, NULL);
		usleep(20000);
		execl(argv[2], argv[2], "quiet", (char *)NULL);
		return 9;
	} else if (!strcmp(name, "many-threads-exec")) {
		pthread_barrier_init(&together, NULL, 8);
		for (int i = 0; i < 8; i++)
			pthread_create(&thread, NULL, tries_together, argv[2]);
		for (;;)
			pause();
	} else if (!strcmp(name, "spawn")) {
		touch(500);
		if (posix_spawn(&pid, argv[2], NULL, NULL, (char *[]){ argv[2], "quiet", NULL }, environ))
			return 9;
		said("child", pid);
		waitpid(pid, &status, 0);
		return WEXITSTATUS(status);
	} else if (!strcmp(name, "storm")) { /* storm NUMBER PROGRAM */
		int count = atoi(argv[2]), good = 0;

		for (int i = 0; i < count; i++)
			if (!fork()) {
				execl(argv[3], argv[3], "quiet", (char *)NULL);
				_exit(9);
			}
		while (wait(&status) > 0)
			good += status == 0;
		return good == count ? 0 : 1;
	} else if (!strcmp(name, "far-argument")) { /* far-argument FILE PROGRAM */
		/* the argument lies in pages that are not mapped before the kernel copies it */
		char *far = mmap(NULL, 64 << 12, PROT_READ, MAP_PRIVATE, open(argv[2], O_RDONLY), 0);

		execl(argv[3], argv[3], "quiet", far + (32 << 12), (char *)NULL);
		return 9;
	} else if (!strcmp(name, "forks")) { /* forks PROGRAM: a copy of the parent is torn down */
		touch(700);
		if (!(pid = fork())) {
			touch(50);
			execl(argv[2], argv[2], "quiet", (char *)NULL);
			_exit(9);
		}
		waitpid(pid, &status, 0);
		return WEXITSTATUS(status);
	} else if (!strcmp(name, "sharers")) { /* sharers NUMBER WAIT PROGRAM: pairs with one memory, both exec */
		for (int i = 0; i < atoi(argv[2]); i++) {
			if (!(pid = fork())) {
				share(argv[4], atoi(argv[3]));
				_exit(9);
			}
			waitpid(pid, &status, 0);
		}
	} else if (!strcmp(name, "listener")) {
		struct sock_filter allow[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
		long result = filtered(SECCOMP_FILTER_FLAG_NEW_LISTENER, allow, 1);

		said("listener", result < 0 ? -errno : 0);
		said("tsync", filtered(SECCOMP_FILTER_FLAG_TSYNC, allow, 1));
		said("mode", prctl(PR_GET_SECCOMP));
	} else if (!strcmp(name, "untraced")) {
		/* SECCOMP_RET_TRACE without a tracer */
		struct sock_filter steps[] = {
			BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
			BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE | 7),
			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		};

		said("filter", filtered(0, steps, 4));
		said("getppid", syscall(SYS_getppid) < 0 ? -errno : 0);
	}
	return 0;
}
