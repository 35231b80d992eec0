/* What differs between the targets of probe.c: names of files in UTF-8 everywhere, binary streams, processes, sockets, threads. */
#ifndef PORTABLE_H
#define PORTABLE_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define UNSUPPORTED 65

int unsupported(const char *what);

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>
#include <direct.h>
#include <fcntl.h>
#include <io.h>
#include <process.h>
#include <shellapi.h>
#include <signal.h>
#include <sys/stat.h>

/* What has no letter in Unicode (a lone surrogate) comes back as three bytes, as Python and Java write it. */
static inline char *narrow(const wchar_t *wide)
{
    size_t length = wcslen(wide);
    char *text = calloc(length * 3 + 1, 1), *end = text;
    for (size_t i = 0; i < length; i++) {
        uint32_t c = wide[i];
        if (c >= 0xD800 && c < 0xDC00 && wide[i + 1] >= 0xDC00 && wide[i + 1] < 0xE000)
            c = 0x10000 + ((c - 0xD800) << 10) + (wide[++i] - 0xDC00u);
        if (c < 0x80) {
            *end++ = (char)c;
            continue;
        }
        int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
        *end++ = (char)((more == 1 ? 0xC0 : more == 2 ? 0xE0 : 0xF0) | c >> (6 * more));
        while (more--)
            *end++ = (char)(0x80 | (c >> (6 * more) & 0x3F));
    }
    return text;
}

static inline wchar_t *wide(const char *text)
{
    int length = MultiByteToWideChar(CP_UTF8, 0, text, -1, NULL, 0);
    wchar_t *result = calloc((size_t)length + 1, sizeof *result);
    MultiByteToWideChar(CP_UTF8, 0, text, -1, result, length);
    return result;
}

static inline FILE *open_file(const char *path, const char *mode) { return _wfopen(wide(path), wide(mode)); }
static inline int remove_file(const char *path) { return _wunlink(wide(path)); }
static inline int rename_file(const char *from, const char *to) { return _wrename(wide(from), wide(to)); }
static inline int make_directory(const char *path) { return _wmkdir(wide(path)); }
static inline int remove_directory(const char *path) { return _wrmdir(wide(path)); }
static inline void sleep_ms(long ms) { Sleep((DWORD)ms); }
#define isatty _isatty

#else

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

static inline FILE *open_file(const char *path, const char *mode) { return fopen(path, mode); }
static inline int remove_file(const char *path) { return unlink(path); }
static inline int rename_file(const char *from, const char *to) { return rename(from, to); }
static inline int make_directory(const char *path) { return mkdir(path, 0755); }
static inline int remove_directory(const char *path) { return rmdir(path); }

static inline void sleep_ms(long ms)
{
    struct timespec rest = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&rest, &rest) == -1 && errno == EINTR)
        ;
}

#if !defined(__wasi__)
#define POSIX 1
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#endif

#endif
#endif
