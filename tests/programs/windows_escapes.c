/* Tries to get out of a sandbox as a Windows program: through Wine's own doors to the host, and past Wine by the system calls of Linux.

   usage: windows_escapes all|NAME,NAME... VICTIM PORT SECRET ABSTRACT WRITE READ   one line for each: name, TAB, "held" or "escaped", TAB, why
          windows_escapes start PROGRAM WORDS...                                    run a Linux program of the host, past Wine

   The words are those of escape.c. */
#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef long long word;
#define P(pointer) ((word)(size_t)(pointer))

static const char *secret, *hidden, *writable, *readable;
static int victim, port;
static char path[2048], other[2048], buffer[4096], why[300];

/* An attempt gives 1 when it got out; else `why` says what held it, where it did not say so itself. */
static int held(const char *reason)
{
    snprintf(why, sizeof why, "%s", reason);
    return 0;
}

static int windows(int done)
{
    if (!done)
        snprintf(why, sizeof why, "error %lu", GetLastError());
    return done;
}

static int from_linux(word result)
{
    if (result < 0)
        snprintf(why, sizeof why, "errno %lld", -result);
    return result >= 0;
}

static word call(word number, word a, word b, word c, word d, word e)
{
    word result;
    register word r10 __asm__("r10") = d;
    register word r8 __asm__("r8") = e;
    register word r9 __asm__("r9") = 0;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
}

/* A path of Linux as Wine names it. */
static char *z(const char *format, const char *place)
{
    char made[1024];
    snprintf(made, sizeof made, format, place);
    snprintf(path, sizeof path, "Z:%s", made);
    for (char *at = path; *at; at++)
        if (*at == '/')
            *at = '\\';
    return path;
}

static int reads(const char *name)
{
    HANDLE file = CreateFileA(name, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE, NULL, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, NULL);
    DWORD count = 0;
    if (file == INVALID_HANDLE_VALUE)
        return windows(0);
    memset(buffer, 0, sizeof buffer);
    int done = ReadFile(file, buffer, 64, &count, NULL);
    CloseHandle(file);
    snprintf(why, sizeof why, "%.64s", buffer);
    return done && count ? 1 : held("nothing in it");
}

static int writes(const char *name, DWORD how)
{
    HANDLE file = CreateFileA(name, GENERIC_WRITE, FILE_SHARE_READ | FILE_SHARE_WRITE, NULL, how, 0, NULL);
    DWORD count = 0;
    if (file == INVALID_HANDLE_VALUE)
        return windows(0);
    int done = WriteFile(file, "x", 1, &count, NULL);
    CloseHandle(file);
    return windows(done);
}

static int lists(const char *pattern)
{
    WIN32_FIND_DATAA found;
    HANDLE search = FindFirstFileA(pattern, &found);
    int count = 0;
    if (search == INVALID_HANDLE_VALUE)
        return windows(0);
    do
        if (found.cFileName[0] != '.')
            count++, snprintf(why, sizeof why, "%s", found.cFileName);
    while (FindNextFileA(search, &found));
    FindClose(search);
    return count ? 1 : held("nothing there");
}

static char *mine(void)
{
    strcpy(other, z("%s/mine", writable));
    CloseHandle(CreateFileA(other, GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, 0, NULL));
    return other;
}

static int started(char *line)
{
    STARTUPINFOA how = {.cb = sizeof how};
    PROCESS_INFORMATION made;
    DWORD code = 1;
    if (!CreateProcessA(NULL, line, NULL, NULL, FALSE, 0, NULL, NULL, &how, &made))
        return windows(0);
    WaitForSingleObject(made.hProcess, 10000);
    GetExitCodeProcess(made.hProcess, &code);
    snprintf(why, sizeof why, "it ended with %lu", code);
    return code == 0;
}

/* A Linux program, past Wine: its code is that of the program. */
static word run(const char *const *words)
{
    static const char *const empty[] = {"PATH=/usr/bin:/bin:/usr/sbin:/sbin", NULL};
    static const char *given[3] = {"PATH=/usr/bin:/bin", NULL, NULL};
    char *names[] = {"PROBE_PORT", "PROBE_PID"};
    static char values[2][64];
    const char *const *environment = empty;
    if (getenv(names[0])) {
        for (int i = 0; i < 2; i++) {
            snprintf(values[i], sizeof values[i], "%s=%s", names[i], getenv(names[i]) ? getenv(names[i]) : "");
            given[i] = values[i];
        }
        environment = given;
    }
    int status = 0;
    word pid = call(57, 0, 0, 0, 0, 0);
    if (pid == 0) {
        /* Wine blocks signals, and a blocked one stays so in what is executed. */
        uint64_t none = 0;
        call(14, 2, P(&none), 0, 8, 0);
        call(59, P(words[0]), P(words), P(environment), 0, 0);
        call(231, 127, 0, 0, 0, 0);
    }
    if (pid < 0)
        return pid;
    call(61, pid, P(&status), 0, 0, 0);
    return status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
}

static int runs(const char *a, const char *b, const char *c, const char *d, const char *e)
{
    const char *words[] = {a, b, c, d, e, NULL};
    word code = run(words);
    snprintf(why, sizeof why, "it ended with %lld", code);
    return code == 0;
}

static int reaches(const char *host, int number)
{
    char text[8];
    snprintf(text, sizeof text, "%d", number);
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *found;
    if (getaddrinfo(host, text, &wanted, &found))
        return held("no such address");
    SOCKET peer = socket(found->ai_family, SOCK_STREAM, 0);
    if (peer == INVALID_SOCKET)
        return held("no socket");
    u_long waiting = 1;
    ioctlsocket(peer, FIONBIO, &waiting);
    int result = connect(peer, found->ai_addr, (int)found->ai_addrlen);
    if (result && WSAGetLastError() == WSAEWOULDBLOCK) {
        fd_set done, failed;
        FD_ZERO(&done);
        FD_ZERO(&failed);
        FD_SET(peer, &done);
        FD_SET(peer, &failed);
        struct timeval time = {2, 0};
        select(0, NULL, &done, &failed, &time);
        result = FD_ISSET(peer, &done) ? 0 : 1;
    }
    snprintf(why, sizeof why, "error %d", WSAGetLastError());
    closesocket(peer);
    return result == 0;
}

static int sends(const char *host)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(53)};
    SOCKET peer = socket(AF_INET, SOCK_DGRAM, 0);
    int yes = 1;
    there.sin_addr.s_addr = inet_addr(host);
    setsockopt(peer, SOL_SOCKET, SO_BROADCAST, (char *)&yes, sizeof yes);
    int result = sendto(peer, "x", 1, 0, (struct sockaddr *)&there, sizeof there);
    snprintf(why, sizeof why, "error %d", WSAGetLastError());
    return result == 1;
}

static int raw_socket(int family, const char *name, unsigned length)
{
    unsigned char place[110] = {(unsigned char)family};
    memcpy(place + 2, name, length);
    word peer = call(41, family, 1, 0, 0, 0);
    return peer < 0 ? from_linux(peer) : from_linux(call(42, peer, P(place), 2 + length, 0, 0));
}

static int opens(const char *format, const char *place, int flags)
{
    snprintf(path, sizeof path, format, place);
    word file = call(2, P(path), flags, 0600, 0, 0);
    if (file < 0)
        return from_linux(file);
    memset(buffer, 0, sizeof buffer);
    call(0, file, P(buffer), 64, 0, 0);
    snprintf(why, sizeof why, "%.64s", buffer);
    return 1;
}

#define T(name) static int name(void)

/* Wine's doors */
T(absolute) { return reads(z("%s", secret)); }
T(dotdot) { return snprintf(other, sizeof other, "%s\\..\\..\\..%s", "Z:\\data", z("%s", secret) + 2), reads(other); }
T(unix_name) { return snprintf(other, sizeof other, "\\\\?\\unix%s", secret), reads(other); }
T(unix_name_relative) { return snprintf(other, sizeof other, "\\\\?\\unix\\..\\..%s", secret), reads(other); }
T(verbatim) { return snprintf(other, sizeof other, "\\\\?\\%s", z("%s", secret)), reads(other); }
T(device_name) { return snprintf(other, sizeof other, "\\\\.\\%s", z("%s", secret)), reads(other); }
T(shadow_by_wine) { return reads("\\\\?\\unix\\etc\\shadow"); }
T(proc_by_wine) { return reads("\\\\?\\unix\\proc\\1\\environ"); }
T(root_of_init_by_wine) { return snprintf(other, sizeof other, "\\\\?\\unix/proc/1/root%s", secret), reads(other); }
T(root_of_self_by_wine) { return snprintf(other, sizeof other, "\\\\?\\unix/proc/self/root%s", secret), reads(other); }
T(victim_by_wine) { return snprintf(other, sizeof other, "\\\\?\\unix/proc/%d/environ", victim), reads(other); }
T(memory_by_wine) { return reads("\\\\?\\unix\\dev\\mem"); }
T(drive) { return reads("\\\\.\\PhysicalDrive0"); }
T(drive_c) { return reads("\\\\.\\C:"); }
T(volume)
{
    return DefineDosDeviceA(DDD_RAW_TARGET_PATH, "Q:", "\\??\\unix\\") ? reads(snprintf(other, sizeof other, "Q:%s", secret) ? other : "") : windows(0);
}
T(serial) { return writes("\\\\.\\COM1", OPEN_EXISTING); }
T(link_found) { return reads(z("%s/link/secret", writable)); }
T(link_in_data) { return reads(z("%s/link/secret", readable)); }
T(link_written) { return writes(z("%s/link/new", writable), CREATE_ALWAYS); }
T(symbolic_link)
{
    strcpy(other, z("%s/symbolic", writable));
    return CreateSymbolicLinkA(other, z("%s", secret), 2) ? reads(other) : windows(0);
}
T(hard_link) { return strcpy(other, z("%s/hard", writable)), windows(CreateHardLinkA(other, z("%s", secret), NULL)); }
T(copied_in) { return strcpy(other, z("%s/copy", writable)), windows(CopyFileA(z("%s", secret), other, FALSE)); }
T(moved_in) { return strcpy(other, z("%s/secret", writable)), windows(MoveFileA(z("%s", secret), other)); }
T(moved_out) { return mine(), windows(MoveFileA(other, z("%s/link/mine", writable))); }
T(others_in_tmp) { return lists(z("%s/../*", secret)); }
T(host_tmp) { return lists("Z:\\tmp\\roost-bait*"); }
T(home_of_root) { return lists("Z:\\root\\*"); }
T(homes) { return lists("Z:\\home\\*"); }
T(var) { return lists("Z:\\var\\lib\\*"); }
T(sys) { return lists("Z:\\sys\\kernel\\*"); }
T(beside_program) { return writes("Z:\\app\\new", CREATE_ALWAYS); }
T(program_written)
{
    GetModuleFileNameA(NULL, path, sizeof path);
    return writes(path, OPEN_EXISTING);
}
T(root_written) { return writes("Z:\\new", CREATE_ALWAYS); }
T(system_written) { return writes("Z:\\usr\\bin\\new", CREATE_ALWAYS); }
T(wine_written) { return writes("Z:\\usr\\lib\\x86_64-linux-gnu\\wine\\x86_64-windows\\ntdll.dll", OPEN_EXISTING); }
T(library_written) { return writes("C:\\windows\\system32\\kernel32.dll", OPEN_EXISTING); }
T(read_only_written) { return writes(z("%s/file", readable), OPEN_EXISTING); }
T(read_only_made) { return writes(z("%s/new", readable), CREATE_ALWAYS); }
T(read_only_directory) { return windows(CreateDirectoryA(z("%s/new", readable), NULL)); }
T(read_only_removed)
{
    /* Wine says yes, and then can not. */
    int done = DeleteFileA(z("%s/file", readable));
    return windows(done) && GetFileAttributesA(path) == INVALID_FILE_ATTRIBUTES;
}
T(read_only_renamed) { return strcpy(other, z("%s/file", readable)), windows(MoveFileA(other, z("%s/other", readable))); }
T(read_only_replaced) { return mine(), windows(MoveFileExA(other, z("%s/file", readable), MOVEFILE_REPLACE_EXISTING | MOVEFILE_COPY_ALLOWED)); }
T(read_only_times)
{
    HANDLE file = CreateFileA(z("%s/file", readable), FILE_WRITE_ATTRIBUTES, 7, NULL, OPEN_EXISTING, 0, NULL);
    FILETIME time = {1, 0x1c00000};
    if (file == INVALID_HANDLE_VALUE)
        return windows(0);
    int done = SetFileTime(file, NULL, NULL, &time);
    CloseHandle(file);
    return windows(done);
}
T(read_only_on_close)
{
    HANDLE file = CreateFileA(z("%s/file", readable), DELETE, 7, NULL, OPEN_EXISTING, FILE_FLAG_DELETE_ON_CLOSE, NULL);
    if (file == INVALID_HANDLE_VALUE)
        return windows(0);
    CloseHandle(file);
    return GetFileAttributesA(path) == INVALID_FILE_ATTRIBUTES ? 1 : held("it is still there");
}
T(victim_opened) { return windows(OpenProcess(PROCESS_ALL_ACCESS, FALSE, (DWORD)victim) != NULL); }
T(loopback) { return reaches("127.0.0.1", port); }
T(loopback_other) { return reaches("127.0.0.2", port); }
T(loopback_6) { return reaches("::1", port); }
T(metadata) { return reaches("169.254.169.254", 80); }
T(internet) { return reaches("192.0.2.1", 443); }
T(internet_6) { return reaches("2001:db8::1", 443); }
T(datagram) { return sends("192.0.2.1"); }
T(broadcast) { return sends("255.255.255.255"); }
T(raw) { return socket(AF_INET, SOCK_RAW, 1) == INVALID_SOCKET ? held("no socket") : 1; }
T(name)
{
    struct addrinfo *found;
    return getaddrinfo("example.org", "443", NULL, &found) ? held("no such name") : 1;
}
T(port_of_the_host)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((u_short)port), .sin_addr.s_addr = htonl(0x7f000001)};
    SOCKET server = socket(AF_INET, SOCK_STREAM, 0);
    int taken = bind(server, (struct sockaddr *)&here, sizeof here) || listen(server, 1);
    closesocket(server);
    return taken ? 1 : held("the port is free: a network of its own");
}
T(su_by_wine) { return started(strcpy(other, "Z:\\bin\\su -c id")); }
T(cat_by_wine) { return snprintf(other, sizeof other, "Z:\\bin\\cat %s", secret), started(other); }
T(shell_by_wine) { return snprintf(other, sizeof other, "cmd.exe /c type %s", z("%s", secret)), started(other); }
T(clock)
{
    SYSTEMTIME time = {.wYear = 2001, .wMonth = 1, .wDay = 1};
    return windows(SetSystemTime(&time));
}
T(driver)
{
    SC_HANDLE manager = OpenSCManagerA(NULL, NULL, SC_MANAGER_ALL_ACCESS);
    return windows(manager && CreateServiceA(manager, "x", NULL, SERVICE_ALL_ACCESS, SERVICE_KERNEL_DRIVER, SERVICE_DEMAND_START, 0, "x.sys", 0, 0, 0, 0, 0));
}

/* past Wine */
T(linux_secret) { return opens("%s", secret, 0); }
T(linux_dotdot) { return opens("/data/../../../..%s", secret, 0); }
T(linux_shadow) { return opens("%s", "/etc/shadow", 0); }
T(linux_root_of_init) { return opens("/proc/1/root%s", secret, 0); }
T(linux_init_memory) { return opens("%s", "/proc/1/mem", 2); }
T(linux_init_environ) { return opens("%s", "/proc/1/environ", 0); }
T(linux_victim_environ) { return snprintf(other, sizeof other, "/proc/%d/environ", victim), opens("%s", other, 0); }
T(linux_link_made)
{
    snprintf(other, sizeof other, "%s/out", writable);
    call(87, P(other), 0, 0, 0, 0);
    word made = call(88, P(secret), P(other), 0, 0, 0);
    return made < 0 ? from_linux(made) : opens("%s", other, 0);
}
T(linux_hard_link) { return snprintf(other, sizeof other, "%s/linked", writable), from_linux(call(86, P(secret), P(other), 0, 0, 0)); }
T(linux_program) { return opens("%s", "/app/new", 0101); }
T(linux_prefix) { return opens("%s", "/prefix/../prefix/../app/new", 0101); }
T(linux_data_written) { return opens("%s/file", readable, 1); }
T(linux_data_mode) { return snprintf(other, sizeof other, "%s/file", readable), from_linux(call(90, P(other), 0777, 0, 0, 0)); }
T(linux_data_cut) { return snprintf(other, sizeof other, "%s/file", readable), from_linux(call(76, P(other), 0, 0, 0, 0)); }
T(linux_set_uid) { return mine(), snprintf(other, sizeof other, "%s/mine", writable), from_linux(call(90, P(other), 04755, 0, 0, 0)); }
T(linux_set_uid_when_made) { return snprintf(other, sizeof other, "%s/made", writable), from_linux(call(2, P(other), 0101, 04755, 0, 0)); }
T(linux_kill) { return from_linux(call(62, victim, 9, 0, 0, 0)); }
T(linux_kill_descriptor) { return from_linux(call(434, victim, 0, 0, 0, 0)); }
T(linux_kill_init) { return call(62, 1, 9, 0, 0, 0) < 0 ? from_linux(-1) : from_linux(call(62, 1, 0, 0, 0, 0)); }
T(linux_trace) { return from_linux(call(101, 16, victim, 0, 0, 0)); }
T(linux_trace_init) { return from_linux(call(101, 0x4206, 1, 0, 0, 0)); }
T(linux_vectors)
{
    struct {
        void *place;
        size_t size;
    } ours = {buffer, 8}, theirs = {(void *)0x400000, 8};
    return from_linux(call(310, 1, P(&ours), 1, P(&theirs), 1));
}
T(linux_mount) { return from_linux(call(165, P("none"), P("/tmp"), P("tmpfs"), 0, 0)); }
T(linux_umount) { return from_linux(call(166, P("/proc"), 2, 0, 0, 0)); }
T(linux_unshare) { return from_linux(call(272, 0x10000000, 0, 0, 0, 0)); }
T(linux_unshare_mounts) { return from_linux(call(272, 0x20000, 0, 0, 0, 0)); }
T(linux_clone)
{
    word pid = call(56, 0x10000000 | 17, 0, 0, 0, 0);
    if (pid == 0)
        call(231, 0, 0, 0, 0, 0);
    return from_linux(pid);
}
T(linux_setns)
{
    word file = call(2, P("/proc/1/ns/mnt"), 0, 0, 0, 0);
    return file < 0 ? from_linux(file) : from_linux(call(308, file, 0, 0, 0, 0));
}
T(linux_chroot) { return from_linux(call(161, P("/tmp"), 0, 0, 0, 0)); }
T(linux_pivot) { return from_linux(call(155, P("/tmp"), P("/tmp"), 0, 0, 0)); }
T(linux_open_tree) { return from_linux(call(428, -100, P("/"), 1, 0, 0)); }
T(linux_setuid) { return from_linux(call(105, 0, 0, 0, 0, 0)); }
T(linux_setgroups) { return from_linux(call(116, 0, 0, 0, 0, 0)); }
T(linux_bpf) { return from_linux(call(321, 5, P(buffer), 72, 0, 0)); }
T(linux_perf) { return from_linux(call(298, P(buffer), 0, -1, -1, 0)); }
T(linux_io_uring) { return from_linux(call(425, 1, P(buffer), 0, 0, 0)); }
T(linux_userfaultfd) { return from_linux(call(323, 1, 0, 0, 0, 0)); }
T(linux_keys) { return from_linux(call(250, 0, -3, 1, 0, 0)); }
T(linux_module) { return from_linux(call(175, P(buffer), 0, P(""), 0, 0)); }
T(linux_log) { return from_linux(call(103, 3, P(buffer), 4096, 0, 0)); }
T(linux_clock) { return from_linux(call(227, 0, P("                "), 0, 0, 0)); }
T(linux_host_name) { return from_linux(call(170, P("x"), 1, 0, 0, 0)); }
T(linux_ports) { return from_linux(call(172, 3, 0, 0, 0, 0)); }
T(linux_segments) { return from_linux(call(154, 0, P(buffer), 64, 0, 0)); }
T(linux_device) { return from_linux(call(133, P("/tmp/disk"), 060600, 0x800, 0, 0)); }
T(linux_core_pattern) { return opens("%s", "/proc/sys/kernel/core_pattern", 1); }
T(linux_memory) { return opens("%s", "/dev/mem", 0); }
T(linux_raw) { return from_linux(call(41, 2, 3, 1, 0, 0)); }
T(linux_packet) { return from_linux(call(41, 17, 3, 0, 0, 0)); }
T(linux_vsock) { return from_linux(call(41, 40, 1, 0, 0, 0)); }
T(linux_audit) { return from_linux(call(41, 16, 3, 9, 0, 0)); }
T(linux_abstract)
{
    memset(other, 0, sizeof other);
    strcpy(other + 1, hidden);
    return raw_socket(1, other, (unsigned)strlen(hidden) + 1);
}
T(linux_socket)
{
    strcpy(other, secret);
    strcpy(strrchr(other, '/'), "/socket");
    return raw_socket(1, other, (unsigned)strlen(other) + 1);
}
T(linux_loopback)
{
    char place[6] = {(char)(port >> 8), (char)port, 127, 0, 0, 1};
    return raw_socket(2, place, 14);
}
T(linux_datagram)
{
    unsigned char there[16] = {2, 0, (unsigned char)(port >> 8), (unsigned char)port, 127, 0, 0, 1};
    word peer = call(41, 2, 2, 0, 0, 0), result = call(42, peer, P(there), 16, 0, 0);
    for (int time = 0; time < 2 && result >= 0; time++, Sleep(50))
        result = call(1, peer, P("x"), 1, 0, 0);
    return from_linux(result);
}
T(linux_su) { return runs("/bin/su", "-c", "id", NULL, NULL); }
T(linux_nsenter) { return runs("/usr/bin/nsenter", "-t", "1", "-m", "id"); }
T(linux_tool_mount) { return runs("/bin/mount", "--bind", "/", "/tmp", NULL); }

#undef T
#define T(name) {#name, name}
static const struct {
    const char *name;
    int (*run)(void);
} table[] = {
    T(absolute), T(dotdot), T(unix_name), T(unix_name_relative), T(verbatim), T(device_name), T(shadow_by_wine), T(proc_by_wine),
    T(root_of_init_by_wine), T(root_of_self_by_wine), T(victim_by_wine), T(memory_by_wine), T(drive), T(drive_c), T(volume), T(serial),
    T(link_found), T(link_in_data), T(link_written), T(symbolic_link), T(hard_link), T(copied_in), T(moved_in), T(moved_out),
    T(others_in_tmp), T(host_tmp), T(home_of_root), T(homes), T(var), T(sys), T(beside_program), T(program_written), T(root_written),
    T(system_written), T(wine_written), T(library_written), T(read_only_written), T(read_only_made), T(read_only_directory),
    T(read_only_removed), T(read_only_renamed), T(read_only_replaced), T(read_only_times), T(read_only_on_close), T(victim_opened),
    T(loopback), T(loopback_other), T(loopback_6), T(metadata), T(internet), T(internet_6), T(datagram),
    T(broadcast), T(raw), T(name), T(port_of_the_host), T(su_by_wine), T(cat_by_wine), T(shell_by_wine), T(clock),
    T(driver), T(linux_secret), T(linux_dotdot), T(linux_shadow), T(linux_root_of_init), T(linux_init_memory), T(linux_init_environ),
    T(linux_victim_environ), T(linux_link_made), T(linux_hard_link), T(linux_program), T(linux_prefix), T(linux_data_written),
    T(linux_data_mode), T(linux_data_cut), T(linux_kill), T(linux_set_uid), T(linux_set_uid_when_made), T(linux_kill_descriptor), T(linux_kill_init), T(linux_trace),
    T(linux_trace_init), T(linux_vectors), T(linux_mount), T(linux_umount), T(linux_unshare), T(linux_unshare_mounts), T(linux_clone),
    T(linux_setns), T(linux_chroot), T(linux_pivot), T(linux_open_tree), T(linux_setuid), T(linux_setgroups), T(linux_bpf),
    T(linux_perf), T(linux_io_uring), T(linux_userfaultfd), T(linux_keys), T(linux_module), T(linux_log), T(linux_clock),
    T(linux_host_name), T(linux_ports), T(linux_segments), T(linux_device), T(linux_core_pattern), T(linux_memory), T(linux_raw),
    T(linux_packet), T(linux_vsock), T(linux_audit), T(linux_abstract), T(linux_socket), T(linux_loopback), T(linux_datagram), T(linux_su),
    T(linux_nsenter), T(linux_tool_mount),
};

static int chosen(const char *list, const char *one)
{
    if (!strcmp(list, "all"))
        return 1;
    size_t length = strlen(one);
    for (const char *at = list; (at = strstr(at, one)); at += length)
        if ((at == list || at[-1] == ',') && (!at[length] || at[length] == ','))
            return 1;
    return 0;
}

int main(int count, char **words)
{
    WSADATA data;
    if (count > 2 && !strcmp(words[1], "start"))
        return (int)run((const char *const *)words + 2);
    if (count != 8)
        return 64;
    WSAStartup(0x202, &data);
    victim = atoi(words[2]);
    port = atoi(words[3]);
    secret = words[4];
    hidden = words[5];
    writable = words[6];
    readable = words[7];
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (chosen(words[1], table[i].name)) {
            strcpy(why, "it got out");
            int out = table[i].run();
            for (char *at = why; *at; at++)
                if ((unsigned char)*at < 32)
                    *at = ' ';
            printf("%s\t%s\t%s\n", table[i].name, out ? "escaped" : "held", why);
            fflush(stdout);
        }
    return 0;
}
