/* Process trees for test_record.py: one way to begin, share, replace and end processes for each name. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void touch(int pages)
{
	char *area = mmap(NULL, pages * 4096L, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (int i = 0; i < pages; i++)
		area[i * 4096L] = 1;
}

static void *quick(void *unused) { touch(10); return NULL; }
static void *endless(void *unused) { for (;;) pause(); }
static void *late(void *unused) { usleep(300000); touch(300); return NULL; }
static void *exits(void *unused) { usleep(20000); exit(5); }
static void *execs(void *path) { usleep(20000); execl(path, path, "quiet", (char *)NULL); return NULL; }

static pid_t first;
static void *notes(void *unused) { first = syscall(SYS_gettid); return NULL; }
static void *again(void *unused)
{
	if (syscall(SYS_gettid) != first)
		_exit(77);
	usleep(100000);
	touch(16 << 8);
	_exit(0);
}

static void threads(void *(*body)(void *), void *argument, int count, int join)
{
	pthread_t thread[64];

	for (int i = 0; i < count; i++)
		pthread_create(&thread[i], NULL, body, argument);
	for (int i = 0; join && i < count; i++)
		pthread_join(thread[i], NULL);
}

static int waits(void *unused) { usleep(100000); touch(200); return 0; }
static int at_once(void *unused) { return 0; }

static pid_t sharing(int (*body)(void *))
{
	return clone(body, (char *)malloc(1 << 16) + (1 << 16), CLONE_VM | SIGCHLD, NULL);
}

static int shown(const char *what, pid_t pid)
{
	printf("%s %d\n", what, pid);
	fflush(stdout);
	return 0;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "quiet";
	int number = argc > 2 ? atoi(argv[2]) : 0, status;
	pid_t pid;

	if (!strcmp(name, "bomb") || !strcmp(name, "orphans")) {
		for (int i = 0; i < number; i++)
			if (!fork()) {
				touch(20);
				_exit(0);
			}
		while (*name == 'b' && wait(NULL) > 0)
			;
	} else if (!strcmp(name, "alone")) {
		for (int i = 0; i < number; i++)
			if (!fork())
				syscall(SYS_exit, 0); /* not exit_group(2) */
		while (wait(NULL) > 0)
			;
		syscall(SYS_exit, 0);
	} else if (!strcmp(name, "nested")) {
		if (number && !fork()) {
			char next[16];

			snprintf(next, sizeof(next), "%d", number - 1);
			execl(argv[0], argv[0], "nested", next, (char *)NULL);
		}
		while (wait(NULL) > 0)
			;
	} else if (!strcmp(name, "chain") && number) {
		char next[16];

		snprintf(next, sizeof(next), "%d", number - 1);
		execl(argv[0], argv[0], "chain", next, (char *)NULL);
	} else if (!strcmp(name, "threads-first")) {
		threads(quick, NULL, 8, 1);
		touch(300);
	} else if (!strcmp(name, "leader-first")) {
		threads(late, NULL, 3, 0);
		pthread_exit(NULL);
	} else if (!strcmp(name, "thread-again")) {
		FILE *last;

		threads(notes, NULL, 1, 1);
		usleep(50000);
		if ((last = fopen("/proc/sys/kernel/ns_last_pid", "w"))) {
			fprintf(last, "%d", first - 1);
			fclose(last);
		}
		threads(again, NULL, 1, 0);
		pthread_exit(NULL);
	} else if (!strcmp(name, "group-exit")) {
		threads(endless, NULL, 8, 0);
		threads(exits, NULL, 1, 1);
	} else if (!strcmp(name, "exit-at-once")) {
		threads(endless, NULL, 3, 0);
		_exit(0);
	} else if (!strcmp(name, "exec-by-thread")) {
		threads(endless, NULL, 3, 0);
		threads(execs, argv[0], 1, 1);
	} else if (!strcmp(name, "exec-after-leader")) {
		threads(execs, argv[0], 1, 0);
		pthread_exit(NULL);
	} else if (!strcmp(name, "vfork")) {
		if (!(pid = vfork()))
			_exit(3);
		shown("child", pid);
		waitpid(pid, &status, 0);
		return WEXITSTATUS(status);
	} else if (!strcmp(name, "vfork-exec")) {
		if (!(pid = vfork()))
			execl(argv[0], argv[0], "quiet", (char *)NULL);
		shown("child", pid);
		waitpid(pid, &status, 0);
	} else if (!strcmp(name, "vm-child-first")) {
		shown("child", pid = sharing(at_once));
		waitpid(pid, &status, 0);
		touch(200);
	} else if (!strcmp(name, "vm-child-last")) {
		shown("child", sharing(waits));
		_exit(0);
	} else if (!strcmp(name, "who")) {
		shown("effective", geteuid());
	} else if (!strcmp(name, "abort")) {
		abort();
	} else if (!strcmp(name, "tracer")) {
		if (!(pid = fork())) {
			if (ptrace(PTRACE_TRACEME, 0, 0, 0))
				_exit(1);
			raise(SIGSTOP);
			_exit(7);
		}
		waitpid(pid, &status, 0);
		if (WIFEXITED(status))
			return WEXITSTATUS(status);
		ptrace(PTRACE_CONT, pid, 0, 0);
		waitpid(pid, &status, 0);
		return WEXITSTATUS(status);
	} else if (!strcmp(name, "attacher")) {
		if (!(pid = fork()))
			for (;;)
				pause();
		usleep(20000);
		if (ptrace(PTRACE_ATTACH, pid, 0, 0) || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
			return 1;
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		return WTERMSIG(status);
	} else if (!strcmp(name, "stops")) {
		if (!(pid = fork())) {
			raise(SIGSTOP);
			usleep(300000);
			_exit(9);
		}
		if (waitpid(pid, &status, WUNTRACED) != pid || !WIFSTOPPED(status))
			return 1;
		kill(pid, SIGCONT);
		if (waitpid(pid, &status, WCONTINUED) != pid || !WIFCONTINUED(status))
			return 2;
		waitpid(pid, &status, 0);
		return WEXITSTATUS(status);
	}
	return 0;
}
