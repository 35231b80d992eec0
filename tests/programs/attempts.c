/* Ways out of a sandbox, by raw system calls of the target. `probe attempt NAME` says "refused ERRNO" with code 0, or "allowed" with code 1;
   "absent" with code 65 where the kernel, the emulator or the C library has no such call. An attempt that works has changed something. */

#include "portable.h"

#if defined(__linux__)

#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#define CALL(name, ...) return syscall(SYS_##name __VA_OPT__(, ) __VA_ARGS__)
#define TRY(name) static long try_##name(void)

static char scratch[4096];

static long absent(void)
{
    errno = ENOSYS;
    return -1;
}

static long opened(const char *path, int flags)
{
    return open(path, flags);
}

static long put(const char *path, const char *text)
{
    int file = open(path, O_WRONLY);
    return file == -1 ? -1 : write(file, text, strlen(text));
}

static long reached(const char *address, int port)
{
    char text[8];
    snprintf(text, sizeof text, "%d", port);
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *found;
    if (getaddrinfo(address, text, &wanted, &found))
        return absent();
    int peer = socket(found->ai_family, SOCK_STREAM, 0);
    return peer == -1 ? -1 : connect(peer, found->ai_addr, found->ai_addrlen);
}

TRY(mount) { return mount("none", "/tmp", "tmpfs", 0, NULL); }
TRY(bind) { return mount("/", "/tmp", NULL, MS_BIND | MS_REC, NULL); }
TRY(remount) { return mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL); }
TRY(umount) { return umount2("/proc", MNT_DETACH); }
TRY(chroot) { return chroot("/tmp"); }
TRY(pivot) { CALL(pivot_root, "/tmp", "/tmp"); }
TRY(unshare_user) { CALL(unshare, 0x10000000); }
TRY(unshare_mount) { CALL(unshare, 0x00020000); }
TRY(unshare_net) { CALL(unshare, 0x40000000); }
TRY(setns)
{
    int file = open("/proc/1/ns/mnt", O_RDONLY);
    return file == -1 ? -1 : syscall(SYS_setns, file, 0);
}
TRY(ptrace) { return ptrace(PTRACE_ATTACH, 1, NULL, NULL); }
TRY(trace_parent) { return ptrace(PTRACE_ATTACH, getppid(), NULL, NULL); }
TRY(process_memory)
{
    struct iovec ours = {scratch, 8}, theirs = {(void *)0x400000, 8};
    CALL(process_vm_readv, 1, &ours, 1ul, &theirs, 1ul, 0ul);
}
TRY(parent_memory) { return opened("/proc/1/mem", O_RDWR); }
TRY(keyctl) { CALL(keyctl, 0, -3, 1); }
TRY(add_key) { CALL(add_key, "user", "roost", "x", 1ul, -3); }
TRY(bpf) { CALL(bpf, 5, scratch, 48); }
TRY(perf)
{
    memset(scratch, 0, sizeof scratch);
    scratch[4] = 112;
    CALL(perf_event_open, scratch, 0, -1, -1, 0ul);
}
TRY(io_uring)
{
    memset(scratch, 0, sizeof scratch);
    CALL(io_uring_setup, 1, scratch);
}
TRY(userfaultfd) { CALL(userfaultfd, 0); }
TRY(module) { CALL(init_module, scratch, 1ul, ""); }
TRY(kexec) { CALL(kexec_load, 0ul, 0ul, NULL, 0ul); }
TRY(reboot) { CALL(reboot, 0xfee1dead, 672274793, 0, NULL); }
TRY(swapoff) { CALL(swapoff, "/tmp"); }
TRY(acct) { CALL(acct, NULL); }
TRY(hostname) { CALL(sethostname, "x", 1ul); }
TRY(settime)
{
    struct timespec when = {1, 0};
    return clock_settime(CLOCK_REALTIME, &when);
}
TRY(syslog) { CALL(syslog, 3, scratch, 4096); }
TRY(setuid) { return setuid(0) ? -1 : getuid() == 0 ? setgroups(0, NULL) : -1; }
TRY(capset)
{
    uint32_t head[2] = {0x20080522, 0}, all[6] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
    CALL(capset, head, all);
}
TRY(mknod) { return mknod("/tmp/disk", S_IFBLK | 0600, makedev(8, 0)); }
TRY(device) { return opened("/dev/sda", O_RDONLY); }
TRY(kernel_memory) { return opened("/dev/mem", O_RDONLY); }
TRY(kcore) { return opened("/proc/kcore", O_RDONLY); }
TRY(kvm) { return opened("/dev/kvm", O_RDWR); }
TRY(sysrq) { return put("/proc/sysrq-trigger", "h"); }
TRY(core_pattern) { return put("/proc/sys/kernel/core_pattern", "|/tmp/x"); }
TRY(sysctl) { return put("/proc/sys/kernel/hostname", "x"); }
TRY(uevent) { return put("/sys/kernel/uevent_helper", "/tmp/x"); }
TRY(cgroup) { return mkdir("/sys/fs/cgroup/escape", 0755); }
TRY(release_agent) { return put("/sys/fs/cgroup/release_agent", "/tmp/x"); }
TRY(init_root) { return opened("/proc/1/root/etc/shadow", O_RDONLY); }
TRY(shadow) { return opened("/etc/shadow", O_RDONLY); }
TRY(home) { return opened("/root", O_RDONLY | O_DIRECTORY); }
TRY(dotdot) { return opened("../../../../../../../../etc/shadow", O_RDONLY); }
TRY(link_out)
{
    unlink("/tmp/out");
    return symlink("/etc/shadow", "/tmp/out") ? -1 : opened("/tmp/out", O_RDONLY);
}
TRY(handle)
{
    struct {
        unsigned bytes;
        int type;
        unsigned char id[8];
    } file = {8, 1, {2}};
    CALL(open_by_handle_at, AT_FDCWD, &file, O_RDONLY);
}
TRY(docker)
{
    struct sockaddr_un place = {.sun_family = AF_UNIX, .sun_path = "/run/docker.sock"};
    int peer = socket(AF_UNIX, SOCK_STREAM, 0);
    return peer == -1 ? -1 : connect(peer, (struct sockaddr *)&place, sizeof place);
}
TRY(abstract)
{
    /* A socket of the host in the abstract name space, which no mount hides. */
    struct sockaddr_un place = {.sun_family = AF_UNIX, .sun_path = "\0/tmp/.X11-unix/X0"};
    int peer = socket(AF_UNIX, SOCK_STREAM, 0);
    return peer == -1 ? -1 : connect(peer, (struct sockaddr *)&place, sizeof(sa_family_t) + 18);
}
TRY(loopback) { return reached("127.0.0.1", getenv("PROBE_PORT") ? atoi(getenv("PROBE_PORT")) : 22); }
TRY(loopback6) { return reached("::1", getenv("PROBE_PORT") ? atoi(getenv("PROBE_PORT")) : 22); }
TRY(internet) { return reached("192.0.2.1", 443); }
TRY(metadata) { return reached("169.254.169.254", 80); }
TRY(raw) { return socket(AF_INET, SOCK_RAW, 1); }
TRY(packet) { return socket(17, SOCK_RAW, 0); }
TRY(vsock) { return socket(40, SOCK_STREAM, 0); }
TRY(netlink_audit) { return socket(16, SOCK_RAW, 9); }
TRY(kill_init) { return kill(1, SIGKILL) ? -1 : kill(1, 0) ? -1 : absent(); }
TRY(kill_host)
{
    const char *text = getenv("PROBE_PID");
    return text ? kill(atoi(text), SIGKILL) : absent();
}
TRY(terminal_input)
{
    char letter = 'x';
    int terminal = open("/dev/tty", O_RDWR);
    return ioctl(terminal == -1 ? 0 : terminal, TIOCSTI, &letter);
}
TRY(priority) { return setpriority(PRIO_PROCESS, 0, -20); }
TRY(limits)
{
    struct rlimit more = {RLIM_INFINITY, RLIM_INFINITY};
    return setrlimit(RLIMIT_NOFILE, &more);
}
TRY(setuid_file) { return put("/usr/bin/su", "x"); }
TRY(program_file) { return put("/proc/self/exe", "x"); }
TRY(personality_trace) { CALL(ptrace, 16, 1, 0, 0); }
TRY(fanotify) { CALL(fanotify_init, 0, 0); }
TRY(quota) { CALL(quotactl, 0x800001, "/", 0, scratch); }

#undef TRY
#define TRY(name) {#name, try_##name}

static const struct {
    const char *name;
    long (*run)(void);
} all[] = {
    TRY(mount), TRY(bind), TRY(remount), TRY(umount), TRY(chroot), TRY(pivot), TRY(unshare_user), TRY(unshare_mount),
    TRY(unshare_net), TRY(setns), TRY(ptrace), TRY(trace_parent), TRY(process_memory), TRY(parent_memory), TRY(keyctl),
    TRY(add_key), TRY(bpf), TRY(perf), TRY(io_uring), TRY(userfaultfd), TRY(module), TRY(kexec), TRY(reboot), TRY(swapoff),
    TRY(acct), TRY(hostname), TRY(settime), TRY(syslog), TRY(setuid), TRY(capset), TRY(mknod), TRY(device),
    TRY(kernel_memory), TRY(kcore), TRY(kvm), TRY(sysrq), TRY(core_pattern), TRY(sysctl), TRY(uevent), TRY(cgroup),
    TRY(release_agent), TRY(init_root), TRY(shadow), TRY(home), TRY(dotdot), TRY(link_out), TRY(handle), TRY(docker),
    TRY(abstract), TRY(loopback), TRY(loopback6), TRY(internet), TRY(metadata), TRY(raw), TRY(packet), TRY(vsock),
    TRY(netlink_audit), TRY(kill_init), TRY(kill_host), TRY(terminal_input), TRY(priority), TRY(limits), TRY(setuid_file),
    TRY(program_file), TRY(personality_trace), TRY(fanotify), TRY(quota),
};

int attempts(int count, char **words)
{
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        printf("%s\n", all[i].name);
    return 0;
}

/* Each in a process of its own, since the answer of seccomp may be a signal. */
static int judged(long (*run)(void))
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        errno = 0;
        long result = run();
        if (result != -1) {
            printf("allowed\n");
            exit(1);
        }
        if (errno == ENOSYS) {
            printf("absent\n");
            exit(UNSUPPORTED);
        }
        printf("refused %s\n", strerror(errno));
        exit(0);
    }
    int status = 0;
    if (pid == -1 || waitpid(pid, &status, 0) == -1)
        return 2;
    if (!WIFSIGNALED(status))
        return WEXITSTATUS(status);
    printf("refused by signal %d\n", WTERMSIG(status));
    return 0;
}

/* attempt NAME...; "all" for every one, each on a line after its name; the code is then 1 if anything was allowed. */
int attempt(int count, char **words)
{
    int every = count == 1 && !strcmp(words[0], "all"), code = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (int word = 0; word < count; word++)
            if (every || !strcmp(words[word], all[i].name)) {
                if (every || count > 1)
                    printf("%s: ", all[i].name);
                int one = judged(all[i].run);
                code = every || count > 1 ? code | (one == 1) : one;
            }
    return code;
}

#endif
