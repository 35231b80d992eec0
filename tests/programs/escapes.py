#!/usr/bin/python3
"""Tries to get out of a sandbox with what Python brings.

usage: escapes.py all|NAME,NAME... VICTIM PORT SECRET ABSTRACT WRITE READ    one line for each: name, TAB, "held" or "escaped", TAB, why
       escapes.py start PROGRAM WORDS...                                     run a program of the host's own kind

The words are those of escape.c; `socket` listens beside SECRET, and `link` in WRITE and READ leads to its directory.
"""

# The attempts are the bare calls:
# ruff: noqa: PTH101, PTH102, PTH104, PTH108, PTH120, PTH208, PTH211, RET503, SIM115

import ctypes
import mmap
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
VICTIM = PORT = 0
SECRET = ABSTRACT = WRITE = READ = ""
TOOLS = {
    "su": "su -c id",
    "sudo": "sudo -n id",
    "mount": "mount -t tmpfs none /tmp",
    "bind": "mount --bind / /tmp",
    "umount": "umount -l /proc",
    "unshare": "unshare -Ur id",
    "unshare_mounts": "unshare -m id",
    "nsenter": "nsenter -t 1 -m -- id",
    "setpriv": "setpriv --reuid 0 --clear-groups id",
    "chroot": "chroot /tmp id",
    "kill": "kill -9 {victim}",
    "pkill": "pkill -9 -P 0",
    "renice": "renice -n -19 -p 1",
    "prlimit": "prlimit --pid 1 --nofile=1000000",
    "date": "date -s 2001-01-01",
    "mknod": "mknod /tmp/disk b 8 0",
    "dmesg": "dmesg",
    "chown": "chown 0:0 {write}/mine",
    "losetup": "losetup -f {write}/mine",
    "sysctl": "sysctl -w kernel.hostname=x",
    "hostname": "hostname x",
    "insmod": "insmod {write}/mine",
    "swapoff": "swapoff /tmp",
    "network_down": "ip link set lo down",
    "network_up": "ip link add type veth",
    "bpf": "bpftool prog",
    "trace": "strace -p 1",
    "ipc_of_the_host": "ipcrm --all=shm -M 1",
}


def read(path):
    with open(path, "rb") as file:
        return file.read(64)


def write(path, flags=os.O_WRONLY):
    descriptor = os.open(path, flags, 0o600)
    os.write(descriptor, b"x")
    os.close(descriptor)


def mine():
    path = f"{WRITE}/mine"
    with open(path, "w") as file:
        file.write("mine")
    return path


def link_made():
    path = f"{WRITE}/out"
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink(SECRET, path)
    return read(path)


def reopened(path):
    descriptor = os.open(path, os.O_RDONLY)
    write(f"/proc/self/fd/{descriptor}")


def mapped():
    descriptor = os.open(f"{READ}/file", os.O_RDWR)
    mmap.mmap(descriptor, 4)[0] = b"x"


def descriptor_parent():
    above = os.open("../../../..", os.O_RDONLY, dir_fd=os.open(READ, os.O_RDONLY))
    return os.read(os.open(SECRET[1:], os.O_RDONLY, dir_fd=above), 64)


def every_process():
    found = [name for name in os.listdir("/proc") if name.isdigit() and int(name) > 2000]
    if not found:
        raise ProcessLookupError("only our own processes are there")
    return found


def connects(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as peer:
        peer.settimeout(2)
        peer.connect(address)
        peer.sendall(b"x")
        if kind == socket.SOCK_DGRAM:
            peer.settimeout(0.3)
            try:
                peer.recv(1)
            except TimeoutError:
                return "nobody refused it"


def sends(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        peer.sendto(b"x", (host, 53))


def port_is_taken():
    """Here is the network of the host, where somebody listens on that port."""
    try:
        socket.create_server(("127.0.0.1", PORT), reuse_port=False).close()
    except OSError as error:
        return str(error)
    raise ConnectionError("the port is free: a network of its own")


def interfaces():
    found = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not found:
        raise ConnectionError("only lo")
    return found


def call(name, *words):
    ctypes.set_errno(0)
    result = getattr(LIBC, name)(*words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def vectors(pid):
    buffer = ctypes.create_string_buffer(8)
    ours = struct.pack("QQ", ctypes.addressof(buffer), 8)
    theirs = struct.pack("QQ", 0x400000, 8)
    call("process_vm_readv", pid, ours, 1, theirs, 1, 0)
    return buffer.raw


def kills_init():
    os.kill(1, signal.SIGKILL)
    os.kill(1, 0)
    raise PermissionError("it lives")


def starts(words):
    made = words.format(victim=VICTIM, write=WRITE).split()
    made[0] = (
        shutil.which(made[0], path="/usr/bin:/bin:/usr/sbin:/sbin") or sys.exit()
    )  # nothing is said of what is not installed
    mine()
    done = subprocess.run(made, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    if done.returncode:
        raise PermissionError(f"{done.returncode} {done.stderr[:80]!r}")
    return done.stdout[:80]


def higher(which, value):
    resource.setrlimit(which, (value, value))


def set_uid_file():
    path = mine()
    os.chown(path, 0, 0)
    os.chmod(path, 0o4755)


FILES = {
    "absolute": lambda: read(SECRET),
    "dotdot": lambda: read(f"{READ}/../../../../..{SECRET}"),
    "dotdot_relative": lambda: read(f"../../../../..{SECRET}"),
    "root_of_self": lambda: read(f"/proc/self/root{SECRET}"),
    "root_of_init": lambda: read(f"/proc/1/root{SECRET}"),
    "root_of_parent": lambda: read(f"/proc/{os.getppid()}/root{SECRET}"),
    "root_of_victim": lambda: read(f"/proc/{VICTIM}/root{SECRET}"),
    "root_of_thread": lambda: read(f"/proc/thread-self/root{SECRET}"),
    "directory_of_init": lambda: os.listdir("/proc/1/cwd/"),
    "descriptors_of_init": lambda: os.listdir("/proc/1/fd"),
    "link_made": link_made,
    "link_found": lambda: read(f"{WRITE}/link/secret"),
    "link_in_data": lambda: read(f"{READ}/link/secret"),
    "link_written": lambda: write(f"{WRITE}/link/new", os.O_WRONLY | os.O_CREAT),
    "hard_link": lambda: os.link(SECRET, f"{WRITE}/hard"),
    "moved_out": lambda: os.rename(mine(), f"{WRITE}/link/mine"),
    "copied_in": lambda: shutil.copy(SECRET, f"{WRITE}/copy"),
    "parent_by_descriptor": descriptor_parent,
    "others_in_tmp": lambda: os.listdir(os.path.dirname(SECRET)),
    "shadow": lambda: read("/etc/shadow"),
    "home_of_root": lambda: os.listdir("/root"),
    "homes": lambda: os.listdir("/home"),
    "etc": lambda: read("/etc/machine-id"),
    "var": lambda: os.listdir("/var/lib"),
    "boot": lambda: os.listdir("/boot"),
    "sys": lambda: os.listdir("/sys/kernel"),
    "run": lambda: os.listdir("/run"),
    "root_written": lambda: write("/new", os.O_WRONLY | os.O_CREAT),
    "system_written": lambda: write("/usr/bin/new", os.O_WRONLY | os.O_CREAT),
    "interpreter_written": lambda: write(sys.executable),
    "cache_written": lambda: write(os.path.dirname(os.__file__) + "/__pycache__/os.new", os.O_WRONLY | os.O_CREAT),
    "program_written": lambda: write(sys.argv[0]),
    "program_replaced": lambda: os.rename(mine(), sys.argv[0]),
    "beside_program": lambda: write(sys.argv[0] + ".new", os.O_WRONLY | os.O_CREAT),
    "read_only_written": lambda: write(f"{READ}/file"),
    "read_only_made": lambda: write(f"{READ}/new", os.O_WRONLY | os.O_CREAT),
    "read_only_removed": lambda: os.unlink(f"{READ}/file"),
    "read_only_renamed": lambda: os.rename(f"{READ}/file", f"{READ}/other"),
    "read_only_mode": lambda: os.chmod(f"{READ}/file", 0o777),
    "read_only_owner": lambda: os.chown(f"{READ}/file", 1, 1),
    "read_only_times": lambda: os.utime(f"{READ}/file"),
    "read_only_attribute": lambda: os.setxattr(f"{READ}/file", "user.x", b"x"),
    "read_only_cut": lambda: os.truncate(f"{READ}/file", 0),
    "read_only_linked": lambda: os.link(f"{READ}/file", f"{READ}/hard"),
    "read_only_reopened": lambda: reopened(f"{READ}/file"),
    "read_only_mapped": mapped,
    "set_uid": set_uid_file,
    "set_uid_of_caller": lambda: os.chmod(mine(), 0o4755),
    "set_gid_of_caller": lambda: os.fchmod(os.open(mine(), os.O_RDONLY), 0o2755),
    "set_uid_when_made": lambda: os.close(os.open(f"{WRITE}/made", os.O_WRONLY | os.O_CREAT, 0o4755)),
    "set_uid_as_node": lambda: os.mknod(f"{WRITE}/node", 0o104755),
    "capable_file": lambda: os.setxattr(mine(), "security.capability", b"\1\0\0\2" + b"\xff" * 16),
}
PROCESSES = {
    "init_environ": lambda: read("/proc/1/environ"),
    "init_memory": lambda: read("/proc/1/mem"),
    "init_maps": lambda: read("/proc/1/maps"),
    "init_vectors": lambda: vectors(1),
    "init_killed": kills_init,
    "init_traced": lambda: call("ptrace", 0x4206, 1, 0, 0),
    "victim_environ": lambda: read(f"/proc/{VICTIM}/environ"),
    "victim_memory": lambda: read(f"/proc/{VICTIM}/mem"),
    "victim_command": lambda: read(f"/proc/{VICTIM}/cmdline"),
    "victim_killed": lambda: os.kill(VICTIM, signal.SIGKILL),
    "victim_signalled": lambda: os.kill(VICTIM, 0),
    "victim_descriptor": lambda: os.pidfd_open(VICTIM),
    "victim_traced": lambda: call("ptrace", 16, VICTIM, 0, 0),
    "victim_vectors": lambda: vectors(VICTIM),
    "victim_priority": lambda: os.setpriority(os.PRIO_PROCESS, VICTIM, 19),
    "victim_processors": lambda: os.sched_setaffinity(VICTIM, {0}),
    "every_process": every_process,
    "group_priority": lambda: os.setpriority(os.PRIO_PGRP, 0, 19),
    "own_priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, -20),
    "real_time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "less_likely_killed": lambda: open("/proc/self/oom_score_adj", "w").write("-900"),
    "more_processes": lambda: higher(resource.RLIMIT_NPROC, resource.RLIM_INFINITY),
    "more_descriptors": lambda: higher(resource.RLIMIT_NOFILE, 1 << 20),
    "core_file": lambda: higher(resource.RLIMIT_CORE, 1 << 20),
}
NETWORK = {
    "loopback": lambda: connects(socket.AF_INET, ("127.0.0.1", PORT)),
    "loopback_other": lambda: connects(socket.AF_INET, ("127.0.0.2", PORT)),
    "loopback_any": lambda: connects(socket.AF_INET, ("0.0.0.0", PORT)),
    "loopback_6": lambda: connects(socket.AF_INET6, ("::1", PORT)),
    "loopback_mapped": lambda: connects(socket.AF_INET6, ("::ffff:127.0.0.1", PORT)),
    "loopback_datagram": lambda: connects(socket.AF_INET, ("127.0.0.1", PORT), socket.SOCK_DGRAM),
    "metadata": lambda: connects(socket.AF_INET, ("169.254.169.254", 80)),
    "internet": lambda: connects(socket.AF_INET, ("192.0.2.1", 443)),
    "internet_6": lambda: connects(socket.AF_INET6, ("2001:db8::1", 443)),
    "datagram": lambda: sends("192.0.2.1"),
    "broadcast": lambda: sends("255.255.255.255"),
    "multicast": lambda: sends("224.0.0.251"),
    "name": lambda: socket.getaddrinfo("example.org", 443),
    "port_of_the_host": port_is_taken,
    "interfaces": interfaces,
    "unix_socket": lambda: connects(socket.AF_UNIX, os.path.dirname(SECRET) + "/socket"),
    "unix_by_link": lambda: connects(socket.AF_UNIX, f"{WRITE}/link/socket"),
    "abstract": lambda: connects(socket.AF_UNIX, f"\0{ABSTRACT}"),
    "bus": lambda: connects(socket.AF_UNIX, "/run/dbus/system_bus_socket"),
    "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0),
    "vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "audit": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9),
    "algorithms": lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET),
}
KERNEL = {
    "c_mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, 0),
    "c_umount": lambda: call("umount2", b"/proc", 2),
    "c_chroot": lambda: os.chroot("/tmp"),
    "c_unshare_user": lambda: call("unshare", 0x10000000),
    "c_unshare_mounts": lambda: call("unshare", 0x20000),
    "c_unshare_network": lambda: call("unshare", 0x40000000),
    "c_setns": lambda: call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0),
    "c_setns_own": lambda: call("setns", os.open("/proc/self/ns/user", os.O_RDONLY), 0),
    "c_setuid": lambda: os.setuid(0),
    "c_setgroups": lambda: os.setgroups([0]),
    "c_setresuid": lambda: os.setresuid(1, 1, 1),
    "c_capset": lambda: call("capset", struct.pack("II", 0x20080522, 0), b"\xff" * 24),
    "c_keyctl": lambda: call("syscall", 250, 0, -3, 1),
    "c_bpf": lambda: call("syscall", 321, 5, bytes(72), 72),
    "c_perf": lambda: call("syscall", 298, struct.pack("II", 1, 112) + bytes(104), 0, -1, -1, 0),
    "c_io_uring": lambda: call("syscall", 425, 1, ctypes.create_string_buffer(256)),
    "c_userfaultfd": lambda: call("syscall", 323, 1),
    "c_handle": lambda: call("syscall", 304, os.open(READ, os.O_RDONLY), struct.pack("IiQ", 8, 1, 2), 0),
    "c_open_tree": lambda: call("syscall", 428, -100, b"/", 1),
    "c_mount_setattr": lambda: call("syscall", 442, -100, READ.encode(), 0, struct.pack("QQQQ", 0, 1, 0, 0), 32),
    "c_pivot": lambda: call("syscall", 155, b"/tmp", b"/tmp"),
    "c_module": lambda: call("syscall", 175, bytes(8), 1, b""),
    "c_syslog": lambda: call("syscall", 103, 3, ctypes.create_string_buffer(4096), 4096),
    "c_settime": lambda: call("clock_settime", 0, struct.pack("qq", 1, 0)),
    "c_hostname": lambda: socket.sethostname("x"),
    "c_ports": lambda: call("iopl", 3),
    "c_terminal_input": lambda: call("ioctl", 0, 0x5412, b"x"),
    "c_privileges": lambda: call("prctl", 38, 0, 0, 0, 0),
    "device_made": lambda: os.mknod("/tmp/disk", 0o60600, 0x800),
    "memory_device": lambda: read("/dev/mem"),
    "kernel_core": lambda: read("/proc/kcore"),
    "kvm": lambda: write("/dev/kvm", os.O_RDWR),
    "disk": lambda: read("/dev/vda"),
    "fuse": lambda: write("/dev/fuse", os.O_RDWR),
    "sysrq": lambda: write("/proc/sysrq-trigger"),
    "core_pattern": lambda: write("/proc/sys/kernel/core_pattern"),
    "overcommit": lambda: write("/proc/sys/vm/overcommit_memory"),
    "cgroup": lambda: os.mkdir("/sys/fs/cgroup/new"),
}
TOOLBOX = {f"tool_{name}": (lambda words=words: starts(words)) for name, words in TOOLS.items()}
ATTEMPTS = {**FILES, **PROCESSES, **NETWORK, **KERNEL, **TOOLBOX}


def judge(name):
    """In a process of its own: what one attempt changes must not decide the next."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            verdict, why = "escaped", repr(ATTEMPTS[name]())
        except SystemExit:
            os._exit(0)
        except Exception as error:
            verdict, why = "held", f"{type(error).__name__}: {error}"
        print(name, verdict, why.replace("\n", " ").replace("\t", " ")[:200], sep="\t", flush=True)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        print(name, "held", f"ended by signal {os.WTERMSIG(status)}", sep="\t")


def main(words):
    global VICTIM, PORT, SECRET, ABSTRACT, WRITE, READ
    if words[0] == "start":
        return subprocess.run(words[1:]).returncode
    VICTIM, PORT, (SECRET, ABSTRACT, WRITE, READ) = int(words[1]), int(words[2]), words[3:7]
    for name in ATTEMPTS if words[0] == "all" else words[0].split(","):
        judge(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
