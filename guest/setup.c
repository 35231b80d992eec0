/* setup: gives a machine its identity on the first boot (and a clone its own), from lines on standard input:

     hostname NAME | machine-id HEX | clock SECONDS | key SSH-KEY | user NAME 0|1 | user-key NAME SSH-KEY | grow-root

   What cannot be done is said on standard error and does not keep the rest from being done. Done once for each machine-id. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "builtin.h"

#define INPUT_MAX (256 << 10)
#define FILE_MAX (1 << 20)
#define MARK "/var/lib/roost/setup"
#define FIRST_UID 1000
#define LAST_UID 59999

static int failures;

static void fail(const char *what) {
    complain(what);
    failures++;
}

/* ---- files ---- */

/* The whole file, "" when there is none; the caller frees it. */
static char *slurp(const char *path) {
    char *text = calloc(1, FILE_MAX + 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (text && read_full(fd, text, FILE_MAX) < 0) *text = 0;
        close(fd);
    }
    if (!text) exit(complain("memory"));
    return text;
}

/* Written beside and renamed: nobody ever sees half of /etc/passwd. An existing file keeps its mode and owner. */
static void replace(const char *path, const char *text, mode_t mode) {
    char beside[512];
    struct stat st;
    snprintf(beside, sizeof beside, "%s.roost", path);
    unlink(beside);
    int known = !stat(path, &st);
    int fd = open(beside, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return fail(path);
    int bad = write_all(fd, text, strlen(text));
    bad |= known && fchown(fd, st.st_uid, st.st_gid);
    bad |= fchmod(fd, known ? st.st_mode & 07777 : mode);
    bad |= close(fd) || (!bad && rename(beside, path));
    if (bad) {
        fail(path);
        unlink(beside);
    }
}

static void append_line(const char *path, const char *line) {
    char *old = slurp(path), *new = NULL;
    size_t length = strlen(old);
    const char *gap = length && old[length - 1] != '\n' ? "\n" : "";
    if (asprintf(&new, "%s%s%s\n", old, gap, line) < 0) exit(complain("memory"));
    replace(path, new, 0644);
    free(old);
    free(new);
}

static int has_line(const char *text, const char *line) {
    size_t n = strlen(line);
    for (const char *p = text; (p = strstr(p, line)); p += n)
        if ((p == text || p[-1] == '\n') && (p[n] == '\n' || !p[n])) return 1;
    return 0;
}

static int run(char *const argv[]) {
    int status;
    pid_t pid = vfork();
    if (!pid) {
        dup2(2, 1);
        execvp(argv[0], argv);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* ---- identity ---- */

static int is_name(const char *text, const char *more, size_t longest) {
    size_t n = 0;
    for (; text[n]; n++)
        if (!isalnum((unsigned char)text[n]) && !strchr(more, text[n])) return 0;
    return n && n <= longest && *text != '-' && *text != '.';
}

static void set_hostname(const char *name) {
    char line[160], *hosts = slurp("/etc/hosts"), *kept = calloc(1, strlen(hosts) + sizeof line + 2);
    if (!kept || !is_name(name, "-.", 63)) return errno = EINVAL, fail("hostname");
    if (sethostname(name, strlen(name))) fail("sethostname");
    snprintf(line, sizeof line, "%s\n", name);
    replace("/etc/hostname", line, 0644);
    for (char *p = strtok(hosts, "\n"); p; p = strtok(NULL, "\n"))
        if (strncmp(p, "127.0.1.1", 9)) strcat(strcat(kept, p), "\n");
    if (!strstr(kept, "127.0.0.1")) strcat(kept, "127.0.0.1 localhost\n");
    snprintf(line, sizeof line, "127.0.1.1 %s\n", name);
    char *new = NULL;
    if (asprintf(&new, "%s%s", kept, line) > 0) replace("/etc/hosts", new, 0644);
    free(new);
    free(kept);
    free(hosts);
}

/* In place: systemd may have bound a file over it. */
static void set_machine_id(const char *id) {
    char line[40];
    if (strlen(id) != 32 || strspn(id, "0123456789abcdef") != 32) return errno = EINVAL, fail("machine-id");
    snprintf(line, sizeof line, "%s\n", id);
    int fd = open("/etc/machine-id", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);
    if (fd < 0 || write_all(fd, line, strlen(line))) fail("/etc/machine-id");
    if (fd >= 0) close(fd);
    struct stat st;
    if (!lstat("/var/lib/dbus/machine-id", &st) && S_ISREG(st.st_mode)) replace("/var/lib/dbus/machine-id", line, 0444);
}

static void set_clock(const char *seconds) {
    struct timespec now, wanted;
    char *end;
    wanted.tv_sec = strtoll(seconds, &end, 10);
    wanted.tv_nsec = *end == '.' ? (long)(strtod(end, NULL) * 1e9) : 0;
    clock_gettime(CLOCK_REALTIME, &now);
    if (wanted.tv_sec <= 0 || (now.tv_sec == wanted.tv_sec && labs(now.tv_nsec - wanted.tv_nsec) < 500000000)) return;
    if (clock_settime(CLOCK_REALTIME, &wanted)) fail("clock");
}

/* ---- users ---- */

static void add_key(const char *user, const char *key) {
    char path[512];
    struct passwd *entry = getpwnam(user);
    if (!entry) return errno = ENOENT, fail(user);
    snprintf(path, sizeof path, "%s/.ssh", entry->pw_dir);
    if (mkdir(entry->pw_dir, 0700) && errno != EEXIST) return fail(entry->pw_dir);
    if (!mkdir(path, 0700) && chown(path, entry->pw_uid, entry->pw_gid)) return fail(path);
    uid_t uid = entry->pw_uid;
    gid_t gid = entry->pw_gid;
    strcat(path, "/authorized_keys");
    char *old = slurp(path);
    if (!has_line(old, key)) {
        int fresh = access(path, F_OK);
        append_line(path, key);
        if (fresh && (lchown(path, uid, gid) || chmod(path, 0600))) fail(path);
    }
    free(old);
}

static void copy_skeleton(const char *home, uid_t uid, gid_t gid) {
    DIR *skeleton = opendir("/etc/skel");
    struct dirent *entry;
    struct stat st;
    while (skeleton && (entry = readdir(skeleton))) {
        char from[300], to[512];
        snprintf(from, sizeof from, "/etc/skel/%s", entry->d_name);
        snprintf(to, sizeof to, "%s/%s", home, entry->d_name);
        if (lstat(from, &st) || !S_ISREG(st.st_mode)) continue;
        char *text = slurp(from);
        replace(to, text, 0644);
        free(text);
        if (lchown(to, uid, gid)) fail(to);
    }
    if (skeleton) closedir(skeleton);
}

static uid_t free_uid(void) {
    uid_t uid = FIRST_UID;
    for (struct passwd *entry = (setpwent(), getpwent()); entry; entry = getpwent())
        if (entry->pw_uid >= uid && entry->pw_uid <= LAST_UID) uid = entry->pw_uid + 1;
    endpwent();
    return uid;
}

/* "*", not "!": sshd without PAM takes "!" for a locked account, and refuses its keys too. */
static void create_user(const char *name) {
    char line[512], home[128];
    uid_t uid = free_uid();
    snprintf(home, sizeof home, "/home/%s", name);
    snprintf(line, sizeof line, "%s:x:%u:", name, uid);
    append_line("/etc/group", line);
    snprintf(line, sizeof line, "%s:!::", name);
    if (!access("/etc/gshadow", F_OK)) append_line("/etc/gshadow", line);
    snprintf(line, sizeof line, "%s:x:%u:%u::%s:%s", name, uid, uid, home, access("/bin/bash", X_OK) ? "/bin/sh" : "/bin/bash");
    append_line("/etc/passwd", line);
    snprintf(line, sizeof line, "%s:*:%lld:0:99999:7:::", name, (long long)time(NULL) / 86400);
    if (access("/etc/shadow", F_OK)) replace("/etc/shadow", "", 0600);
    append_line("/etc/shadow", line);
    mkdir("/home", 0755);
    if (mkdir(home, 0755) && errno != EEXIST) return fail(home);
    copy_skeleton(home, uid, uid);
    if (lchown(home, uid, uid)) fail(home);
}

static void set_user(char *rest) {
    char path[160], line[128], *name = strsep(&rest, " ");
    if (!is_name(name, "-_", 32)) return errno = EINVAL, fail("user");
    if (!getpwnam(name)) create_user(name);
    if (!rest || strcmp(rest, "1") || access("/etc/sudoers.d", F_OK)) return;
    snprintf(path, sizeof path, "/etc/sudoers.d/90-roost-%s", name);
    snprintf(line, sizeof line, "%s ALL=(ALL) NOPASSWD:ALL\n", name);
    replace(path, line, 0440);
}

/* ---- host keys, disk ---- */

/* Not `ssh-keygen -A`: it would spend seconds (in emulation, a minute) on an RSA key that nobody needs. */
static void make_host_keys(int renew) {
    static const char *const types[] = {"ed25519", "ecdsa", "rsa"};
    char path[64], public[72];
    int there = 0;
    if (access("/etc/ssh/sshd_config", F_OK)) return;
    /* At the first boot of an image of ours its own unit makes them before ssh starts, and nobody has to wait for that here. */
    if (!renew && !access("/etc/systemd/system/roost-ssh-keys.service", F_OK)) return;
    for (unsigned i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "/etc/ssh/ssh_host_%s_key", types[i]);
        snprintf(public, sizeof public, "%s.pub", path);
        if (renew) unlink(path), unlink(public);
        else there |= !access(path, F_OK);
    }
    for (unsigned i = 0; i < 2 && !there; i++) {
        snprintf(path, sizeof path, "/etc/ssh/ssh_host_%s_key", types[i]);
        char *argv[] = {"ssh-keygen", "-q", "-N", "", "-t", (char *)types[i], "-f", path, NULL};
        if (run(argv) && access(path, F_OK)) fail("ssh-keygen"); /* a unit of the image may have been faster */
    }
}

static long long sysfs(const char *path) {
    char *text = slurp(path);
    long long value = *text ? atoll(text) : -1;
    free(text);
    return value;
}

static char *last_part(char *path) { return strrchr(path, '/') ? strrchr(path, '/') + 1 : path; }

static int grow_partition(const char *device, char *disk, long long number) {
    char disk_path[300], digits[24], command[512];
    snprintf(disk_path, sizeof disk_path, "/dev/%s", disk);
    snprintf(digits, sizeof digits, "%lld", number);
    char *growpart[] = {"growpart", disk_path, digits, NULL};
    if (!run(growpart)) return 0;
    snprintf(command, sizeof command, "echo ', +' | sfdisk -q --no-reread --force -N %s %s && partx -u %s", digits, disk_path, device);
    char *sfdisk[] = {"sh", "-c", command, NULL};
    return run(sfdisk);
}

/* The partition is grown when the disk is more than 2 MiB longer, the file system when it lacks more than an eighth of its device. */
static void grow_root(void) {
    struct stat st;
    struct statvfs fs;
    char link[64], path[512] = "", device[300], disk[256];
    if (stat("/", &st) || statvfs("/", &fs)) return fail("/");
    snprintf(link, sizeof link, "/sys/dev/block/%u:%u", major(st.st_dev), minor(st.st_dev));
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return fail("the root file system is not on a disk");
    path[n] = 0;
    snprintf(device, sizeof device, "/dev/%s", last_part(path));
    char file[128];
    snprintf(file, sizeof file, "%s/partition", link);
    long long number = sysfs(file), size, start, whole;
    if (number > 0) {
        *strrchr(path, '/') = 0;
        snprintf(disk, sizeof disk, "%s", last_part(path));
        snprintf(file, sizeof file, "%s/start", link), start = sysfs(file);
        snprintf(file, sizeof file, "%s/size", link), size = sysfs(file);
        snprintf(file, sizeof file, "%s/../size", link), whole = sysfs(file);
        if (whole - start - size > 4096 && grow_partition(device, disk, number)) fail(device);
    }
    snprintf(file, sizeof file, "%s/size", link), size = sysfs(file);
    long long bytes = (long long)fs.f_blocks * (long long)fs.f_frsize;
    if (size * 512 - bytes < size * 512 / 8) return;
    char *resize[] = {"resize2fs", device, NULL}, *xfs[] = {"xfs_growfs", "/", NULL}, *btrfs[] = {"btrfs", "filesystem", "resize", "max", "/", NULL};
    if (run(resize) && run(xfs) && run(btrfs)) fail("growing the root file system");
}

/* ---- */

static void apply(char *line) {
    char *rest = line, *word = strsep(&rest, " ");
    if (!rest) rest = "";
    if (!strcmp(word, "hostname")) set_hostname(rest);
    else if (!strcmp(word, "machine-id")) set_machine_id(rest);
    else if (!strcmp(word, "key")) add_key("root", rest);
    else if (!strcmp(word, "user")) set_user(rest);
    else if (!strcmp(word, "user-key")) {
        char *name = strsep(&rest, " ");
        if (rest) add_key(name, rest);
    } else if (!strcmp(word, "grow-root")) grow_root();
    else if (strcmp(word, "clock")) errno = EINVAL, fail(word);
}

/* The machine-id of the setup that was done before, "" for none. */
static char *done_before(void) {
    char *mark = slurp(MARK);
    mark[strcspn(mark, "\n")] = 0;
    return mark;
}

int setup_main(void) {
    static char input[INPUT_MAX + 1], line[INPUT_MAX + 1];
    char id[40] = "", *cursor, *one;
    if (read_full(0, input, INPUT_MAX) < 0) return 1;
    memcpy(line, input, sizeof line);
    for (cursor = line; (one = strsep(&cursor, "\n"));) {
        if (!strncmp(one, "clock ", 6)) set_clock(one + 6);
        if (!strncmp(one, "machine-id ", 11)) snprintf(id, sizeof id, "%.32s", one + 11);
    }
    char *before = done_before();
    if (*before && !strcmp(before, id)) return 0;
    for (cursor = input; (one = strsep(&cursor, "\n"));)
        if (*one) apply(one);
    make_host_keys(*before != 0);
    if (failures) return 1;
    sync(); /* the mark must not outlive what it stands for */
    mkdir("/var", 0755);
    mkdir("/var/lib", 0755);
    mkdir("/var/lib/roost", 0755);
    snprintf(line, sizeof line, "%s\n", id);
    replace(MARK, line, 0644);
    return failures != 0;
}
