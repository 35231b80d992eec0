/* Files and programs of the guest, for setup and seal. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "builtin.h"
#include "setup.h"

#define FILE_MAX (1 << 20)
#define FIRST_READ 4096

int failures;

void fail(const char *what) {
    complain(what);
    failures++;
}

char *slurp(const char *path) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t room = fd >= 0 && !fstat(fd, &st) && st.st_size > 0 ? (size_t)st.st_size : FIRST_READ;
    if (room > FILE_MAX) room = FILE_MAX;
    char *text = calloc(1, room + 1);
    if (!text) exit(complain("memory"));
    if (fd >= 0) {
        if (read_full(fd, text, room) < 0) *text = 0;
        close(fd);
    }
    return text;
}

void replace(const char *path, const char *text, mode_t mode) {
    char beside[512];
    struct stat st;
    snprintf(beside, sizeof beside, "%s.roost", path);
    int known = !stat(path, &st);
    int fd = open(beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 && errno == EEXIST && !unlink(beside)) fd = open(beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return fail(path);
    int bad = write_all(fd, text, strlen(text));
    bad |= known && (st.st_uid || st.st_gid) && fchown(fd, st.st_uid, st.st_gid);
    bad |= fchmod(fd, known ? st.st_mode & 07777 : mode);
    bad |= close(fd) || (!bad && rename(beside, path));
    if (bad) {
        fail(path);
        unlink(beside);
    }
}

void overwrite(const char *path, const char *text, mode_t mode) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (fd < 0 || write_all(fd, text, strlen(text))) fail(path);
    if (fd >= 0) close(fd);
}

void create(const char *path, const char *text, mode_t mode) {
    if (unlink(path) && errno != ENOENT) fail(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd < 0 || write_all(fd, text, strlen(text))) fail(path);
    if (fd >= 0) close(fd);
}

void append_line(const char *path, const char *line) {
    char *old = slurp(path), *new = NULL;
    size_t length = strlen(old);
    const char *gap = length && old[length - 1] != '\n' ? "\n" : "";
    if (asprintf(&new, "%s%s%s\n", old, gap, line) < 0) exit(complain("memory"));
    replace(path, new, 0644);
    free(old);
    free(new);
}

int has_line(const char *text, const char *line) {
    size_t n = strlen(line);
    for (const char *p = text; (p = strstr(p, line)); p += n)
        if ((p == text || p[-1] == '\n') && (p[n] == '\n' || !p[n])) return 1;
    return 0;
}

int run(char *const argv[]) {
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

int is_name(const char *text, const char *more, size_t longest) {
    size_t n = 0;
    for (; text[n]; n++)
        if (!isalnum((unsigned char)text[n]) && !strchr(more, text[n])) return 0;
    return n && n <= longest && *text != '-' && *text != '.';
}

void each_entry(const char *directory, void (*act)(const char *directory, const char *name)) {
    DIR *stream = opendir(directory);
    struct dirent *entry;
    while (stream && (entry = readdir(stream)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) act(directory, entry->d_name);
    if (stream) closedir(stream);
}
