// SPDX-License-Identifier: Apache-2.0
/* Programs of the root disk, run to their end: what they print and their exit status go to the output disk. */
#define _GNU_SOURCE
#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LIMIT_SECONDS 1800 /* an emulated CPU is slow */
#define SIGN_OF_LIFE_SECONDS 20

static void onto(const char *path, int fd)
{
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);

    if (file < 0 || dup2(file, fd) < 0)
        _exit(125);
    if (file != fd)
        close(file);
}

/* The child: one argument per line of the specification. */
static void become(char *spec)
{
    static char *environment[] = {"PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8",
                                  "XDG_CACHE_HOME=/env/cache", NULL};
    char *args[64], *rest = spec, *line;
    int n = 0;

    while ((line = strsep(&rest, "\n")) && n < 63)
        if (*line)
            args[n++] = line;
    args[n] = NULL;
    onto("/dev/null", 0);
    onto("/tmp/stdout", 1);
    onto("/tmp/stderr", 2);
    setsid();
    if (chroot("/disk") || chdir("/"))
        _exit(126);
    execve(args[0], args, environment);
    _exit(127);
}

void run_program(const char *name, char *spec)
{
    char folder[96], line[64];
    int status = 0, seconds = 0;
    pid_t child = fork();

    if (child < 0)
        die("fork");
    if (!child)
        become(spec);
    while (waitpid(child, &status, WNOHANG) != child) {
        sleep(1);
        if (++seconds % SIGN_OF_LIFE_SECONDS == 0)
            printf("lab: %s runs for %d s\n", name, seconds);
        if (seconds == LIMIT_SECONDS)
            kill(child, SIGKILL);
    }
    snprintf(folder, sizeof(folder), "programs/%s", name);
    stream_file(folder, "stdout", "/tmp/stdout");
    stream_file(folder, "stderr", "/tmp/stderr");
    stream_member(folder, "status", line,
                  snprintf(line, sizeof(line), "%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status)));
    stream_member(folder, "seconds", line, snprintf(line, sizeof(line), "%d\n", seconds));
}
