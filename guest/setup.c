/* setup: gives a machine its identity on the first boot (and a copy its own), from lines on standard input:

     entropy HEX | clock SECONDS | machine-id HEX | host-key KIND BASE64-OF-PRIVATE PUBLIC-LINE | hostname NAME
     link OLD-MAC NEW-MAC | card|plugged MAC MTU ADDRESSES GATEWAYS RESOLVERS DOMAIN | key SSH-KEY | user NAME 0|1 | user-key NAME SSH-KEY | grow-root

   What cannot be done is said on standard error and does not keep the rest from being done. Done once for each machine-id, but
   entropy, clock and cards every time. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "builtin.h"
#include "setup.h"

#define INPUT_MAX (256 << 10)
#define FIRST_UID 1000
#define LAST_UID 59999

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

/* ---- disk ---- */

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

/* The partition is grown when the disk is more than 2 MiB longer, the file system when it lacks more than an eighth of its device.
   1: there is something to grow, which is not done when only asked for. */
static int grow_root(int only_ask) {
    struct stat st;
    struct statvfs fs;
    char link[64], path[512] = "", device[300], disk[256];
    if (stat("/", &st) || statvfs("/", &fs)) return fail("/"), 0;
    snprintf(link, sizeof link, "/sys/dev/block/%u:%u", major(st.st_dev), minor(st.st_dev));
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return fail("the root file system is not on a disk"), 0;
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
        int room = whole - start - size > 4096;
        if (room && only_ask) return 1;
        if (room && grow_partition(device, disk, number)) fail(device);
    }
    snprintf(file, sizeof file, "%s/size", link), size = sysfs(file);
    long long bytes = (long long)fs.f_blocks * (long long)fs.f_frsize;
    if (size * 512 - bytes < size * 512 / 8) return 0;
    char *resize[] = {"resize2fs", device, NULL}, *xfs[] = {"xfs_growfs", "/", NULL}, *btrfs[] = {"btrfs", "filesystem", "resize", "max", "/", NULL};
    if (!only_ask && run(resize) && run(xfs) && run(btrfs)) fail("growing the root file system");
    return 1;
}

/* ---- */

static int in_agent, growth_left;

static void apply(char *line) {
    char *rest = line, *word = strsep(&rest, " ");
    if (!rest) rest = "";
    if (!strcmp(word, "hostname")) set_hostname(rest);
    else if (!strcmp(word, "machine-id")) set_machine_id(rest);
    else if (!strcmp(word, "host-key")) set_host_key(rest);
    else if (!strcmp(word, "link")) set_link(rest);
    else if (!strcmp(word, "key")) add_key("root", rest);
    else if (!strcmp(word, "user")) set_user(rest);
    else if (!strcmp(word, "user-key")) {
        char *name = strsep(&rest, " ");
        if (rest) add_key(name, rest);
    } else if (!strcmp(word, "grow-root")) growth_left = grow_root(in_agent) && in_agent;
    else if (strcmp(word, "clock") && strcmp(word, "entropy") && strcmp(word, "card") && strcmp(word, "plugged")) errno = EINVAL, fail(word);
}

/* The machine-id of the setup that was done before, "" for none. */
static char *done_before(void) {
    char *mark = slurp(SETUP_MARK);
    mark[strcspn(mark, "\n")] = 0;
    return mark;
}

/* ---- the end: that all of it will outlive a crash takes longer than that it holds ---- */

/* Only now comes the mark: a machine that crashed before is set up again. */
static void finish(const char *id) {
    char line[48];
    setpriority(PRIO_PROCESS, 0, 0);
    sync();
    mkdir("/var", 0755);
    mkdir("/var/lib", 0755);
    mkdir("/var/lib/roost", 0755);
    snprintf(line, sizeof line, "%s\n", id);
    replace(SETUP_MARK, line, 0644);
}

/* Whoever waits for this process may go on. */
static void finish_in_process(const char *id) {
    pid_t pid = fork();
    if (pid > 0) return;
    if (!pid) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        for (int i = 0; i < 3; i++) dup2(null, i);
        setsid();
    }
    finish(id);
    if (!pid) _exit(0);
}

static void *finish_and_free(void *id) {
    finish(id);
    free(id);
    return NULL;
}

static void finish_in_thread(const char *id) {
    pthread_t thread;
    pthread_attr_t attributes;
    char *copy = strdup(id);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (!copy || pthread_create(&thread, &attributes, finish_and_free, copy)) fail("thread");
    pthread_attr_destroy(&attributes);
}

/* ---- all of it ---- */

/* The value of the line that begins with `word`, in `size` bytes; "" when there is none. */
static void find_value(const char *lines, const char *word, char *value, size_t size) {
    size_t length = strlen(word);
    *value = 0;
    for (const char *p = lines; p; p = (p = strchr(p, '\n')) ? p + 1 : NULL)
        if (!strncmp(p, word, length)) snprintf(value, size, "%.*s", (int)strcspn(p + length, "\n"), p + length);
}

static void set_cards(const char *lines) {
    char card[1024];
    for (const char *p = lines; p; p = (p = strchr(p, '\n')) ? p + 1 : NULL) {
        int plugged = !strncmp(p, "plugged ", 8);
        if (!plugged && strncmp(p, "card ", 5)) continue;
        const char *words = p + (plugged ? 8 : 5);
        snprintf(card, sizeof card, "%.*s", (int)strcspn(words, "\n"), words);
        set_card(card, plugged);
    }
}

/* 1 when it was not done before, and went well. */
static int set_up(char *lines, const char *id) {
    char *before = done_before();
    int done = *before && !strcmp(before, id), copied = *before != 0;
    free(before);
    if (done) return 0;
    forget_given_keys();
    forget_random_seeds();
    forget_cloud_instance();
    for (char *one; (one = strsep(&lines, "\n"));)
        if (*one) apply(one);
    if (make_host_keys(copied)) renew_ssh_server();
    return !failures && !growth_left;
}

static void set_up_all(char *lines, void (*finisher)(const char *)) {
    char id[40], clock[40], entropy[2 * ENTROPY_MAX + 2];
    find_value(lines, "entropy ", entropy, sizeof entropy);
    find_value(lines, "clock ", clock, sizeof clock);
    find_value(lines, "machine-id ", id, sizeof id);
    if (*entropy) set_entropy(entropy);
    set_cards(lines);
    if (set_up(lines, id)) finisher(id);
    if (*clock) set_clock(clock); /* last: half the system wakes up when it changes */
}

int identify(char *lines) {
    failures = growth_left = 0;
    in_agent = 1;
    set_up_all(lines, finish_in_thread);
    return failures ? EIO : growth_left ? EINPROGRESS : 0;
}

int grow_main(const char *id) {
    grow_root(0);
    if (!failures) finish_in_process(id);
    return failures != 0;
}

int setup_main(void) {
    static char input[INPUT_MAX + 1];
    if (read_full(0, input, INPUT_MAX) < 0) return 1;
    setpriority(PRIO_PROCESS, 0, PRIORITY);
    umask(022);
    set_up_all(input, finish_in_process);
    return failures != 0;
}
