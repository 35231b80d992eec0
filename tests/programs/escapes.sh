#!/bin/sh
# Tries to get out of a sandbox with what a shell and the programs of the system do.
#
# usage: escapes.sh all|NAME,NAME... VICTIM PORT SECRET ABSTRACT WRITE READ    one line for each: name, TAB, "held" or "escaped", TAB, why
#        escapes.sh start PROGRAM WORDS...                                     run a program of the host's own kind
#
# The words are those of escape.c. An attempt got out when its commands end with 0.

if test "$1" = start; then
    shift
    "$@"
    exit
fi
chosen=$1 victim=$2 port=$3 secret=$4 abstract=$5 write=$6 read=$7
beside=${secret%/*}
PATH=/usr/bin:/bin:/usr/sbin:/sbin

try() {
    case $chosen in all) ;; *) case ,$chosen, in *,$1,*) ;; *) return ;; esac ;; esac
    name=$1
    shift
    if why=$(eval "$*" 2>&1 </dev/null); then verdict=escaped; else verdict=held; fi
    # 127: nothing is said of what is not installed
    case $why in *": not found"*) return ;; esac
    printf '%s\t%s\t%s\n' "$name" "$verdict" "$(printf %s "$why" | tr '\n\t' '  ' | cut -c 1-200)"
}

try absolute 'cat "$secret"'
try dotdot 'cat "$read/../../../../..$secret"'
try dotdot_relative 'cat "../../../../..$secret"'
try up 'cd "$read/link" && cat secret'
try logical 'cd -L "$write/link/.." && cat private/secret'
try root_of_self 'cat "/proc/self/root$secret"'
try root_of_init 'cat "/proc/1/root$secret"'
try root_of_parent 'cat "/proc/$PPID/root$secret"'
try root_of_victim 'cat "/proc/$victim/root$secret"'
try directory_of_init 'cd /proc/1/cwd'
try link_made 'ln -sfn "$secret" "$write/out" && cat "$write/out"'
try link_of_directory 'ln -sfn / "$write/root" && cat "$write/root$secret"'
try link_found 'cat "$write/link/secret"'
try link_in_data 'cat "$read/link/secret"'
try link_written ': > "$write/link/new"'
try hard_link 'ln "$secret" "$write/hard"'
try moved_out ': > "$write/mine" && test -d "$write/link/." && mv "$write/mine" "$write/link/mine"'
try moved_in 'mv "$secret" "$write/secret"'
try copied_in 'cp "$secret" "$write/copy"'
try found 'find / -name secret -path "*bait*" 2>/dev/null | grep .'
try globbed 'set -- /tmp/roost-*; test -e "$1"'
try sourced '. "$secret"; test -n "$beside" && grep . "$secret"'
try others_in_tmp 'ls "$beside"'
try shadow 'cat /etc/shadow'
try home_of_root 'ls /root'
try machine 'cat /etc/machine-id'
try var 'ls /var/lib'
try sys 'ls /sys/kernel'
try run 'ls /run'
try root_written ': > /new'
try system_written ': > /usr/bin/new'
try interpreter_written ': >> /bin/sh'
try program_written ': >> "$0"'
try program_replaced ': > "$write/mine" && mv -f "$write/mine" "$0"'
try beside_program ': > "$0.new"'
try read_only_written 'printf x > "$read/file"'
try read_only_appended 'printf x >> "$read/file"'
try read_only_both 'exec 3<> "$read/file" && printf x >&3'
try read_only_made ': > "$read/new"'
try read_only_directory 'mkdir "$read/new"'
try read_only_removed 'rm -f "$read/file"'
try read_only_renamed 'mv -n "$read/file" "$read/other" && test ! -e "$read/file"'
try read_only_mode 'chmod 777 "$read/file"'
try read_only_owner 'chown 1 "$read/file"'
try read_only_times 'touch "$read/file"'
try read_only_linked 'ln "$read/file" "$read/hard"'
try read_only_reopened 'exec 3< "$read/file" && printf x > /proc/self/fd/3'
try read_only_mounted 'mount -o remount,rw,bind "$read"'
try set_uid ': > "$write/su" && chown 0:0 "$write/su" && chmod 4755 "$write/su"'
try set_uid_of_caller ': > "$write/mine" && chmod u+s "$write/mine"'
try set_gid_of_caller 'mkdir -p "$write/sub" && chmod g+s "$write/sub"'
try capable_file 'setcap cap_sys_admin+ep "$write/mine"'
try init_environ 'tr "\0" " " < /proc/1/environ'
try init_memory ': < /proc/1/mem'
try init_killed 'kill -9 1 && kill -0 1'
try victim_environ 'tr "\0" " " < "/proc/$victim/environ"'
try victim_killed 'kill -9 "$victim"'
try victim_signalled 'kill -0 "$victim"'
try every_process 'ls /proc | grep -E "^[0-9]{4,}$"'
try less_likely_killed 'echo -900 > /proc/self/oom_score_adj'
try more_processes 'prlimit --nproc=unlimited --pid $$'
try more_files 'ulimit -n 1000000'
try core_files 'ulimit -c unlimited'
try loopback 'bash -c "exec 3<> /dev/tcp/127.0.0.1/$port"'
try loopback_other 'bash -c "exec 3<> /dev/tcp/127.0.0.2/$port"'
try loopback_6 'bash -c "exec 3<> /dev/tcp/::1/$port"'
try metadata 'timeout 3 bash -c "exec 3<> /dev/tcp/169.254.169.254/80"'
try internet 'timeout 3 bash -c "exec 3<> /dev/tcp/192.0.2.1/443"'
try datagram 'bash -c "echo x > /dev/udp/192.0.2.1/53"'
try name 'getent hosts example.org'
try unix_socket 'test -S "$beside/socket"'
try abstract 'grep "@$abstract" /proc/net/unix'
try interfaces 'grep -v -e lo: -e "|" /proc/net/dev'
try listeners 'grep -i ":$(printf %04X "$port")" /proc/net/tcp'
try network_down 'ip link set lo down'
try network_made 'ip link add type veth'
try address_made 'ip address add 192.0.2.9/24 dev lo'
try su 'su -c id'
try sudo 'sudo -n id'
try mounted 'mount -t tmpfs none /tmp'
try bound 'mount --bind / /tmp'
try unmounted 'umount -l /proc'
try unshared 'unshare -Ur id'
try unshared_mounts 'unshare -m id'
try entered 'nsenter -t 1 -m -- id'
try entered_own 'nsenter --user=/proc/self/ns/user -- id'
try other_user 'setpriv --reuid 0 --clear-groups id'
try new_root 'chroot / id'
try pivoted 'pivot_root /tmp /tmp'
try reniced 'renice -n -19 -p $$'
try real_time 'chrt -f -p 1 $$'
try clock 'date -s 2001-01-01'
try device_made 'mknod "$write/disk" b 8 0'
try kernel_log 'dmesg'
try loop_device 'losetup -f "$secret"'
try kernel_name 'sysctl -w kernel.hostname=x'
try host_name 'hostname x'
try swapped 'swapoff /tmp'
try traced 'strace -p 1'
try memory_device 'head -c 1 /dev/mem'
try kernel_core 'head -c 1 /proc/kcore'
try kvm ': > /dev/kvm'
try disk 'head -c 1 /dev/vda'
try sysrq 'echo h > /proc/sysrq-trigger'
try core_pattern 'echo x > /proc/sys/kernel/core_pattern'
try release_agent 'mkdir /tmp/c && mount -t cgroup -o memory cgroup /tmp/c'
try control_group 'mkdir /sys/fs/cgroup/new'
