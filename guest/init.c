/* The first program of the initramfs of all templates: loads the modules the initramfs was made with, then either goes on to the root
   file system named by `roost.root=` on the kernel command line, or stays, as the whole system of a tiny machine. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "boot.h"

#define MODULE_LIST "/roost/modules"
#define AGENT_HERE '-' /* in the list of modules: those before this line suffice for the agent */

void warn(const char *what) { dprintf(2, "roost-init: %s: %s\n", what, strerror(errno)); }

uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

const char *kernel_option(const char *name) {
    static char line[4096];
    size_t length = strlen(name);
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, line, sizeof line - 1);
    if (fd >= 0) close(fd);
    line[n > 0 ? n : 0] = 0;
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n"))
        if (!strncmp(word, name, length)) return word + length;
    return NULL;
}

int open_uevents(void) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address)) warn("uevents");
    return fd;
}

/* What happened does not matter: whoever was waiting looks again. */
void drain_uevents(int fd) {
    char event[4096];
    while (recv(fd, event, sizeof event, 0) > 0 || errno == ENOBUFS);
}

static void mount_or_warn(const char *type, const char *target, unsigned long flags, const char *options) {
    mkdir(target, 0755);
    if (mount(type, target, type, flags, options) && errno != EBUSY) warn(target);
}

static void mount_all(void) {
    mount_or_warn("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
    mount_or_warn("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_or_warn("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_or_warn("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
    mount_or_warn("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666");
}

static void open_console(void) {
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    if (fd < 0) fd = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3 && fd >= 0; i++) dup2(fd, i);
    if (fd > 2) close(fd);
}

static void load_module(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)) warn(path);
    if (fd >= 0) close(fd);
}

/* Up to the line for the agent, or the end; called again it goes on behind that line. */
void load_modules(void) {
    static FILE *list;
    char line[256];
    if (!list && !(list = fopen(MODULE_LIST, "re"))) return;
    while (fgets(line, sizeof line, list)) {
        line[strcspn(line, "\n")] = 0;
        if (*line == AGENT_HERE) return;
        if (*line && *line != '#') load_module(line);
    }
}

int main(int argc, char **argv) {
    (void)argc;
    if (getpid() != 1) return dprintf(2, "roost-init is for process 1\n"), 2;
    umask(022);
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    mount_all();
    open_console();
    load_modules();
    const char *root = kernel_option("roost.root=");
    if (root) {
        load_modules();
        switch_root(root, argv);
    }
    run_tiny();
}
