/*
 * holder: keeps the user and network namespace of one virtual network; it makes them, and then does nothing but wait.
 *
 * Usage: holder NAME GATE [USER NET], where GATE is a stream socket and NAME only shows in the list of processes. With
 * USER and NET (descriptors of namespaces) it enters those instead of making new ones.
 *
 * It writes "m" when it is in its namespaces, and waits for a byte: by then a new user namespace has its maps. It takes
 * the uid 0 of that namespace, gives up every capability, writes "r", and waits for one more byte. Until that has come it
 * ends when the gate closes: whoever asked for the namespaces is gone and has recorded nothing. From then on it only
 * reads from a pipe that nobody writes to, and the kernel lets it do no more than that (seccomp, strict mode). "e" and a
 * text say what failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int gate;

static void fail(const char *what)
{
    const char *why = strerror(errno);
    (void)!write(gate, "e", 1);
    (void)!write(gate, what, strlen(what));
    (void)!write(gate, ": ", 2);
    (void)!write(gate, why, strlen(why));
    _exit(1);
}

static void await(void)
{
    char byte;
    ssize_t got;
    do
        got = read(gate, &byte, 1);
    while (got < 0 && errno == EINTR);
    if (got <= 0)
        _exit(1); /* nobody wants it any more */
}

static void enter(char **names)
{
    if (geteuid() == 0 && setgroups(0, NULL) < 0)
        fail("no groups");
    if (names[0] == NULL) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0)
            fail("new namespaces");
    } else if (setns(atoi(names[0]), CLONE_NEWUSER) < 0 || setns(atoi(names[1]), CLONE_NEWNET) < 0) {
        fail("old namespaces");
    }
}

static void become(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2];
    memset(none, 0, sizeof none);
    if (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
        fail("another user");
    if (syscall(SYS_capset, &header, none) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        fail("no capabilities");
}

int main(int argc, char **argv)
{
    int ends[2];
    char byte;
    if (argc != 3 && argc != 5)
        return 2;
    gate = atoi(argv[2]);
    enter(argv + 3);
    (void)!write(gate, "m", 1);
    await();
    become();
    if (chdir("/") < 0 || pipe2(ends, O_CLOEXEC) < 0)
        fail("a pipe");
    (void)!write(gate, "r", 1);
    await();
    /* The reading end becomes 0, the writing end 1: nothing else stays open. */
    if (dup2(ends[0], 0) < 0 || dup2(ends[1], 1) < 0 || syscall(SYS_close_range, 2, ~0U, 0) < 0)
        return 1;
    if (prctl(PR_SET_SECCOMP, 1, 0, 0, 0) < 0)
        return 1;
    for (;;)
        (void)!read(0, &byte, 1);
}
