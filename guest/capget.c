/*
 * capget: a library that is preloaded into dnsmasq, and lets it believe that it has CAP_NET_ADMIN.
 *
 * dnsmasq does not begin without that capability when it serves DHCP: with it, it would enter the address of a client that has none yet into the
 * kernel's ARP table, and nothing else. Told to answer such clients by broadcast, it never does. So it need not have what would let it change
 * the rules and the links of its network, should a guest take it over.
 */
struct header {
    unsigned version;
    int pid;
};

struct sets {
    unsigned effective, permitted, inheritable;
};

#define CAP_NET_ADMIN 12

static long call(struct header *header, struct sets *sets)
{
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(125L), "D"(header), "S"(sets) : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long number __asm__("x8") = 90, first __asm__("x0") = (long)header, second __asm__("x1") = (long)sets;
    __asm__ volatile("svc 0" : "+r"(first) : "r"(number), "r"(second) : "memory");
    return first;
#elif defined(__riscv)
    register long number __asm__("a7") = 90, first __asm__("a0") = (long)header, second __asm__("a1") = (long)sets;
    __asm__ volatile("ecall" : "+r"(first) : "r"(number), "r"(second) : "memory");
    return first;
#endif
}

__attribute__((visibility("default"))) int capget(struct header *header, struct sets *sets)
{
    long result = call(header, sets);
    if (result == 0 && sets)
        sets->permitted |= 1u << CAP_NET_ADMIN;
    return result < 0 ? -1 : 0;
}
