/* The hostile stand-in of a boxed program: tries to get at what a host left lying around, of which it is told by name.

   usage: escape VICTIM PORT SECRET ABSTRACT WRITE READ    every attempt of the table
          escape only NAME VICTIM PORT ...                 one of it
          escape deadly NAME                               one that may end the process: x32, int80, fork, memory

   VICTIM is a process of the host, PORT a TCP port on its loopback, SECRET a file in a directory that everybody may enter, ABSTRACT the name
   of a listening socket, WRITE a granted directory and READ one granted for reading, in which the file `file` is; `link` in WRITE leads to
   the directory of SECRET. One line for each attempt: name, TAB, "held" or "escaped", TAB, why. */
#define _GNU_SOURCE
#include "portable.h"

#include <sched.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/xattr.h>

static struct {
    int victim, port;
    const char *secret, *abstract, *writable, *readable;
} bait;
static char buffer[4096], path[4096];
static char detail[256];

typedef long trial(void);

/* A trial returns -1 with errno when it was held, anything else when it got out. */
static long held(int why)
{
    errno = why;
    return -1;
}

static const char *in(const char *directory, const char *name)
{
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static long opens(const char *name, int flags)
{
    int file = open(name, flags | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, 0600);
    if (file != -1)
        close(file);
    return file;
}

static long of_process(int pid, const char *name, int flags)
{
    char place[64];
    snprintf(place, sizeof place, "/proc/%d/%s", pid, name);
    return opens(place, flags);
}

/* To be in a namespace that the caller made: what a child does there. */
static long entered(int flags)
{
    pid_t pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    return pid;
}

static long socket_of(int family, int type, int protocol)
{
    int peer = socket(family, type, protocol);
    if (peer != -1)
        close(peer);
    return peer;
}

static long connects(int family, const void *address, socklen_t length)
{
    int peer = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (peer == -1)
        return -1;
    int result = connect(peer, address, length), why = errno;
    close(peer);
    errno = why;
    return result == -1 && why == EINPROGRESS ? 0 : result;
}

/* The answer of the kernel to a request of rtnetlink. */
static long asks(uint16_t kind, const void *body, unsigned length)
{
    struct {
        uint32_t length;
        uint16_t kind, flags;
        uint32_t number, port;
        char body[64];
    } request = {16 + length, kind, 5, 1, 0, {0}};
    int channel = socket(16, SOCK_RAW, 0);
    if (channel == -1)
        return -1;
    memcpy(request.body, body, length);
    int32_t answer[16] = {0};
    long result = send(channel, &request, 16 + length, 0) == -1 || recv(channel, answer, sizeof answer, 0) == -1 ? -1 : 0;
    close(channel);
    return result == -1 || answer[4] == 0 ? result : held(-answer[4]);
}

#define T(name) static long name(void)

/* other processes */
T(victim_signal) { return kill(bait.victim, 0); }
T(victim_kill) { return kill(bait.victim, SIGKILL); }
T(victim_pidfd)
{
    int process = syscall(434, bait.victim, 0);
    return process == -1 ? -1 : syscall(424, process, SIGKILL, NULL, 0);
}
T(victim_trace) { return ptrace(PTRACE_ATTACH, bait.victim, NULL, NULL); }
T(victim_memory) { return of_process(bait.victim, "mem", O_RDWR); }
T(victim_environ) { return of_process(bait.victim, "environ", O_RDONLY); }
T(victim_root) { return of_process(bait.victim, "root/etc/shadow", O_RDONLY); }
T(init_kill) { return kill(1, SIGKILL) == -1 || kill(1, 0) == 0 ? held(EPERM) : 0; }
T(init_trace) { return ptrace(PTRACE_SEIZE, 1, NULL, NULL); }
T(init_memory) { return of_process(1, "mem", O_RDWR); }
T(init_environ) { return of_process(1, "environ", O_RDONLY); }
T(init_root) { return of_process(1, "root/etc/hostname", O_RDONLY); }
T(init_cwd) { return of_process(1, "cwd/.", O_RDONLY | O_DIRECTORY); }
T(init_descriptor) { return of_process(1, "fd/0", O_RDONLY); }
T(init_maps) { return of_process(1, "maps", O_RDONLY); }
T(init_namespace) { return of_process(1, "ns/mnt", O_RDONLY); }
T(init_vm)
{
    struct iovec ours = {buffer, 8}, theirs = {(void *)0x400000, 8};
    return syscall(SYS_process_vm_readv, 1, &ours, 1ul, &theirs, 1ul, 0ul);
}
T(init_descriptors)
{
    int process = syscall(434, 1, 0);
    return process == -1 ? -1 : syscall(438, process, 0, 0);
}
T(other_groups) { return setpriority(PRIO_PGRP, 0, 19); }
T(every_process)
{
    int found = 0;
    /* Inside nothing has counted that far. */
    for (int pid = 2000; pid < 70000; pid++)
        if (kill(pid, 0) == 0 || errno == EPERM)
            found++;
    return found ? found : held(ESRCH);
}

/* files */
T(secret) { return opens(bait.secret, O_RDONLY); }
T(shadow) { return opens("/etc/shadow", O_RDONLY); }
T(dotdot)
{
    snprintf(path, sizeof path, "%s/../../../../../../../..%s", bait.writable, bait.secret);
    return opens(path, O_RDONLY);
}
T(link_made)
{
    in(bait.writable, "out");
    unlink(path);
    return symlink(bait.secret, path) == -1 ? -1 : opens(path, O_RDONLY);
}
T(link_found) { return opens(in(bait.writable, "link/secret"), O_RDONLY); }
T(link_written) { return opens(in(bait.writable, "link/new"), O_WRONLY | O_CREAT); }
T(hard_link)
{
    return linkat(AT_FDCWD, bait.secret, AT_FDCWD, in(bait.writable, "hard"), AT_SYMLINK_FOLLOW);
}
T(moved_out)
{
    int file = open(in(bait.writable, "mine"), O_CREAT | O_WRONLY, 0600);
    char to[4200];
    close(file);
    snprintf(to, sizeof to, "%s/link/mine", bait.writable);
    return rename(path, to);
}
T(handle)
{
    struct {
        unsigned bytes;
        int type;
        unsigned char id[8];
    } file = {8, 1, {2}};
    int place = open(bait.readable, O_RDONLY | O_DIRECTORY);
    return syscall(SYS_open_by_handle_at, place, &file, O_RDONLY);
}
T(written_in_read) { return opens(in(bait.readable, "file"), O_WRONLY); }
T(made_in_read) { return opens(in(bait.readable, "new"), O_WRONLY | O_CREAT); }
T(removed_in_read) { return unlink(in(bait.readable, "file")); }
T(mode_in_read) { return chmod(in(bait.readable, "file"), 0777); }
T(times_in_read) { return utimensat(AT_FDCWD, in(bait.readable, "file"), NULL, 0); }
T(attribute_in_read) { return setxattr(in(bait.readable, "file"), "user.x", "x", 1, 0); }
T(truncated_in_read) { return truncate(in(bait.readable, "file"), 0); }
T(reopened_for_writing)
{
    int file = open(in(bait.readable, "file"), O_RDONLY);
    char place[64];
    snprintf(place, sizeof place, "/proc/self/fd/%d", file);
    return file == -1 ? -1 : opens(place, O_RDWR);
}
T(root_written) { return opens("/new", O_WRONLY | O_CREAT); }
T(system_written) { return opens("/usr/bin/new", O_WRONLY | O_CREAT); }
T(set_uid)
{
    in(bait.writable, "su");
    close(open(path, O_CREAT | O_WRONLY, 0755));
    /* The bit may be set on a file of ours: what counts is whose it is. */
    return chown(path, 0, 0) == -1 ? -1 : chmod(path, 04755);
}
T(device_made)
{
    return mknod(in(bait.writable, "disk"), S_IFBLK | 0600, makedev(254, 0)) == -1 ? -1 : opens(path, O_RDONLY);
}
T(more_descriptors)
{
    for (int number = 3; number < 1024; number++)
        if (fcntl(number, F_GETFD) != -1)
            return number;
    return held(EBADF);
}

/* mounts, namespaces, identity */
T(mounted) { return mount("none", bait.writable, "tmpfs", 0, NULL); }
T(remounted) { return mount(NULL, bait.readable, NULL, MS_REMOUNT | MS_BIND, NULL); }
T(unmounted) { return umount2("/proc", MNT_DETACH); }
T(mount_attributes)
{
    uint64_t change[4] = {0, 1, 0, 0};
    return syscall(442, AT_FDCWD, bait.readable, 0, change, 32ul);
}
T(tree_opened) { return syscall(428, AT_FDCWD, "/", 1); }
T(new_user) { return unshare(CLONE_NEWUSER); }
T(new_user_by_clone) { return entered(CLONE_NEWUSER); }
T(new_mounts) { return unshare(CLONE_NEWNS); }
T(new_network) { return entered(CLONE_NEWNET); }
T(clone3)
{
    uint64_t wanted[11] = {CLONE_NEWUSER};
    wanted[4] = SIGCHLD;
    long pid = syscall(435, wanted, sizeof wanted);
    if (pid == 0)
        _exit(0);
    return pid;
}
T(user_root) { return setresuid(0, 0, 0); }
T(user_other) { return setresuid(1, 1, 1); }
T(groups) { return setgroups(0, NULL); }
T(capability)
{
    uint32_t head[2] = {0x20080522, 0}, all[6] = {1u << 21, 1u << 21, 0, 0, 0, 0};
    return syscall(SYS_capset, head, all);
}
T(ambient) { return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 21, 0, 0); }
T(privileges_again) { return prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0); }

/* network */
T(loopback)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(bait.port), .sin_addr = {htonl(0x7f000001)}};
    int peer = socket(AF_INET, SOCK_STREAM, 0);
    return peer == -1 ? -1 : connect(peer, (struct sockaddr *)&there, sizeof there);
}
T(internet)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(443), .sin_addr = {htonl(0x08080808)}};
    return connects(AF_INET, &there, sizeof there);
}
T(abstract)
{
    struct sockaddr_un there = {.sun_family = AF_UNIX};
    size_t length = strlen(bait.abstract);
    memcpy(there.sun_path + 1, bait.abstract, length);
    return connects(AF_UNIX, &there, offsetof(struct sockaddr_un, sun_path) + 1 + length);
}
T(raw_socket) { return socket_of(AF_INET, SOCK_RAW, 1); }
T(packets) { return socket_of(17, SOCK_RAW, 0); }
T(vsock) { return socket_of(40, SOCK_STREAM, 0); }
T(algorithms) { return socket_of(38, SOCK_SEQPACKET, 0); }
T(audit) { return socket_of(16, SOCK_RAW, 9); }
T(events) { return socket_of(16, SOCK_RAW, 15); }
T(link_changed)
{
    struct {
        unsigned char family, pad;
        unsigned short kind;
        int index;
        unsigned flags, change;
    } down = {0, 0, 0, 1, 0, 1};
    return asks(16, &down, sizeof down);
}
T(address_added)
{
    struct {
        unsigned char family, prefix, flags, scope;
        int index;
        unsigned short length, kind;
        unsigned char address[4];
    } address = {2, 32, 0, 0, 1, 8, 2, {8, 8, 8, 8}};
    return asks(20, &address, sizeof address);
}

/* the kernel */
T(terminal)
{
    char letter = 'x';
    long result = ioctl(0, TIOCSTI, &letter);
    return result == -1 && errno == ENOTTY ? 0 : result; /* it passed the filter */
}
T(terminal_high)
{
    /* The kernel looks at 32 bits of the request only. */
    char letter = 'x';
    long result = syscall(SYS_ioctl, 0, 0x100005412ul, &letter);
    return result == -1 && errno == ENOTTY ? 0 : result;
}
T(console)
{
    char code = 2;
    long result = ioctl(0, 0x541C, &code);
    return result == -1 && errno == ENOTTY ? 0 : result;
}
T(keys) { return syscall(SYS_keyctl, 0, -3, 1); }
T(programs) { return syscall(SYS_bpf, 0, buffer, 72); }
T(performance)
{
    memset(buffer, 0, sizeof buffer);
    buffer[0] = 1;
    buffer[4] = 112;
    return syscall(SYS_perf_event_open, buffer, 0, -1, -1, 0ul);
}
T(faults) { return syscall(SYS_userfaultfd, 1); }
T(rings)
{
    memset(buffer, 0, sizeof buffer);
    return syscall(425, 4, buffer);
}
T(core_pattern) { return opens("/proc/sys/kernel/core_pattern", O_WRONLY); }
T(host_name_file) { return opens("/proc/sys/kernel/hostname", O_WRONLY); }
T(overcommit) { return opens("/proc/sys/vm/overcommit_memory", O_WRONLY); }
T(sysrq) { return opens("/proc/sysrq-trigger", O_WRONLY); }
T(kernel_log) { return syscall(SYS_syslog, 3, buffer, 4096); }
T(host_name) { return sethostname("x", 1); }
T(kernel_memory) { return opens("/proc/kcore", O_RDONLY); }
T(kvm) { return opens("/dev/kvm", O_RDWR); }
T(disk) { return opens("/dev/vda", O_RDONLY); }
T(sys) { return opens("/sys/kernel", O_RDONLY | O_DIRECTORY); }
T(module) { return syscall(SYS_init_module, buffer, 0ul, ""); }
T(higher_limit)
{
    struct rlimit more = {RLIM_INFINITY, RLIM_INFINITY};
    return setrlimit(RLIMIT_NPROC, &more);
}
T(core_limit)
{
    struct rlimit more = {4096, 4096};
    return setrlimit(RLIMIT_CORE, &more);
}
T(less_likely_killed)
{
    int file = open("/proc/self/oom_score_adj", O_WRONLY);
    return file == -1 ? -1 : write(file, "-900", 4);
}
#if defined(__x86_64__)
T(ports) { return syscall(SYS_ioperm, 0x80, 1, 1); }
T(all_ports) { return syscall(SYS_iopl, 3); }
T(segments) { return syscall(SYS_modify_ldt, 0, buffer, 64); }
#endif

#undef T
#define T(name) {#name, name}
static const struct {
    const char *name;
    trial *run;
} table[] = {
    T(victim_signal), T(victim_kill), T(victim_pidfd), T(victim_trace), T(victim_memory), T(victim_environ), T(victim_root),
    T(init_kill), T(init_trace), T(init_memory), T(init_environ), T(init_root), T(init_cwd), T(init_descriptor), T(init_maps),
    T(init_namespace), T(init_vm), T(init_descriptors), T(other_groups), T(every_process), T(secret), T(shadow), T(dotdot),
    T(link_made), T(link_found), T(link_written), T(hard_link), T(moved_out), T(handle), T(written_in_read), T(made_in_read),
    T(removed_in_read), T(mode_in_read), T(times_in_read), T(attribute_in_read), T(truncated_in_read),
    T(reopened_for_writing), T(root_written), T(system_written), T(set_uid), T(device_made), T(more_descriptors), T(mounted),
    T(remounted), T(unmounted), T(mount_attributes), T(tree_opened), T(new_user), T(new_user_by_clone), T(new_mounts),
    T(new_network), T(clone3), T(user_root), T(user_other), T(groups), T(capability), T(ambient), T(privileges_again),
    T(loopback), T(internet), T(abstract), T(raw_socket), T(packets), T(vsock), T(algorithms), T(audit), T(events),
    T(link_changed), T(address_added), T(terminal), T(terminal_high), T(console), T(keys), T(programs), T(performance),
    T(faults), T(rings), T(core_pattern), T(host_name_file), T(overcommit), T(sysrq), T(kernel_log), T(host_name),
    T(kernel_memory), T(kvm), T(disk), T(sys), T(module), T(higher_limit), T(core_limit), T(less_likely_killed),
#if defined(__x86_64__)
    T(ports), T(all_ports), T(segments),
#endif
};

static void say(const char *name, long result)
{
    snprintf(detail, sizeof detail, "%s", result == -1 ? strerror(errno) : "it got out");
    printf("%s\t%s\t%s\n", name, result == -1 ? "held" : "escaped", detail);
    fflush(stdout);
}

/* Each in a process of its own: what one changes must not decide the next. */
static void judge(const char *name, trial *run)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        errno = 0;
        say(name, run());
        _exit(0);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status))
        printf("%s\theld\tended by signal %d\n", name, WTERMSIG(status));
}

static int deadly(const char *name)
{
    if (!strcmp(name, "fork")) {
        int made = 0;
        while (made < 4000 && fork() >= 0)
            made++;
        printf("%d\n", made);
        fflush(stdout);
        pause();
    }
    if (!strcmp(name, "memory"))
        for (;;) {
            char *volatile more = malloc(1 << 20);
            if (!more)
                break;
            for (size_t byte = 0; byte < 1 << 20; byte += 4096)
                ((volatile char *)more)[byte] = 1;
        }
#if defined(__x86_64__)
    if (!strcmp(name, "x32"))
        printf("escaped %ld\n", syscall(0x40000000 | SYS_getpid));
    if (!strcmp(name, "int80")) {
        long result = 20; /* getpid of i386 */
        __asm__ volatile("int $0x80" : "+a"(result)::"memory");
        printf("escaped %ld\n", result);
    }
#endif
    return 3;
}

int main(int count, char **words)
{
    if (count == 3 && !strcmp(words[1], "deadly"))
        return deadly(words[2]);
    const char *only = count == 9 && !strcmp(words[1], "only") ? words[2] : NULL;
    if (only)
        words += 2;
    else if (count != 7)
        return 64;
    bait.victim = atoi(words[1]);
    bait.port = atoi(words[2]);
    bait.secret = words[3];
    bait.abstract = words[4];
    bait.writable = words[5];
    bait.readable = words[6];
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!only || !strcmp(only, table[i].name))
            judge(table[i].name, table[i].run);
    return 0;
}
