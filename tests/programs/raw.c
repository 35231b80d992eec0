/* Talks to the kernel past the virtual machine it runs in: as a Windows program under Wine, or as a native library in a Java program.

   Says "NAME RESULT" for each attempt; below 0 it was refused, by that error. No C library: the same code for every system. */

typedef long long word;

static word call(word number, word a, word b, word c, word d, word e)
{
    word result;
    register word r10 __asm__("r10") = d;
    register word r8 __asm__("r8") = e;
    register word r9 __asm__("r9") = 0;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
}

static const struct {
    const char *name;
    int number;
    const void *a;
    const void *b;
    const void *c;
    const void *d;
} attempts[] = {
#define N(value) ((const void *)(unsigned long long)(value))
    {"read the host's passwords", 2, "/etc/shadow", 0, 0, 0},
    {"read what lies beside it", 2, "/app/secret.txt", 0, 0, 0},
    {"write beside it", 2, "/app/new", N(0101), N(0644), 0},
    {"enter the root of init", 2, "/proc/1/root/etc/passwd", 0, 0, 0},
    {"write to the kernel", 2, "/proc/sys/kernel/core_pattern", N(1), 0, 0},
    {"read the memory of init", 2, "/proc/1/mem", 0, 0, 0},
    {"mount", 165, "none", "/tmp", "tmpfs", 0},
    {"make a user namespace", 272, N(0x10000000), 0, 0, 0},
    {"change the root", 161, "/tmp", 0, 0, 0},
    {"become root", 105, 0, 0, 0, 0},
    {"trace init", 101, N(16), N(1), 0, 0},
    {"load a program into the kernel", 321, 0, 0, 0, 0},
    {"submit calls past the filter", 425, N(1), "", 0, 0},
    {"watch the processor", 298, "", 0, N(-1LL), N(-1LL)},
    {"use the host's keys", 250, 0, N(-3LL), 0, 0},
    {"make a device", 133, "/tmp/device", N(020666), N(0x101), 0},
    {"load a module", 175, "", N(1), "", 0},
    {"name the host", 170, "other", N(5), 0, 0},
    {"set the clock", 164, "                ", 0, 0, 0},
    {"stop the host", 169, N(0xfee1dead), N(0x28121969), N(0x89abcdef), 0},
};

static unsigned long length(const char *text)
{
    unsigned long count = 0;
    while (text[count])
        count++;
    return count;
}

static void say(const char *text) { call(1, 1, (word)text, (word)length(text), 0, 0); }

static void say_number(word number)
{
    char text[24], *end = text + sizeof text - 1;
    unsigned long long left = number < 0 ? -(unsigned long long)number : (unsigned long long)number;
    *end = 0;
    do
        *--end = (char)('0' + left % 10);
    while (left /= 10);
    if (number < 0)
        *--end = '-';
    say(end);
}

static void attempt_all(void)
{
    for (unsigned i = 0; i < sizeof attempts / sizeof *attempts; i++) {
        say(attempts[i].name);
        say("\t");
        say_number(call(attempts[i].number, (word)attempts[i].a, (word)attempts[i].b, (word)attempts[i].c, (word)attempts[i].d, 0));
        say("\n");
    }
}

#if defined(_WIN32)
int main(void)
{
    attempt_all();
    return 0;
}
#else
int JNI_OnLoad(void *machine, void *reserved)
{
    (void)machine, (void)reserved;
    attempt_all();
    return 0x00010008;
}
#endif
