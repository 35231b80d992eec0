/* From the initramfs to the root file system on a disk. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "boot.h"

#define NEW_ROOT "/newroot"
#define WAIT_MS 60000 /* emulated disks are slow, but not this slow */
#define LOOK_MS 50    /* should an event get lost */

/* Does /sys/class/block/ENTRY/uevent say PARTNAME=label? */
static int has_label(const char *entry, const char *label) {
    char path[320], line[256];
    int found = 0;
    snprintf(path, sizeof path, "/sys/class/block/%s/uevent", entry);
    FILE *file = fopen(path, "re");
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        found = !strncmp(line, "PARTNAME=", 9) && !strcmp(line + 9, label);
    }
    if (file) fclose(file);
    return found;
}

static int find_device(const char *wanted, char *path, size_t size) {
    if (strncmp(wanted, "PARTLABEL=", 10)) {
        snprintf(path, size, "%s", wanted);
        return !access(path, F_OK);
    }
    DIR *blocks = opendir("/sys/class/block");
    struct dirent *entry;
    int found = 0;
    while (blocks && !found && (entry = readdir(blocks)))
        if ((found = has_label(entry->d_name, wanted + 10))) snprintf(path, size, "/dev/%s", entry->d_name);
    if (blocks) closedir(blocks);
    return found && !access(path, F_OK);
}

static int wait_for_device(const char *wanted, char *path, size_t size) {
    uint64_t end = now_ms() + WAIT_MS;
    struct pollfd events = {open_uevents(), POLLIN, 0};
    int found;
    while (!(found = find_device(wanted, path, size)) && now_ms() < end) {
        poll(&events, 1, LOOK_MS);
        if (events.revents) drain_uevents(events.fd);
    }
    if (events.fd >= 0) close(events.fd);
    return found;
}

/* The initramfs is memory that nobody can reach any more. */
static void remove_all(int fd, dev_t device) {
    DIR *directory = fdopendir(fd);
    struct dirent *entry;
    struct stat st;
    while (directory && (entry = readdir(directory))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (fstatat(dirfd(directory), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) || st.st_dev != device) continue;
        if (S_ISDIR(st.st_mode)) {
            int child = openat(dirfd(directory), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (child >= 0) remove_all(child, device);
        }
        unlinkat(dirfd(directory), entry->d_name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0);
    }
    if (directory) closedir(directory);
}

static void move_mounts(void) {
    static const char *const mounts[][2] = {
        {"/dev", NEW_ROOT "/dev"}, {"/proc", NEW_ROOT "/proc"}, {"/sys", NEW_ROOT "/sys"}, {"/run", NEW_ROOT "/run"}};
    umount("/dev/pts"); /* systemd mounts its own */
    for (unsigned i = 0; i < 4; i++) {
        mkdir(mounts[i][1], 0755);
        if (mount(mounts[i][0], mounts[i][1], NULL, MS_MOVE, NULL)) warn(mounts[i][1]);
    }
}

void switch_root(const char *wanted, char **argv) {
    char name[256], device[300];
    struct stat st;
    snprintf(name, sizeof name, "%s", wanted);
    if (!wait_for_device(name, device, sizeof device)) {
        errno = ENODEV;
        return warn(name);
    }
    mkdir(NEW_ROOT, 0755);
    if (mount(device, NEW_ROOT, "ext4", MS_NOATIME, NULL)) return warn(device);
    if (access(NEW_ROOT "/sbin/init", F_OK) && errno != ELOOP) {
        struct stat link;
        if (lstat(NEW_ROOT "/sbin/init", &link)) return warn(NEW_ROOT "/sbin/init");
    }
    int old = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    move_mounts();
    if (chdir(NEW_ROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/")) return warn("switching to " NEW_ROOT);
    if (old >= 0 && !fstat(old, &st)) remove_all(old, st.st_dev);
    argv[0] = "/sbin/init";
    execv(argv[0], argv);
    warn("/sbin/init");
    _exit(1); /* the kernel panics, and the hypervisor sees it */
}
