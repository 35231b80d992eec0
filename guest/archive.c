/* archive: a tar stream of a file or directory on standard output; names are relative to its parent. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "builtin.h"
#include "tar.h"

#define OCTAL_11 077777777777ull
#define OCTAL_7 07777777u

static char name[TAR_NAME_MAX]; /* of the member being written */
static int incomplete;          /* something could not be read; said on standard error, and in the exit code */
static char copy[64 << 10];

static void miss(void) {
    complain(name);
    incomplete = 1;
}

static int pad(uint64_t size) {
    static const char zeros[TAR_BLOCK];
    return write_all(1, zeros, (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK);
}

static void put_octal(char *field, size_t width, uint64_t value) { snprintf(field, width, "%0*llo", (int)width - 1, (unsigned long long)value); }

static int put_header(struct tar_header *h, char type, uint64_t size, const struct stat *st) {
    h->type = type;
    put_octal(h->mode, sizeof h->mode, st->st_mode & 07777);
    put_octal(h->uid, sizeof h->uid, st->st_uid <= OCTAL_7 ? st->st_uid : 0);
    put_octal(h->gid, sizeof h->gid, st->st_gid <= OCTAL_7 ? st->st_gid : 0);
    put_octal(h->size, sizeof h->size, size <= OCTAL_11 ? size : 0);
    put_octal(h->mtime, sizeof h->mtime, st->st_mtime > 0 ? (uint64_t)st->st_mtime & OCTAL_11 : 0);
    memcpy(h->magic, "ustar", 6);
    memcpy(h->version, "00", 2);
    snprintf(h->checksum, sizeof h->checksum, "%06o", tar_checksum(h));
    h->checksum[7] = ' ';
    return write_all(1, h, sizeof *h);
}

/* One pax record: its own length in decimal, key, value. */
static size_t put_record(char *at, const char *key, const char *value) {
    size_t body = strlen(key) + strlen(value) + 3, length = body + 1;
    char digits[24];
    while ((size_t)snprintf(digits, sizeof digits, "%zu", length) + body != length) length = body + strlen(digits);
    return (size_t)sprintf(at, "%s %s=%s\n", digits, key, value);
}

/* What ustar cannot hold goes in front as pax records. */
static int put_records(const char *link, uint64_t size, const struct stat *st) {
    static char records[2 * TAR_NAME_MAX + 256];
    char number[48];
    size_t used = 0;
    if (strlen(name) > sizeof((struct tar_header *)0)->name) used += put_record(records + used, "path", name);
    if (strlen(link) > sizeof((struct tar_header *)0)->link) used += put_record(records + used, "linkpath", link);
    if (size > OCTAL_11) {
        snprintf(number, sizeof number, "%llu", (unsigned long long)size);
        used += put_record(records + used, "size", number);
    }
    if (st->st_mtim.tv_nsec) {
        snprintf(number, sizeof number, "%lld.%09ld", (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
        used += put_record(records + used, "mtime", number);
    }
    if (!used) return 0;
    struct tar_header h = {.name = "pax"};
    return put_header(&h, 'x', used, st) || write_all(1, records, used) || pad(used);
}

static int put_member(char type, const char *link, uint64_t size, const struct stat *st) {
    struct tar_header h = {.type = 0};
    if (put_records(link, size, st)) return -1;
    memcpy(h.name, name, strnlen(name, sizeof h.name));
    memcpy(h.link, link, strnlen(link, sizeof h.link));
    if (type == '3' || type == '4') {
        put_octal(h.major, sizeof h.major, major(st->st_rdev));
        put_octal(h.minor, sizeof h.minor, minor(st->st_rdev));
    }
    return put_header(&h, type, size, st);
}

/* A file may shrink while we read it (the rest is zeros, and we say so) or grow (the rest is left out). */
static int put_content(int fd, uint64_t size) {
    uint64_t left = size;
    while (left) {
        ssize_t n = read(fd, copy, left < sizeof copy ? left : sizeof copy);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            if (!n) errno = ESTALE;
            miss();
            break;
        }
        if (write_all(1, copy, (size_t)n)) return -1;
        left -= (uint64_t)n;
    }
    memset(copy, 0, sizeof copy);
    for (; left; left -= left < sizeof copy ? left : sizeof copy)
        if (write_all(1, copy, left < sizeof copy ? left : sizeof copy)) return -1;
    return pad(size);
}

static int put_entry(int directory, const char *entry);

static int put_children(int fd) {
    DIR *stream = fdopendir(fd);
    size_t base = strlen(name);
    struct dirent *child;
    int result = 0;
    if (!stream) {
        miss();
        close(fd);
        return 0;
    }
    while (!result && (child = readdir(stream))) {
        if (!strcmp(child->d_name, ".") || !strcmp(child->d_name, "..")) continue;
        int n = snprintf(name + base, sizeof name - base, "%s", child->d_name);
        if (base + (size_t)n + 2 > sizeof name) {
            errno = ENAMETOOLONG;
            miss();
        } else result = put_entry(dirfd(stream), child->d_name);
        name[base] = 0;
    }
    closedir(stream);
    return result;
}

static int put_directory(int directory, const char *entry, const struct stat *st) {
    int fd = openat(directory, entry, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) miss();
    strcat(name, "/");
    if (put_member('5', "", 0, st)) return -1;
    return fd < 0 ? 0 : put_children(fd);
}

static int put_file(int directory, const char *entry) {
    struct stat st;
    int fd = openat(directory, entry, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        miss();
        if (fd >= 0) close(fd);
        return 0;
    }
    int result = put_member('0', "", (uint64_t)st.st_size, &st) || put_content(fd, (uint64_t)st.st_size) ? -1 : 0;
    close(fd);
    return result;
}

static int put_link(int directory, const char *entry, const struct stat *st) {
    char target[TAR_NAME_MAX];
    ssize_t n = readlinkat(directory, entry, target, sizeof target - 1);
    if (n < 0) return miss(), 0;
    target[n] = 0;
    return put_member('2', target, 0, st);
}

static int put_entry(int directory, const char *entry) {
    struct stat st;
    if (fstatat(directory, entry, &st, AT_SYMLINK_NOFOLLOW)) return miss(), 0;
    switch (st.st_mode & S_IFMT) {
    case S_IFDIR: return put_directory(directory, entry, &st);
    case S_IFREG: return put_file(directory, entry);
    case S_IFLNK: return put_link(directory, entry, &st);
    case S_IFIFO: return put_member('6', "", 0, &st);
    case S_IFCHR: return put_member('3', "", 0, &st);
    case S_IFBLK: return put_member('4', "", 0, &st);
    default: return 0; /* a socket is no file to copy */
    }
}

int archive_main(const char *path) {
    static char parent[TAR_NAME_MAX];
    struct rlimit files;
    size_t length = strlen(path);
    if (!length || length + 2 > sizeof parent) return errno = ENAMETOOLONG, complain(path);
    memcpy(parent, path, length + 1);
    while (length > 1 && parent[length - 1] == '/') parent[--length] = 0;
    char *slash = strrchr(parent, '/'), *entry = slash ? slash + 1 : parent;
    snprintf(name, sizeof name, "%s", *entry ? entry : ".");
    if (slash) *slash = 0;
    if (!getrlimit(RLIMIT_NOFILE, &files)) files.rlim_cur = files.rlim_max, setrlimit(RLIMIT_NOFILE, &files);
    int directory = open(!slash ? "." : slash == parent ? "/" : parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct stat st;
    if (directory < 0 || fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW)) {
        int absent = errno == ENOENT || errno == ENOTDIR;
        complain(path);
        return absent ? EXIT_ABSENT : 1;
    }
    char first[NAME_MAX + 1];
    snprintf(first, sizeof first, "%s", name);
    static const char end[2 * TAR_BLOCK];
    return put_entry(directory, first) || write_all(1, end, sizeof end) || incomplete;
}
