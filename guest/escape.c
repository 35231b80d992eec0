// The hostile stand-in: runs in a jail in place of the hypervisor and tries to get out.
//
// usage: escape VICTIM PORT SECRET SOCKET ABSTRACT READ_FD WRITE_FD TTY_FD    every attempt of the table below
//        escape only NAME                                                    one attempt of the table
//        escape x32 | int80 | memory BYTES | execute PATH                    one attempt that may end the process
//
// VICTIM is a process of the host, PORT a TCP port on the host's loopback, SECRET a private file, SOCKET and ABSTRACT unix
// sockets that listen; the descriptors are a file open for reading, one open for writing, and a terminal.
// One line for each attempt: name, TAB, "held" or "escaped", TAB, detail. Nothing here does lasting harm where it succeeds.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <netinet/in.h>

static struct {
    int victim, port, read_fd, write_fd, terminal;
    const char *secret, *socket, *abstract;
} bait;
static char detail[200];
static char buffer[4096];

enum { MANY = 400, MAGIC_TIOCLINUX = 0x541C };

// An attempt returns a value >= 0 when it got out, or -1 with errno set when it was held.
typedef long attempt(void);

static long held(int why) { errno = why; return -1; }

static long try_open(const char *path, int flags) {
    int fd = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
    if (fd >= 0) close(fd);
    return fd;
}

static long try_open_proc(const char *format, int number, int flags) {
    char path[64];
    snprintf(path, sizeof path, format, number);
    return try_open(path, flags);
}

// The call got past every permission check when it fails by `reached`.
static long past_checks(long result, int reached) {
    return result >= 0 || errno == reached ? 0 : -1;
}

static long try_socket(int family, int type, int protocol) {
    int fd = socket(family, type, protocol);
    if (fd >= 0) close(fd);
    return fd;
}

static long try_connect(int family, int type, const void *address, socklen_t length) {
    int fd = socket(family, type | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    int result = connect(fd, address, length), why = errno;
    close(fd);
    errno = why;
    return past_checks(result, EINPROGRESS);
}

static long try_inet(const char *host, int port, int type) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, host, &address.sin_addr);
    return try_connect(AF_INET, type, &address, sizeof address);
}

static long try_unix(const char *name, int abstract_name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    if (length + 1 >= sizeof address.sun_path) return held(ENAMETOOLONG);
    memcpy(address.sun_path + abstract_name, name, length);
    return try_connect(AF_UNIX, SOCK_STREAM, &address, offsetof(struct sockaddr_un, sun_path) + length + 1);
}

static long try_clone(unsigned long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid(pid, NULL, 0);
    return pid;
}

// ---------------------------------------------------------------- files
static long read_shadow(void) { return try_open("/etc/shadow", O_RDONLY); }
static long read_passwd(void) { return try_open("/etc/passwd", O_RDONLY); }
static long read_secret(void) { return try_open(bait.secret, O_RDONLY); }
static long write_secret(void) { return try_open(bait.secret, O_WRONLY); }
static long list_tmp(void) { return try_open("/tmp", O_RDONLY | O_DIRECTORY); }
static long list_home(void) { return try_open("/home", O_RDONLY | O_DIRECTORY); }
static long write_root(void) { return try_open("/x", O_CREAT | O_RDWR); }
static long make_directory(void) { return mkdir("/y", 0777); }
static long write_dev(void) { return try_open("/dev/x", O_CREAT | O_RDWR); }
static long write_own_binary(void) { return try_open("/proc/self/exe", O_RDWR); }
static long write_library(void) { return try_open("/lib64/ld-linux-x86-64.so.2", O_RDWR); }
static long proc_environ(void) { return try_open("/proc/1/environ", O_RDONLY); }
static long proc_victim(void) { return try_open_proc("/proc/%d/status", bait.victim, O_RDONLY); }
static long proc_memory(void) { return try_open_proc("/proc/%d/mem", bait.victim, O_RDWR); }
static long proc_fd(void) { return try_open("/proc/self/fd", O_RDONLY | O_DIRECTORY); }
static long sys_kernel(void) { return try_open("/sys/kernel", O_RDONLY | O_DIRECTORY); }
static long leave_cgroup(void) { return try_open("/sys/fs/cgroup/cgroup.procs", O_WRONLY); }
static long core_pattern(void) { return try_open("/proc/sys/kernel/core_pattern", O_WRONLY); }
static long sysrq(void) { return try_open("/proc/sysrq-trigger", O_WRONLY); }
static long dev_mem(void) { return try_open("/dev/mem", O_RDWR); }
static long dev_kmsg(void) { return try_open("/dev/kmsg", O_RDWR); }
static long dev_disk(void) { return past_checks(try_open("/dev/vda", O_RDONLY), EBUSY); }
static long dev_loop(void) { return try_open("/dev/loop-control", O_RDWR); }
static long dev_fuse(void) { return try_open("/dev/fuse", O_RDWR); }
static long dev_tun(void) { return try_open("/dev/net/tun", O_RDWR); }
static long dev_ptmx(void) { return try_open("/dev/ptmx", O_RDWR); }
static long dev_vsock(void) { return try_open("/dev/vsock", O_RDWR); }
static long dev_userfaultfd(void) { return try_open("/dev/userfaultfd", O_RDONLY); }

// ---------------------------------------------------------------- inherited descriptors
static long write_read_fd(void) { return pwrite(bait.read_fd, "x", 1, 0); }
static long reopen_by_proc(void) { return try_open_proc("/proc/self/fd/%d", bait.read_fd, O_RDWR); }
static long reopen_by_dev(void) { return try_open_proc("/dev/fd/%d", bait.read_fd, O_RDWR); }
static long walk_up(void) { return openat(bait.read_fd, "..", O_RDONLY); }
static long map_read_fd(void) {
    return mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, bait.read_fd, 0) == MAP_FAILED ? -1 : 0;
}
static long change_mode(void) {
    long result = fchmod(bait.write_fd, 04777);
    int why = errno;
    fchmod(bait.write_fd, 0600);
    errno = why;
    return result;
}
static long change_owner(void) { return fchown(bait.write_fd, getuid(), getgid()); }
static long set_attribute(void) { return syscall(SYS_fsetxattr, bait.write_fd, "user.x", "y", 1, 0); }
static long link_fd(void) { return linkat(bait.write_fd, "", AT_FDCWD, "/l", AT_EMPTY_PATH); }
static long find_leaked_fd(void) {
    for (int fd = 3; fd < 4096; fd++) {
        if (fd == bait.read_fd || fd == bait.write_fd || fd == bait.terminal) continue;
        if (fcntl(fd, F_GETFD) >= 0) {
            snprintf(detail, sizeof detail, "descriptor %d", fd);
            return 0;
        }
    }
    return held(EBADF);
}
static long type_into_terminal(void) {
    char letter = 'x';
    ioctl(bait.terminal, TIOCSCTTY, 0);
    return ioctl(bait.terminal, TIOCSTI, &letter);
}
static long paste_into_console(void) {
    char letter = 2;
    return ioctl(bait.terminal, MAGIC_TIOCLINUX, &letter);
}
static long open_terminal(void) { return try_open("/dev/tty", O_RDWR); }

// ---------------------------------------------------------------- processes
static long signal_victim(void) { return kill(bait.victim, 0); }
static long signal_parent(void) { return getppid() == 0 ? held(ESRCH) : kill(getppid(), 0); }
static long trace_victim(void) {
    long result = ptrace(PTRACE_SEIZE, bait.victim, 0, 0);
    if (result >= 0) ptrace(PTRACE_DETACH, bait.victim, 0, 0);
    return result;
}
static long read_victim_memory(void) {
    struct iovec ours = {buffer, 8}, theirs = {(void *)0x400000, 8};
    return past_checks(syscall(SYS_process_vm_readv, bait.victim, &ours, 1, &theirs, 1, 0), EFAULT);
}
static long pidfd_victim(void) { return syscall(SYS_pidfd_open, bait.victim, 0); }
static long compare_victim(void) { return syscall(SYS_kcmp, bait.victim, getpid(), 1, 0, 0); }
static long limit_victim(void) {
    struct rlimit limit;
    return prlimit(bait.victim, RLIMIT_CORE, NULL, &limit);
}

// ---------------------------------------------------------------- network
static long connect_unix(void) { return try_unix(bait.socket, 0); }
static long connect_abstract(void) { return try_unix(bait.abstract, 1); }
static long connect_loopback(void) { return try_inet("127.0.0.1", bait.port, SOCK_STREAM); }
static long connect_out(void) { return try_inet("192.0.2.1", 53, SOCK_DGRAM); }
static long socket_inet(void) { return try_socket(AF_INET, SOCK_STREAM, 0); }
static long socket_inet6(void) { return try_socket(AF_INET6, SOCK_DGRAM, 0); }
static long socket_raw(void) { return try_socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static long socket_vsock(void) { return try_socket(AF_VSOCK, SOCK_STREAM, 0); }
static long socket_packet(void) { return try_socket(AF_PACKET, SOCK_RAW, 0); }
static long socket_netlink(void) { return try_socket(AF_NETLINK, SOCK_RAW, 0); }
static long socket_crypto(void) { return try_socket(AF_ALG, SOCK_SEQPACKET, 0); }

// ---------------------------------------------------------------- mounts and namespaces
static long mount_tmpfs(void) { return mount("x", "/dev", "tmpfs", 0, NULL); }
static long remount_root(void) { return mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL); }
static long mount_proc(void) { return mount("p", "/dev", "proc", 0, NULL); }
static long unmount_root(void) { return umount2("/", MNT_DETACH); }
static long pivot_root(void) { return syscall(SYS_pivot_root, "/", "/"); }
static long change_root(void) { return chroot("/dev"); }
static long open_tree_clone(void) { return syscall(428, AT_FDCWD, "/", 1); }
static long fs_open(void) { return syscall(430, "tmpfs", 0); }
static long unlock_mount(void) {
    uint64_t attributes[4] = {0, 1, 0, 0};  // clear MOUNT_ATTR_RDONLY
    return syscall(442, AT_FDCWD, "/", 0, attributes, sizeof attributes);
}
static long unshare_user(void) { return unshare(CLONE_NEWUSER); }
static long unshare_all(void) { return unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID); }
static long clone_user(void) { return try_clone(CLONE_NEWUSER); }
static long clone3_user(void) {
    uint64_t arguments[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    long pid = syscall(435, arguments, sizeof arguments);
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid(pid, NULL, 0);
    return pid;
}
static long join_namespace(void) { return past_checks(syscall(SYS_setns, bait.read_fd, 0), EINVAL); }
static long make_device(void) { return mknod("/b", S_IFBLK | 0600, makedev(254, 0)); }
static long open_handle(void) {
    uint32_t handle[4] = {8, 1};
    return past_checks(syscall(SYS_open_by_handle_at, AT_FDCWD, handle, O_RDONLY), ESTALE);
}

// ---------------------------------------------------------------- identity
static long become_root(void) { return setuid(0); }
static long become_neighbour(void) { return setresuid(300002, 300002, 300002); }
static long join_root_group(void) { return setgid(0); }
static long add_groups(void) {
    gid_t root = 0;
    return syscall(SYS_setgroups, 1, &root);
}
static long take_capabilities(void) {
    uint32_t header[2] = {0x20080522, 0}, sets[6] = {~0u, ~0u, 0, ~0u, ~0u, 0};
    return syscall(SYS_capset, header, sets);
}

// ---------------------------------------------------------------- surface of the kernel
static long add_key(void) { return syscall(SYS_add_key, "user", "k", "v", 1, -3); }
static long join_keyring(void) { return syscall(SYS_keyctl, 0, -3, 0); }
static long bpf_map(void) {
    uint32_t attributes[32] = {1, 4, 4, 1};
    return syscall(SYS_bpf, 0, attributes, sizeof attributes);
}
static long perf_event(void) {
    uint32_t attributes[28] = {1, sizeof attributes};  // PERF_TYPE_SOFTWARE
    return syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0);
}
static long io_uring(void) { return syscall(425, 1, memset(buffer, 0, 256)); }
static long userfaultfd(void) { return syscall(SYS_userfaultfd, O_CLOEXEC | 1); }
static long shared_memory(void) { return syscall(SYS_shmget, 0x5353, 4096, 01600); }
static long semaphores(void) { return syscall(SYS_semget, 0, 1, 0600); }
static long message_queue(void) { return syscall(SYS_msgget, 0, 0600); }
static long posix_queue(void) { return syscall(SYS_mq_open, "m", O_CREAT | O_RDWR, 0600, NULL); }
static long load_module(void) { return past_checks(syscall(SYS_init_module, buffer, 8, ""), ENOEXEC); }
static long unload_module(void) { return past_checks(syscall(SYS_delete_module, "no_such_module", 0), ENOENT); }
static long kexec(void) { return syscall(SYS_kexec_load, 0, 0, 0, 0); }
static long reboot_host(void) { return past_checks(syscall(SYS_reboot, 0xfee1dead, 672274793, 0, 0), EINVAL); }
static long read_kernel_log(void) { return syscall(SYS_syslog, 3, buffer, 64); }
static long name_host(void) { return sethostname("own", 3); }
static long set_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return clock_settime(CLOCK_REALTIME, &now);
}
static long swap_on(void) { return past_checks(syscall(SYS_swapon, "/no_such_file", 0), ENOENT); }
static long personality(void) { return syscall(SYS_personality, 0x0400000); }  // READ_IMPLIES_EXEC
static long watch_files(void) { return syscall(SYS_fanotify_init, 0x200, 0); }
static long newest_call(void) { return past_checks(syscall(467, AT_FDCWD, "/", 1, NULL, 0), EINVAL); }  // open_tree_attr
#ifdef __x86_64__
static long port_access(void) { return syscall(SYS_iopl, 3); }
static long segment_table(void) { return syscall(SYS_modify_ldt, 0, buffer, 64); }
#endif

// ---------------------------------------------------------------- execution
static long run_shell(void) {
    char *argv[] = {"sh", NULL}, *env[] = {NULL};
    return execve("/bin/sh", argv, env);
}
static long run_memory(void) {
    char *argv[] = {"x", NULL}, *env[] = {NULL};
    int fd = memfd_create("m", 0);
    if (fd < 0 || write(fd, "\177ELFxxxx", 8) < 0) return held(errno);
    long result = past_checks(syscall(SYS_execveat, fd, "", argv, env, AT_EMPTY_PATH), ENOEXEC);
    int why = errno;
    close(fd);
    errno = why;
    return result;
}
static long run_written_file(void) {
    char *argv[] = {"x", NULL}, *env[] = {NULL};
    return past_checks(syscall(SYS_execveat, bait.write_fd, "", argv, env, AT_EMPTY_PATH), ENOEXEC);
}

// ---------------------------------------------------------------- resources
static void *sleep_for_ever(void *nothing) {
    pause();
    return nothing;
}
static pid_t make_child(void) {
    pid_t pid = fork();
    if (pid < 0) pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) pause();
    return pid;
}
static long fork_bomb(void) {
    static pid_t children[MANY];
    int count = 0, why;
    while (count < MANY && (children[count] = make_child()) > 0) count++;
    why = errno;
    for (int i = 0; i < count; i++) kill(children[i], SIGKILL);
    while (waitpid(-1, NULL, 0) > 0) {  // in any order: the first may be the init of a namespace, which ends last
    }
    snprintf(detail, sizeof detail, "%d children", count);
    return count == MANY ? 0 : held(why);
}
static long thread_bomb(void) {
    pthread_attr_t small;
    pthread_t thread;
    int count = 0, why = 0;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    while (count < MANY && (why = pthread_create(&thread, &small, sleep_for_ever, NULL)) == 0) count++;
    snprintf(detail, sizeof detail, "%d threads", count);
    return count == MANY ? 0 : held(why);
}
static long fill_disk(void) { return pwrite(bait.write_fd, "x", 1, 64ll << 30); }
static long huge_file(void) { return ftruncate(bait.write_fd, 1ll << 40); }
static long dump_core(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_CORE, &limit);
    return limit.rlim_max ? 0 : held(EFBIG);
}
static long raise_limit(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max += 1000;
    return setrlimit(RLIMIT_NOFILE, &limit);
}
static long raise_priority(void) { return setpriority(PRIO_PROCESS, 0, -20); }
static long real_time(void) {
    struct sched_param parameters = {.sched_priority = 1};
    return syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &parameters);
}
static long lock_memory(void) {
    void *area = mmap(NULL, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return area == MAP_FAILED ? -1 : mlock(area, 16 << 20);
}
static long use_up_descriptors(void) {
    int count = 0, fd, why;
    while (count < 100000 && (fd = dup(bait.read_fd)) >= 0) count++;
    why = errno;
    for (fd = 3; fd < count + 16; fd++)
        if (fd != bait.read_fd && fd != bait.write_fd && fd != bait.terminal) close(fd);
    snprintf(detail, sizeof detail, "%d descriptors", count);
    return count == 100000 ? 0 : held(why);
}

static const struct {
    const char *name;
    attempt *run;
} attempts[] = {
    {"files: read /etc/shadow", read_shadow},
    {"files: read /etc/passwd", read_passwd},
    {"files: read another machine's secret", read_secret},
    {"files: write another machine's secret", write_secret},
    {"files: list /tmp of the host", list_tmp},
    {"files: list /home", list_home},
    {"files: write to /", write_root},
    {"files: make a directory", make_directory},
    {"files: write to /dev", write_dev},
    {"files: write to the own binary", write_own_binary},
    {"files: write to the interpreter", write_library},
    {"files: environment of pid 1", proc_environ},
    {"files: status of the victim", proc_victim},
    {"files: memory of the victim", proc_memory},
    {"files: /proc/self/fd", proc_fd},
    {"files: /sys", sys_kernel},
    {"files: leave the control group", leave_cgroup},
    {"files: set the core pattern", core_pattern},
    {"files: trigger sysrq", sysrq},
    {"files: /dev/mem", dev_mem},
    {"files: /dev/kmsg", dev_kmsg},
    {"files: the host's disk", dev_disk},
    {"files: /dev/loop-control", dev_loop},
    {"files: /dev/fuse", dev_fuse},
    {"files: /dev/net/tun", dev_tun},
    {"files: /dev/ptmx", dev_ptmx},
    {"files: /dev/vsock", dev_vsock},
    {"files: /dev/userfaultfd", dev_userfaultfd},
    {"descriptors: write to a read-only file", write_read_fd},
    {"descriptors: reopen read-write by /proc", reopen_by_proc},
    {"descriptors: reopen read-write by /dev/fd", reopen_by_dev},
    {"descriptors: walk up from a file", walk_up},
    {"descriptors: map a read-only file writable", map_read_fd},
    {"descriptors: make the disk set-uid", change_mode},
    {"descriptors: change the disk's owner", change_owner},
    {"descriptors: set an attribute of the disk", set_attribute},
    {"descriptors: link the disk elsewhere", link_fd},
    {"descriptors: find a leaked one", find_leaked_fd},
    {"descriptors: type into a terminal", type_into_terminal},
    {"descriptors: paste into the console", paste_into_console},
    {"descriptors: the controlling terminal", open_terminal},
    {"processes: signal the victim", signal_victim},
    {"processes: signal the parent", signal_parent},
    {"processes: trace the victim", trace_victim},
    {"processes: read the victim's memory", read_victim_memory},
    {"processes: pidfd of the victim", pidfd_victim},
    {"processes: compare with the victim", compare_victim},
    {"processes: limits of the victim", limit_victim},
    {"network: unix socket of the host", connect_unix},
    {"network: abstract socket of the host", connect_abstract},
    {"network: the host's loopback", connect_loopback},
    {"network: the world", connect_out},
    {"network: IPv4 socket", socket_inet},
    {"network: IPv6 socket", socket_inet6},
    {"network: raw socket", socket_raw},
    {"network: vsock", socket_vsock},
    {"network: packet socket", socket_packet},
    {"network: netlink", socket_netlink},
    {"network: kernel crypto socket", socket_crypto},
    {"mounts: mount a tmpfs", mount_tmpfs},
    {"mounts: remount the root writable", remount_root},
    {"mounts: mount /proc", mount_proc},
    {"mounts: unmount the root", unmount_root},
    {"mounts: pivot_root", pivot_root},
    {"mounts: chroot", change_root},
    {"mounts: open_tree", open_tree_clone},
    {"mounts: fsopen", fs_open},
    {"mounts: clear the read-only flag", unlock_mount},
    {"mounts: new user namespace", unshare_user},
    {"mounts: new mount, network and pid namespaces", unshare_all},
    {"mounts: new user namespace by clone", clone_user},
    {"mounts: new user namespace by clone3", clone3_user},
    {"mounts: join a namespace", join_namespace},
    {"mounts: make a device node", make_device},
    {"mounts: open by handle", open_handle},
    {"identity: become root", become_root},
    {"identity: become another machine", become_neighbour},
    {"identity: join root's group", join_root_group},
    {"identity: add groups", add_groups},
    {"identity: take all capabilities", take_capabilities},
    {"kernel: add a key", add_key},
    {"kernel: join a keyring", join_keyring},
    {"kernel: bpf", bpf_map},
    {"kernel: perf_event_open", perf_event},
    {"kernel: io_uring", io_uring},
    {"kernel: userfaultfd", userfaultfd},
    {"kernel: SysV shared memory", shared_memory},
    {"kernel: SysV semaphores", semaphores},
    {"kernel: SysV messages", message_queue},
    {"kernel: POSIX queue", posix_queue},
    {"kernel: load a module", load_module},
    {"kernel: unload a module", unload_module},
    {"kernel: kexec", kexec},
    {"kernel: reboot", reboot_host},
    {"kernel: read its log", read_kernel_log},
    {"kernel: name the host", name_host},
    {"kernel: set the clock", set_clock},
    {"kernel: swap on", swap_on},
    {"kernel: personality", personality},
    {"kernel: fanotify", watch_files},
    {"kernel: a call younger than the filter", newest_call},
#ifdef __x86_64__
    {"kernel: I/O ports", port_access},
    {"kernel: segment table", segment_table},
#endif
    {"execution: a shell", run_shell},
    {"execution: from memory", run_memory},
    {"execution: a file it wrote", run_written_file},
    {"resources: core dump", dump_core},
    {"resources: raise a limit", raise_limit},
    {"resources: highest priority", raise_priority},
    {"resources: real time", real_time},
    {"resources: lock memory", lock_memory},
    {"resources: fill the disk", fill_disk},
    {"resources: a file of 1 TiB", huge_file},
    {"resources: descriptors without end", use_up_descriptors},
    {"resources: 400 processes", fork_bomb},
    {"resources: 400 threads", thread_bomb},
};

static void report(const char *name, int escaped, const char *text) {
    printf("%s\t%s\t%s\n", name, escaped ? "escaped" : "held", text);
    fflush(stdout);
}

static int run_one(int count, char **words) {
    if (strcmp(words[1], "memory") == 0) {
        size_t size = count > 2 ? strtoull(words[2], NULL, 10) : 0, step = 1 << 20;
        for (size_t used = 0; used < size; used += step) {
            char *area = mmap(NULL, step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (area == MAP_FAILED) {
                report("resources: memory without end", 0, strerror(errno));
                return 0;
            }
            memset(area, 1, step);
        }
        report("resources: memory without end", 1, "it was given all");
        return 0;
    }
    if (strcmp(words[1], "execute") == 0 && count > 2) {
        char *argv[] = {words[2], NULL}, *env[] = {NULL};
        execve(words[2], argv, env);
        report("execution: another file of the jail", 0, strerror(errno));
        return 0;
    }
#ifdef __x86_64__
    if (strcmp(words[1], "x32") == 0) {
        long pid = syscall(0x40000000 | SYS_getpid);
        report("kernel: x32 entry", pid > 0, pid > 0 ? "" : "absent");
        return 0;
    }
    if (strcmp(words[1], "int80") == 0) {
        long pid;
        __asm__ volatile("int $0x80" : "=a"(pid) : "a"(20) : "memory");
        report("kernel: 32 bit entry", pid > 0, pid > 0 ? "" : "absent");
        return 0;
    }
#endif
    return 2;
}

static void run_attempt(size_t i) {
    detail[0] = 0;
    errno = 0;
    long result = attempts[i].run();
    const char *why = result >= 0 ? "" : strerror(errno);
    char text[300];
    snprintf(text, sizeof text, "%s%s%s", detail, detail[0] && why[0] ? ", " : "", why);
    report(attempts[i].name, result >= 0, text);
}

int main(int count, char **words) {
    if (count == 3 && strcmp(words[1], "only") == 0) {
        for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++)
            if (strcmp(attempts[i].name, words[2]) == 0) run_attempt(i);
        return 0;
    }
    if (count < 9) return count < 2 ? 2 : run_one(count, words);
    bait.victim = atoi(words[1]);
    bait.port = atoi(words[2]);
    bait.secret = words[3];
    bait.socket = words[4];
    bait.abstract = words[5];
    bait.read_fd = atoi(words[6]);
    bait.write_fd = atoi(words[7]);
    bait.terminal = atoi(words[8]);
    signal(SIGXFSZ, SIG_IGN);
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) run_attempt(i);
    return 0;
}
