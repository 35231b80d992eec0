/* extract: unpacks a tar stream from standard input into a directory, and never writes outside of it: every path is walked below an open
   descriptor of that directory, where a symbolic link can lead nowhere else. Ownership is not taken over: files belong to whoever extracts. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "builtin.h"
#include "tar.h"

struct member {
    char name[TAR_NAME_MAX], link[TAR_NAME_MAX];
    char type;
    mode_t mode;
    uint64_t size;
    struct timespec mtime;
    int has_name, has_link, has_size, has_mtime; /* set by records in front of the header */
};

struct directory { /* mode and time are set last: a directory may be read-only, and filling it changes its time */
    struct directory *next;
    mode_t mode;
    struct timespec mtime;
    char name[];
};

static struct member member;
static struct directory *directories;
static int root, incomplete;
static uint64_t resolve_how;
static char copy[64 << 10];

static void miss(const char *why) {
    dprintf(2, "%s: %s\n", member.name, why);
    incomplete = 1;
}

/* ---- paths ---- */

/* Kernels before 5.6: by hand, and then no symbolic link at all is followed. */
static int walk(const char *path) {
    char part[256];
    int fd = fcntl(root, F_DUPFD_CLOEXEC, 3);
    while (fd >= 0 && *path) {
        size_t n = strcspn(path, "/");
        if (n >= sizeof part) return close(fd), errno = ENAMETOOLONG, -1;
        memcpy(part, path, n);
        part[n] = 0;
        path += n + (path[n] == '/');
        int next = n ? openat(fd, part, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : fcntl(fd, F_DUPFD_CLOEXEC, 3);
        close(fd);
        fd = next;
    }
    return fd;
}

static int open_directory(const char *path) {
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = resolve_how | RESOLVE_NO_MAGICLINKS};
    if (!*path) path = ".";
    int fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
    return fd < 0 && errno == ENOSYS ? walk(strcmp(path, ".") ? path : "") : fd;
}

/* The directory that is to hold `path`, made when missing, and the last part of the name in `leaf`. */
static int open_parent(char *path, const char **leaf) {
    char *slash = strrchr(path, '/');
    *leaf = slash ? slash + 1 : path;
    if (!slash) return open_directory("");
    *slash = 0;
    int fd = open_directory(path);
    if (fd < 0 && errno == ENOENT) {
        const char *name;
        int above = open_parent(path, &name);
        if (above >= 0) {
            mkdirat(above, name, 0755);
            close(above);
            fd = open_directory(path);
        }
    }
    *slash = '/';
    return fd;
}

/* Strips "/" and "." parts; refuses "..". The result is "" for the destination itself. */
static int normalise(char *path) {
    char *to = path;
    for (char *from = path; *from;) {
        size_t n = strcspn(from, "/");
        if (n == 2 && !memcmp(from, "..", 2)) return -1;
        if (n && !(n == 1 && *from == '.')) {
            if (to != path) *to++ = '/';
            memmove(to, from, n);
            to += n;
        }
        from += n + strspn(from + n, "/");
    }
    *to = 0;
    return 0;
}

/* ---- reading the stream ---- */

static int cut_short(void) {
    dprintf(2, "the archive ends in the middle\n");
    return -1;
}

static int skip(uint64_t size) {
    for (uint64_t left = (size + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK; left;) {
        size_t n = left < sizeof copy ? (size_t)left : sizeof copy;
        if (read_full(0, copy, n) != (ssize_t)n) return cut_short();
        left -= n;
    }
    return 0;
}

/* Octal, or base 256 when the first bit is set (GNU, for sizes from 8 GiB). */
static uint64_t number(const char *field, size_t width) {
    uint64_t value = 0;
    if (*field & 0x80) {
        for (size_t i = width - 8; i < width; i++) value = value << 8 | (uint8_t)field[i];
        return value & INT64_MAX;
    }
    for (size_t i = 0; i < width && field[i]; i++)
        if (field[i] >= '0' && field[i] <= '7') value = (value << 3 | (uint64_t)(field[i] - '0')) & INT64_MAX;
    return value;
}

static void set_string(char *to, int *has, const char *from, size_t length) {
    if (length >= TAR_NAME_MAX) length = TAR_NAME_MAX - 1;
    memcpy(to, from, length);
    to[length] = 0;
    *has = 1;
}

static void set_record(const char *key, size_t key_length, const char *value, size_t length) {
    char text[64];
    snprintf(text, sizeof text, "%.*s", (int)(length < 63 ? length : 63), value);
    if (key_length == 4 && !memcmp(key, "path", 4)) set_string(member.name, &member.has_name, value, length);
    if (key_length == 8 && !memcmp(key, "linkpath", 8)) set_string(member.link, &member.has_link, value, length);
    if (key_length == 4 && !memcmp(key, "size", 4)) member.size = strtoull(text, NULL, 10) & INT64_MAX, member.has_size = 1;
    if (key_length == 5 && !memcmp(key, "mtime", 5)) {
        char *end, digits[10] = "000000000";
        member.mtime.tv_sec = strtoll(text, &end, 10);
        if (*end == '.') memcpy(digits, end + 1, strspn(end + 1, "0123456789") < 9 ? strspn(end + 1, "0123456789") : 9);
        member.mtime.tv_nsec = atol(digits);
        member.has_mtime = 1;
    }
}

static void parse_records(const char *p, size_t length) {
    const char *end = p + length;
    while (p < end) {
        char *after;
        unsigned long size = strtoul(p, &after, 10);
        const char *key = after + 1, *equals;
        if (after == p || *after != ' ' || size < 5 || size > (size_t)(end - p) || key >= p + size) return;
        equals = memchr(key, '=', (size_t)(p + size - key));
        if (!equals) return;
        set_record(key, (size_t)(equals - key), equals + 1, (size_t)(p + size - equals - 2));
        p += size;
    }
}

/* pax records and GNU's long names are members of their own in front of the one they speak of. */
static int read_extension(char type, uint64_t size) {
    static char text[TAR_RECORDS_MAX + TAR_BLOCK + 1];
    uint64_t padded = (size + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
    if (size > TAR_RECORDS_MAX) return dprintf(2, "the archive has %llu bytes of attributes\n", (unsigned long long)size), -1;
    if (read_full(0, text, padded) != (ssize_t)padded) return cut_short();
    text[size] = 0;
    if (type == 'x') parse_records(text, size);
    if (type == 'L') set_string(member.name, &member.has_name, text, strnlen(text, size));
    if (type == 'K') set_string(member.link, &member.has_link, text, strnlen(text, size));
    return 0;
}

static void take_header(const struct tar_header *h) {
    if (!member.has_name) {
        int prefixed = !memcmp(h->magic, "ustar\0", 6) && *h->prefix;
        snprintf(member.name, sizeof member.name, "%.155s%s%.100s", prefixed ? h->prefix : "", prefixed ? "/" : "", h->name);
    }
    if (!member.has_link) snprintf(member.link, sizeof member.link, "%.100s", h->link);
    if (!member.has_size) member.size = number(h->size, sizeof h->size);
    if (!member.has_mtime) member.mtime = (struct timespec){.tv_sec = (time_t)number(h->mtime, sizeof h->mtime)};
    member.mode = number(h->mode, sizeof h->mode) & 07777;
    member.type = h->type;
}

/* 1: `member` is the next one; 0: the end; -1: no archive. */
static int next_member(void) {
    struct tar_header h;
    member.has_name = member.has_link = member.has_size = member.has_mtime = 0;
    for (;;) {
        if (read_full(0, &h, sizeof h) != sizeof h) return cut_short();
        if (tar_checksum(&h) == 8 * ' ') return 0; /* a block of zeros */
        if (number(h.checksum, sizeof h.checksum) != tar_checksum(&h)) return dprintf(2, "this is not a tar archive\n"), -1;
        if (!strchr("xgLK", h.type) || !h.type) break;
        if (read_extension(h.type, number(h.size, sizeof h.size))) return -1;
    }
    take_header(&h);
    return 1;
}

/* ---- making the members ---- */

static int make_directory(int parent, const char *leaf) {
    struct stat st;
    if (*leaf && mkdirat(parent, leaf, 0700) && errno != EEXIST) return -1;
    if (*leaf && (fstatat(parent, leaf, &st, 0) || !S_ISDIR(st.st_mode))) return errno = ENOTDIR, -1;
    size_t length = strlen(member.name) + 1;
    struct directory *d = malloc(sizeof *d + length);
    if (!d) return -1;
    *d = (struct directory){directories, member.mode, member.mtime};
    memcpy(d->name, member.name, length);
    directories = d;
    return 0;
}

/* -2 when the stream ended: then nothing can follow. */
static int make_file(int parent, const char *leaf) {
    int fd = openat(parent, leaf, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return -1;
    int failed = 0;
    for (uint64_t left = member.size; left;) {
        size_t n = left < sizeof copy ? (size_t)left : sizeof copy;
        if (read_full(0, copy, n) != (ssize_t)n) return close(fd), cut_short() - 1;
        if (!failed && write_all(fd, copy, n)) failed = 1;
        left -= n;
    }
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, member.mtime};
    if (fchmod(fd, member.mode) || futimens(fd, times)) failed = 1;
    if (close(fd) || failed) incomplete = 1;
    return (TAR_BLOCK - member.size % TAR_BLOCK) % TAR_BLOCK && read_full(0, copy, TAR_BLOCK - member.size % TAR_BLOCK) < 0 ? -2 : 0;
}

static int make_hard_link(int parent, const char *leaf) {
    const char *name;
    if (normalise(member.link) || !*member.link) return errno = EXDEV, -1;
    int from = open_parent(member.link, &name);
    if (from < 0) return -1;
    int result = linkat(from, name, parent, leaf, 0);
    close(from);
    return result;
}

static int make_other(int parent, const char *leaf) {
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, member.mtime};
    int result;
    if (member.type == '1') return make_hard_link(parent, leaf);
    if (member.type == '2') result = symlinkat(member.link, parent, leaf);
    else if (member.type == '6') result = mkfifoat(parent, leaf, member.mode);
    else return errno = EOPNOTSUPP, -1; /* devices: not ours to make */
    return result ? result : utimensat(parent, leaf, times, AT_SYMLINK_NOFOLLOW);
}

static int is_file(void) { return member.type == '0' || !member.type || member.type == '7'; }

/* What is in the way goes, unless it is a directory. 0, or -2 when the stream is broken. */
static int make_member(void) {
    const char *leaf;
    if (normalise(member.name)) {
        miss("leads out of the destination");
        return is_file() && skip(member.size) ? -2 : 0;
    }
    int parent = open_parent(member.name, &leaf), result = -1;
    int whole = *leaf || member.type == '5';
    if (parent >= 0 && !whole) errno = EISDIR;
    if (parent >= 0 && whole) {
        if (member.type != '5' && unlinkat(parent, leaf, 0) && errno != ENOENT) result = -1;
        else if (member.type == '5') result = make_directory(parent, leaf);
        else result = is_file() ? make_file(parent, leaf) : make_other(parent, leaf);
    }
    int error = errno;
    if (parent >= 0) close(parent);
    if (result == -1) miss(strerror(error));
    if (result == -1 && is_file() && skip(member.size)) return -2;
    return result == -2 ? -2 : 0;
}

static void finish_directories(void) {
    for (struct directory *d = directories; d; d = d->next) {
        char path[64];
        struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, d->mtime};
        int fd = open_directory(d->name);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (fd < 0 || chmod(path, d->mode) || utimensat(AT_FDCWD, path, times, 0)) {
            complain(d->name);
            incomplete = 1;
        }
        if (fd >= 0) close(fd);
    }
}

static int open_destination(const char *path) {
    static char made[TAR_NAME_MAX];
    if (strlen(path) >= sizeof made) return errno = ENAMETOOLONG, -1;
    strcpy(made, path);
    for (char *p = made + 1; *made && *p; p++) {
        if (*p != '/') continue;
        *p = 0;
        mkdir(made, 0755);
        *p = '/';
    }
    mkdir(made, 0755);
    return open(made, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

int extract_main(const char *path) {
    int got = 0;
    umask(0);
    if ((root = open_destination(path)) < 0) return complain(path);
    resolve_how = strspn(path, "/") == strlen(path) ? RESOLVE_IN_ROOT : RESOLVE_BENEATH;
    while ((got = next_member()) > 0)
        if (make_member()) break;
    finish_directories();
    if (got) return 1;
    while (read(0, copy, sizeof copy) > 0); /* whoever writes the padding of the last record must not meet a closed pipe */
    return incomplete;
}
