/* A Windows program that knows it runs on Linux: it leaves Wine aside and calls the kernel.

   usage: rawcall VICTIM SECRET    one line for each attempt: name, TAB, "held" or "escaped", TAB, the kernel's answer */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Windows has 32 bits in a long. */
typedef long long word;
static word call(word number, word a, word b, word c, word d)
{
    word result;
    register word r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}
#define P(pointer) ((word)(size_t)(pointer))

static char text[64];

static void say(const char *name, word result)
{
    printf("%s\t%s\t%lld\n", name, result < 0 ? "held" : "escaped", result);
    fflush(stdout);
}

int main(int count, char **words)
{
    if (count != 3)
        return 64;
    word victim = atoll(words[1]);
    say("the kernel answers", call(39, 0, 0, 0, 0) > 0 ? -1 : 0);
    say("open", call(2, P(words[2]), 0, 0, 0));
    say("open shadow", call(2, P("/etc/shadow"), 0, 0, 0));
    say("open init's root", call(2, P("/proc/1/root/etc/shadow"), 0, 0, 0));
    say("open init's memory", call(2, P("/proc/1/mem"), 2, 0, 0));
    say("kill", call(62, victim, 9, 0, 0));
    say("ptrace", call(101, 16, 1, 0, 0));
    say("mount", call(165, P("none"), P("/tmp"), P("tmpfs"), 0));
    say("unshare", call(272, 0x10000000, 0, 0, 0));
    say("chroot", call(161, P("/tmp"), 0, 0, 0));
    say("bpf", call(321, 0, P(text), 64, 0));
    say("io_uring", call(425, 1, P(text), 0, 0));
    say("keyctl", call(250, 0, -3, 1, 0));
    say("raw socket", call(41, 2, 3, 1, 0));
    say("vsock", call(41, 40, 1, 0, 0));
    say("core_pattern", call(2, P("/proc/sys/kernel/core_pattern"), 1, 0, 0));
    say("setuid", call(105, 0, 0, 0, 0));
    return 0;
}
