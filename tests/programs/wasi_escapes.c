/* Tries to get out of WASI 1 by its raw calls: past the directories it was given, past its memory, and at descriptors it never opened.

   usage: wasi_escapes all|NAME,NAME... VICTIM PORT SECRET ABSTRACT WRITE READ    one line for each: name, TAB, "held" or "escaped", TAB, why

   The words are those of escape.c; `link` in WRITE and in READ leads to the directory of SECRET, which the host made. An attempt got out when
   it read or changed something outside of the two directories, or changed something in READ, or the runtime did not notice a bad pointer. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wasi/api.h>

#pragma clang diagnostic ignored "-Wunused-result"

#define IMPORT(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))

/* As numbers, so that a pointer may lead anywhere, and a length beyond everything. */
IMPORT(path_open) int32_t raw_open(int32_t, int32_t, uint32_t, uint32_t, int32_t, int64_t, int64_t, int32_t, uint32_t);
IMPORT(path_filestat_get) int32_t raw_stat(int32_t, int32_t, uint32_t, uint32_t, uint32_t);
IMPORT(fd_read) int32_t raw_read(int32_t, uint32_t, uint32_t, uint32_t);
IMPORT(fd_write) int32_t raw_write(int32_t, uint32_t, uint32_t, uint32_t);
IMPORT(fd_readdir) int32_t raw_readdir(int32_t, uint32_t, uint32_t, int64_t, uint32_t);
IMPORT(random_get) int32_t raw_random(uint32_t, uint32_t);
IMPORT(poll_oneoff) int32_t raw_poll(uint32_t, uint32_t, uint32_t, uint32_t);
IMPORT(args_get) int32_t raw_args(uint32_t, uint32_t);
IMPORT(environ_get) int32_t raw_environ(uint32_t, uint32_t);
IMPORT(fd_prestat_dir_name) int32_t raw_prestat(int32_t, uint32_t, uint32_t);
IMPORT(path_readlink) int32_t raw_readlink(int32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t);
IMPORT(path_symlink) int32_t raw_symlink(uint32_t, uint32_t, int32_t, uint32_t, uint32_t);
IMPORT(clock_time_get) int32_t raw_clock(int32_t, int64_t, uint32_t);

enum {
    FOLLOW = 1,
    CREATE = 1,
    DIRECTORY = 2,
    EXCLUSIVE = 4,
    CUT = 8,
};
static const int64_t ALL = 0x3fffffff, READING = 0x2 | 0x4000 | 0x200000, WRITING = 0x40 | 0x2;

static const char *secret, *inner;
static int written_to, given, root_fd = -1, temporary = -1, first_free;
static char buffer[4096], path[8192], why[256];

/* An attempt gives 0 when it got out, else an errno of WASI; `why` then holds what it read. */

static int preopened(const char *wanted)
{
    for (int fd = 3; fd < 64; fd++) {
        __wasi_prestat_t found;
        if (__wasi_fd_prestat_get(fd, &found))
            return -1;
        memset(buffer, 0, sizeof buffer);
        if (!__wasi_fd_prestat_dir_name(fd, (uint8_t *)buffer, found.u.dir.pr_name_len) && !strcmp(buffer, wanted))
            return fd;
    }
    return -1;
}

static int opened(int directory, const char *name, int flags, int how, int64_t rights, int *file)
{
    return raw_open(directory, flags, (uint32_t)(uintptr_t)name, (uint32_t)strlen(name), how, rights, rights, 0, (uint32_t)(uintptr_t)file);
}

static int told(int file)
{
    struct {
        uint32_t place, size;
    } part = {(uint32_t)(uintptr_t)why, sizeof why - 1};
    uint32_t count = 0;
    memset(why, 0, sizeof why);
    int error = raw_read(file, (uint32_t)(uintptr_t)&part, 1, (uint32_t)(uintptr_t)&count);
    return error || !count ? (error ? error : 8) : 0;
}

static int put(int file)
{
    struct {
        uint32_t place, size;
    } part = {(uint32_t)(uintptr_t) "x", 1};
    uint32_t count = 0;
    return raw_write(file, (uint32_t)(uintptr_t)&part, 1, (uint32_t)(uintptr_t)&count);
}

static int reads(int directory, const char *name, int flags)
{
    int file = -1, error = opened(directory, name, flags, 0, READING, &file);
    return error ? error : told(file);
}

static int reads_in(int directory, const char *format, const char *rest, int flags)
{
    snprintf(path, sizeof path, format, rest);
    return reads(directory, path, flags);
}

static int makes(int directory, const char *name)
{
    int file = -1, error = opened(directory, name, FOLLOW, CREATE, WRITING, &file);
    return error ? error : put(file);
}

static int links(int directory, const char *to, const char *name)
{
    __wasi_path_unlink_file(directory, name);
    return raw_symlink((uint32_t)(uintptr_t)to, (uint32_t)strlen(to), directory, (uint32_t)(uintptr_t)name, (uint32_t)strlen(name));
}

static int linked(const char *to, const char *name, const char *wanted)
{
    int error = links(written_to, to, name);
    return error ? error : reads(written_to, wanted, FOLLOW);
}

static int mine(void)
{
    int file = -1, error = opened(written_to, "mine", 0, CREATE, WRITING, &file);
    if (!error)
        __wasi_fd_close(file);
    return error;
}

/* A call with a bad pointer must fail or end the program, never succeed. Where the C library stands the memory ends at. */
static uint32_t beyond(void) { return (uint32_t)(__builtin_wasm_memory_size(0) << 16); }

#define T(name) static int name(void)

T(absolute) { return reads(given, secret, FOLLOW); }
T(absolute_from_root) { return root_fd < 0 ? 8 : reads(root_fd, secret, FOLLOW); }
T(relative_from_root) { return root_fd < 0 ? 8 : reads(root_fd, inner, FOLLOW); }
T(dotdot) { return reads_in(given, "../private/%s", "secret", FOLLOW); }
T(dotdot_far) { return reads_in(given, "../../../../../../../..%s", secret, FOLLOW); }
T(dotdot_from_root) { return reads_in(root_fd, "../../../../../../../..%s", secret, FOLLOW); }
T(dotdot_from_tmp) { return reads_in(temporary, "../../../../../../../..%s", secret, FOLLOW); }
T(dotdot_inside) { return reads_in(given, "link/../../../../../..%s", secret, FOLLOW); }
T(dotdot_slashes) { return reads_in(given, "./..//..///..////..%s", secret, FOLLOW); }
T(dotdot_alone)
{
    int file = -1, error = opened(written_to, "..", FOLLOW, DIRECTORY, READING, &file);
    return error ? error : reads(file, "private/secret", FOLLOW);
}
T(dotdot_trailing)
{
    int file = -1, error = opened(written_to, "sub/../..", FOLLOW, DIRECTORY, READING, &file);
    return error ? error : reads(file, "private/secret", FOLLOW);
}
T(dotdot_stat)
{
    return raw_stat(given, FOLLOW, (uint32_t)(uintptr_t) "../private/secret", 17, (uint32_t)(uintptr_t)buffer);
}
T(dotdot_made) { return makes(written_to, "../private/new"); }
T(dotdot_directory) { return __wasi_path_create_directory(written_to, "../private/sub"); }
T(dotdot_removed) { return __wasi_path_unlink_file(written_to, "../private/secret"); }
T(dotdot_removed_directory) { return __wasi_path_remove_directory(written_to, "../private"); }
T(dotdot_times) { return __wasi_path_filestat_set_times(written_to, FOLLOW, "../private/secret", 1, 1, 5); }
T(dotdot_in_link) { return linked("../private/secret", "out", "out"); }
T(dotdot_in_link_far) { return linked("../../../../../../../../etc/passwd", "out", "out"); }
T(link_absolute) { return linked(secret, "out", "out"); }
T(link_to_root) { return linked("/", "root", "root/etc/passwd"); }
T(link_to_parent) { return linked("..", "up", "up/private/secret"); }
T(link_to_link)
{
    links(written_to, "..", "first");
    return linked("first/private", "second", "second/secret");
}
T(link_in_directory)
{
    __wasi_path_create_directory(written_to, "sub");
    return linked("../../private/secret", "sub/out", "sub/out");
}
T(link_to_itself) { return linked("loop", "loop", "loop/x"); }
T(link_found) { return reads(written_to, "link/secret", FOLLOW); }
T(link_found_in_data) { return reads(given, "link/secret", FOLLOW); }
T(link_found_itself)
{
    int file = -1, error = opened(given, "link", 0, DIRECTORY, READING, &file);
    return error ? error : reads(file, "secret", 0);
}
T(link_found_made) { return makes(written_to, "link/new"); }
T(link_found_directory) { return __wasi_path_create_directory(written_to, "link/sub"); }
T(link_found_removed) { return __wasi_path_unlink_file(written_to, "link/secret"); }
T(link_found_times) { return __wasi_path_filestat_set_times(written_to, FOLLOW, "link/secret", 1, 1, 5); }
T(link_dangling) { return links(written_to, "../private/new", "new") ? 8 : makes(written_to, "new"); }
T(moved_out) { return mine() ? 8 : __wasi_path_rename(written_to, "mine", written_to, "link/mine"); }
T(moved_up) { return mine() ? 8 : __wasi_path_rename(written_to, "mine", written_to, "../private/mine"); }
T(moved_in) { return __wasi_path_rename(written_to, "../private/secret", written_to, "secret"); }
T(moved_into_data) { return mine() ? 8 : __wasi_path_rename(written_to, "mine", given, "mine"); }
T(moved_from_data) { return __wasi_path_rename(given, "file", written_to, "file"); }
T(hard_link) { return __wasi_path_link(written_to, 0, "../private/secret", written_to, "hard"); }
T(hard_link_follow) { return __wasi_path_link(written_to, FOLLOW, "link/secret", written_to, "hard"); }
T(hard_link_out) { return mine() ? 8 : __wasi_path_link(written_to, 0, "mine", written_to, "link/mine"); }
T(hard_link_from_data) { return __wasi_path_link(given, 0, "file", written_to, "hard"); }
T(hard_link_into_data) { return mine() ? 8 : __wasi_path_link(written_to, 0, "mine", given, "hard"); }
T(proc_root) { return reads_in(root_fd, "proc/self/root%s", secret, FOLLOW); }
T(proc_environ) { return reads(root_fd, "proc/1/environ", FOLLOW); }
T(proc_self) { return reads(root_fd, "proc/self/environ", FOLLOW); }
T(proc_by_link) { return linked("/proc/self/environ", "out", "out"); }
T(proc_from_tmp) { return reads(temporary, "../proc/self/maps", FOLLOW); }
T(device) { return reads(root_fd, "dev/urandom", FOLLOW); }
T(device_by_link) { return linked("/dev/zero", "out", "out"); }
T(passwd) { return reads(root_fd, "etc/passwd", FOLLOW); }
T(root_made) { return makes(root_fd, "new"); }
T(empty_name) { int file = -1; return opened(given, "", FOLLOW, 0, READING, &file) ? 8 : told(file); }
T(name_with_nul)
{
    int file = -1;
    int error = raw_open(written_to, FOLLOW, (uint32_t)(uintptr_t) "link\0/secret", 12, 0, READING, READING, 0, (uint32_t)(uintptr_t)&file);
    return error ? error : told(file);
}
T(name_with_bytes)
{
    int file = -1;
    int error = raw_open(given, FOLLOW, (uint32_t)(uintptr_t) "\xc0\xae\xc0\xae/private/secret", 19, 0, READING, READING, 0, (uint32_t)(uintptr_t)&file);
    return error ? error : told(file);
}
T(name_of_windows) { return reads(given, "..\\private\\secret", FOLLOW); }
T(name_overlong)
{
    memset(path, '/', sizeof path);
    memcpy(path + sizeof path - 18, "../private/secret", 18);
    path[0] = '.';
    return reads(given, path, FOLLOW);
}
T(name_deep)
{
    path[0] = 0;
    for (int i = 0; i < 1500; i++)
        strcat(path, "sub/../");
    strcat(path, "../private/secret");
    __wasi_path_create_directory(written_to, "sub");
    return reads(written_to, path, FOLLOW);
}
T(data_written)
{
    int file = -1, error = opened(given, "file", FOLLOW, 0, WRITING, &file);
    return error ? error : put(file);
}
T(data_written_all_rights)
{
    int file = -1, error = opened(given, "file", FOLLOW, 0, ALL, &file);
    return error ? error : put(file);
}
T(data_cut)
{
    int file = -1;
    return opened(given, "file", FOLLOW, CUT, READING, &file);
}
T(data_made) { return makes(given, "new"); }
T(data_made_exclusively) { int file = -1; return opened(given, "new", 0, CREATE | EXCLUSIVE, WRITING, &file); }
T(data_directory) { return __wasi_path_create_directory(given, "new"); }
T(data_removed) { return __wasi_path_unlink_file(given, "file"); }
T(data_renamed) { return __wasi_path_rename(given, "file", given, "other"); }
T(data_linked) { return __wasi_path_link(given, 0, "file", given, "hard"); }
T(data_symlink) { return links(given, "file", "new"); }
T(data_times) { return __wasi_path_filestat_set_times(given, FOLLOW, "file", 1, 1, 5); }
T(data_own_times) { return __wasi_fd_filestat_set_times(given, 1, 1, 5); }

/* A descriptor that was opened for reading, and what could change its file all the same. */
static int with_data(int (*change)(int))
{
    int file = -1, error = opened(given, "file", FOLLOW, 0, READING, &file);
    return error ? error : change(file);
}
static int sized(int file) { return __wasi_fd_filestat_set_size(file, 0); }
static int allocated(int file) { return __wasi_fd_allocate(file, 0, 4096); }
static int timed(int file) { return __wasi_fd_filestat_set_times(file, 1, 1, 5); }
static int flagged(int file) { return __wasi_fd_fdstat_set_flags(file, 1) ? 8 : put(file); }
static int widened(int file) { return __wasi_fd_fdstat_set_rights(file, ALL, ALL) ? 8 : put(file); }
static int at_place(int file)
{
    __wasi_ciovec_t part = {(const uint8_t *)"x", 1};
    __wasi_size_t count;
    return __wasi_fd_pwrite(file, &part, 1, 0, &count);
}
T(data_sized) { return with_data(sized); }
T(data_allocated) { return with_data(allocated); }
T(data_file_times) { return with_data(timed); }
T(data_appended) { return with_data(flagged); }
T(data_rights) { return with_data(widened); }
T(data_at_place) { return with_data(at_place); }
T(directory_rights)
{
    int error = __wasi_fd_fdstat_set_rights(given, ALL, ALL);
    return error ? error : makes(given, "new");
}
T(directory_written) { return put(given); }
T(other_descriptors)
{
    __wasi_fdstat_t found;
    for (int fd = first_free; fd < 4096; fd++)
        if (!__wasi_fd_fdstat_get(fd, &found))
            return 0;
    return 8;
}
T(other_descriptors_read)
{
    for (int fd = first_free; fd < 4096; fd++)
        if (!told(fd))
            return 0;
    return 8;
}
T(negative_descriptor) { return told(-1) && told(INT32_MIN) && told(INT32_MAX) ? 8 : 0; }
T(renumbered_out) { return __wasi_fd_renumber(4000, given); }
T(renumbered_far) { return __wasi_fd_renumber(4000, 0x7fffffff); }
T(renumbered_data)
{
    /* What may be written stands in the place of what may not: the right goes with the directory, not with the number. */
    int file = -1;
    if (opened(given, ".", 0, DIRECTORY, READING, &file) || __wasi_fd_renumber(file, written_to))
        return 8;
    return makes(written_to, "new");
}
T(closed_and_used) { return __wasi_fd_close(temporary) ? 8 : makes(temporary, "new"); }
T(accepted) { int file = -1; return __wasi_sock_accept(given, 0, (__wasi_fd_t *)&file); }
T(accepted_stdin) { int file = -1; return __wasi_sock_accept(0, 0, (__wasi_fd_t *)&file); }
T(received)
{
    __wasi_iovec_t part = {(uint8_t *)buffer, sizeof buffer};
    __wasi_size_t count;
    __wasi_roflags_t flags;
    return __wasi_sock_recv(given, &part, 1, 0, &count, &flags);
}
T(sent)
{
    __wasi_ciovec_t part = {(const uint8_t *)"x", 1};
    __wasi_size_t count;
    return __wasi_sock_send(given, &part, 1, 0, &count);
}
T(shut) { return __wasi_sock_shutdown(given, 3); }
T(pointer_name) { int file; return raw_open(given, 0, beyond() - 2, 64, 0, READING, READING, 0, (uint32_t)(uintptr_t)&file); }
T(pointer_name_length) { int file; return raw_open(given, 0, 16, 0xffffffff, 0, READING, READING, 0, (uint32_t)(uintptr_t)&file); }
T(pointer_result) { return raw_open(given, 0, (uint32_t)(uintptr_t) "file", 4, 0, READING, READING, 0, 0xfffffffc); }
T(pointer_stat) { return raw_stat(given, 0, (uint32_t)(uintptr_t) "file", 4, beyond() - 8); }
T(pointer_parts) { return raw_write(1, beyond(), 1, (uint32_t)(uintptr_t)buffer); }
T(pointer_many_parts) { return raw_write(1, beyond() - 8, 0x7fffffff, (uint32_t)(uintptr_t)buffer); }
T(pointer_in_part)
{
    uint32_t part[2] = {beyond() - 16, 0x10000000};
    return raw_write(1, (uint32_t)(uintptr_t)part, 1, (uint32_t)(uintptr_t)buffer);
}
T(pointer_wraps)
{
    uint32_t part[2] = {0xfffffff0, 0x100};
    return raw_write(1, (uint32_t)(uintptr_t)part, 1, (uint32_t)(uintptr_t)buffer);
}
T(pointer_read)
{
    uint32_t part[2] = {beyond() - 1, 64};
    int file = -1;
    opened(given, "file", FOLLOW, 0, READING, &file);
    return raw_read(file, (uint32_t)(uintptr_t)part, 1, (uint32_t)(uintptr_t)buffer);
}
T(pointer_directory) { return raw_readdir(given, beyond() - 4, 4096, 0, (uint32_t)(uintptr_t)buffer); }
T(pointer_random) { return raw_random(beyond() - 4, 64); }
T(pointer_random_huge) { return raw_random(16, 0xffffffff); }
T(pointer_poll) { return raw_poll(beyond() - 8, (uint32_t)(uintptr_t)buffer, 1, (uint32_t)(uintptr_t)path); }
T(pointer_poll_many) { return raw_poll(16, 16, 0x7fffffff, (uint32_t)(uintptr_t)path); }
T(poll_nothing) { return raw_poll((uint32_t)(uintptr_t)buffer, (uint32_t)(uintptr_t)path, 0, (uint32_t)(uintptr_t)why); }
T(pointer_arguments) { return raw_args(beyond() - 4, beyond() - 4); }
T(pointer_environment) { return raw_environ(beyond() - 4, 16); }
T(pointer_prestat) { return raw_prestat(given, beyond(), 5); }
T(pointer_prestat_short) { return raw_prestat(given, (uint32_t)(uintptr_t)buffer, 1); }
T(pointer_link) { return raw_readlink(given, (uint32_t)(uintptr_t) "link", 4, beyond() - 2, 4096, (uint32_t)(uintptr_t)buffer); }
T(pointer_clock) { return raw_clock(0, 0, 0xffffffff); }
T(clock_unknown) { return raw_clock(77, 0, (uint32_t)(uintptr_t)buffer); }
T(cookie_far)
{
    uint32_t used = 0;
    int error = raw_readdir(given, (uint32_t)(uintptr_t)buffer, sizeof buffer, INT64_MAX, (uint32_t)(uintptr_t)&used);
    return error || !used ? 8 : 0;
}
T(cookie_negative)
{
    uint32_t used = 0;
    int error = raw_readdir(given, (uint32_t)(uintptr_t)buffer, sizeof buffer, -7, (uint32_t)(uintptr_t)&used);
    return error || !used ? 8 : 0;
}
T(seek_negative)
{
    int file = -1;
    __wasi_filesize_t place;
    opened(given, "file", FOLLOW, 0, READING, &file);
    return __wasi_fd_seek(file, -5, 0, &place);
}
T(memory_beyond) { return __builtin_wasm_memory_grow(0, 1 << 16) == (size_t)-1 ? 8 : 0; }
T(memory_until_the_end)
{
    for (int i = 0; i < 65536; i++)
        if (__builtin_wasm_memory_grow(0, 16) == (size_t)-1)
            return 8;
    return 0;
}
T(memory_read) { return *(volatile char *)(uintptr_t)beyond() == 0x5a ? 0 : 0; }
T(memory_written)
{
    *(volatile char *)(uintptr_t)0xfffffff0u = 1;
    return 0;
}
T(table_beyond)
{
    int (*volatile call)(void) = (int (*)(void))(uintptr_t)0x00ffffff;
    return call();
}
T(table_other_type)
{
    int64_t (*volatile call)(double, double, int64_t) = (int64_t (*)(double, double, int64_t))(uintptr_t)&absolute;
    return (int)call(1, 2, 3) * 0;
}
static int deeper(volatile int depth)
{
    volatile char room[64] = {(char)depth};
    return depth < 0 ? 0 : deeper(depth + 1) + room[0];
}
T(stack_beyond) { return deeper(0) * 0; }
T(unreachable) { __builtin_trap(); }

#undef T
#define T(name) {#name, name, 0}
#define DEADLY(name) {#name, name, 1}
static const struct {
    const char *name;
    int (*run)(void);
    int deadly;
} table[] = {
    T(other_descriptors), T(other_descriptors_read), T(absolute), T(absolute_from_root), T(relative_from_root), T(dotdot), T(dotdot_far), T(dotdot_from_root), T(dotdot_from_tmp),
    T(dotdot_inside), T(dotdot_slashes), T(dotdot_alone), T(dotdot_trailing), T(dotdot_stat), T(dotdot_made), T(dotdot_directory),
    T(dotdot_removed), T(dotdot_removed_directory), T(dotdot_times), T(dotdot_in_link), T(dotdot_in_link_far), T(link_absolute),
    T(link_to_root), T(link_to_parent), T(link_to_link), T(link_in_directory), T(link_to_itself), T(link_found),
    T(link_found_in_data), T(link_found_itself), T(link_found_made), T(link_found_directory), T(link_found_removed),
    T(link_found_times), T(link_dangling), T(moved_out), T(moved_up), T(moved_in), T(moved_into_data), T(moved_from_data),
    T(hard_link), T(hard_link_follow), T(hard_link_out), T(hard_link_from_data), T(hard_link_into_data), T(proc_root),
    T(proc_environ), T(proc_self), T(proc_by_link), T(proc_from_tmp), T(device), T(device_by_link), T(passwd), T(root_made),
    T(empty_name), T(name_with_nul), T(name_of_windows), T(name_overlong), T(name_deep), T(data_written),
    T(data_written_all_rights), T(data_cut), T(data_made), T(data_made_exclusively), T(data_directory), T(data_removed),
    T(data_renamed), T(data_linked), T(data_symlink), T(data_times), T(data_own_times), T(data_sized), T(data_allocated),
    T(data_file_times), T(data_appended), T(data_rights), T(data_at_place), T(directory_rights), T(directory_written),
    T(negative_descriptor), T(renumbered_out), T(renumbered_far), T(poll_nothing), T(pointer_prestat_short), T(cookie_far),
    T(cookie_negative), T(seek_negative), T(memory_beyond), T(memory_until_the_end), T(closed_and_used), T(renumbered_data),
    DEADLY(pointer_name), DEADLY(pointer_name_length), DEADLY(pointer_result), DEADLY(pointer_stat), DEADLY(pointer_parts),
    DEADLY(pointer_many_parts), DEADLY(pointer_in_part), DEADLY(pointer_wraps), DEADLY(pointer_read), DEADLY(pointer_directory),
    DEADLY(pointer_random), DEADLY(pointer_random_huge), DEADLY(pointer_poll), DEADLY(pointer_poll_many),
    DEADLY(pointer_arguments), DEADLY(pointer_environment), DEADLY(pointer_prestat), DEADLY(pointer_link), DEADLY(pointer_clock),
    DEADLY(memory_read), DEADLY(memory_written), DEADLY(table_beyond), DEADLY(table_other_type), DEADLY(stack_beyond),
    DEADLY(unreachable), DEADLY(clock_unknown),
    DEADLY(name_with_bytes), DEADLY(accepted), DEADLY(accepted_stdin), DEADLY(received), DEADLY(sent), DEADLY(shut),
};

static int chosen(const char *list, const char *name, int deadly)
{
    if (!strcmp(list, "all") || !strcmp(list, "deadly"))
        return deadly == !strcmp(list, "deadly");
    size_t length = strlen(name);
    for (const char *at = list; (at = strstr(at, name)); at += length)
        if ((at == list || at[-1] == ',') && (!at[length] || at[length] == ','))
            return 1;
    return 0;
}

int main(int count, char **words)
{
    if (count != 8)
        return 64;
    if (!strcmp(words[1], "deadly")) {
        for (size_t i = 0; i < sizeof table / sizeof *table; i++)
            if (table[i].deadly)
                printf("%s\n", table[i].name);
        return 0;
    }
    secret = words[4];
    inner = words[4] + 1;
    written_to = preopened(words[6]);
    given = preopened(words[7]);
    root_fd = preopened("/");
    temporary = preopened("/tmp");
    __wasi_prestat_t found;
    for (first_free = 3; !__wasi_fd_prestat_get(first_free, &found); first_free++)
        ;
    if (written_to < 0 || given < 0)
        return 65;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (chosen(words[1], table[i].name, table[i].deadly)) {
            strcpy(why, "it got out");
            int error = table[i].run();
            for (char *at = why; *at; at++)
                if ((unsigned char)*at < 32)
                    *at = ' ';
            printf("%s\t%s\t", table[i].name, error ? "held" : "escaped");
            error ? printf("errno %d\n", error) : printf("%s\n", why);
            fflush(stdout);
        }
    return 0;
}
