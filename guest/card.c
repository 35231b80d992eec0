/* A network card gets the addresses that its host decided, at once. Whoever leases them, too, is told the same a little later. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "builtin.h"
#include "setup.h"

#define PLUGGED_MS 3000 /* for a card that was just put in */
#define LATE_MS 30000  /* for one whose driver is loaded later */
#define LOOK_MS 20

struct request {
    struct nlmsghdr head;
    union {
        struct ifaddrmsg address;
        struct rtmsg route;
    } body;
    char attributes[128];
};

static void put(struct request *r, unsigned short type, const void *data, size_t size) {
    struct rtattr *attribute = (struct rtattr *)((char *)r + NLMSG_ALIGN(r->head.nlmsg_len));
    attribute->rta_type = type;
    attribute->rta_len = (unsigned short)RTA_LENGTH(size);
    memcpy(RTA_DATA(attribute), data, size);
    r->head.nlmsg_len = NLMSG_ALIGN(r->head.nlmsg_len) + RTA_ALIGN(attribute->rta_len);
}

static struct request request(unsigned short type, unsigned short flags, size_t body) {
    struct request r = {.head = {.nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags}};
    r.head.nlmsg_len = NLMSG_LENGTH(body);
    return r;
}

/* Returns errno. */
static int tell(struct request *r) {
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char rest[512];
    } answer = {.error.error = -EIO};
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0) return errno;
    int bad = sendto(fd, r, r->head.nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0 || recv(fd, &answer, sizeof answer, 0) < 0;
    int error = bad ? errno : -answer.error.error;
    close(fd);
    return error;
}

/* 4 or 16 bytes, 0 for no address. */
static int parse(const char *text, uint8_t bytes[16]) {
    return inet_pton(AF_INET, text, bytes) == 1 ? 4 : inet_pton(AF_INET6, text, bytes) == 1 ? 16 : 0;
}

static int family_of(int size) { return size == 4 ? AF_INET : AF_INET6; }

/* IPv6 without a route to its subnet: the router says whether neighbours are there. And without asking whether anybody has it: nobody has. */
static int add_address(unsigned index, char *text) {
    uint8_t bytes[16];
    char *prefix = strchr(text, '/'), *end = NULL;
    if (prefix) *prefix++ = 0;
    int size = parse(text, bytes);
    unsigned long length = prefix ? strtoul(prefix, &end, 10) : 999;
    if (!size || !end || *end || length > (unsigned)size * 8) return EINVAL;
    struct request r = request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof r.body.address);
    uint32_t flags = IFA_F_PERMANENT | (size == 16 ? IFA_F_NODAD | IFA_F_NOPREFIXROUTE : 0);
    r.body.address = (struct ifaddrmsg){.ifa_family = (uint8_t)family_of(size), .ifa_prefixlen = (uint8_t)length, .ifa_index = index};
    put(&r, IFA_LOCAL, bytes, (size_t)size);
    put(&r, IFA_ADDRESS, bytes, (size_t)size);
    put(&r, IFA_FLAGS, &flags, sizeof flags);
    return tell(&r);
}

/* Whether the way into the world is another card's. */
static int is_elsewhere(int size, const char *name) {
    char line[256], where[IFNAMSIZ], to[40];
    int found = 0;
    unsigned length = 0;
    FILE *file = fopen(size == 4 ? "/proc/net/route" : "/proc/net/ipv6_route", "re");
    while (file && !found && fgets(line, sizeof line, file)) {
        if (size == 4) found = sscanf(line, "%15s %39s", where, to) == 2 && !strcmp(to, "00000000");
        else found = sscanf(line, "%39s %x %*s %*s %*s %*s %*s %*s %*s %15s", to, &length, where) == 3 && !length && strspn(to, "0") == 32;
        found = found && strcmp(where, name) && strcmp(where, "lo");
    }
    if (file) fclose(file);
    return found;
}

static int add_default(unsigned index, const char *name, const char *gateway) {
    uint8_t bytes[16];
    uint32_t number = index;
    int size = parse(gateway, bytes);
    if (!size) return EINVAL;
    if (is_elsewhere(size, name)) return 0;
    struct request r = request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof r.body.route);
    r.body.route = (struct rtmsg){.rtm_family = (uint8_t)family_of(size), .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_STATIC,
                                  .rtm_type = RTN_UNICAST, .rtm_flags = RTNH_F_ONLINK};
    put(&r, RTA_GATEWAY, bytes, (size_t)size);
    put(&r, RTA_OIF, &number, sizeof number);
    return tell(&r);
}

/* Down and up again: with that go the addresses and the routes that it had, and whoever leases for it begins anew. */
static int clear(const char *name, int mtu) {
    struct ifreq flags = {0}, size = {.ifr_mtu = mtu};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strcpy(flags.ifr_name, name);
    strcpy(size.ifr_name, name);
    int bad = fd < 0 || ioctl(fd, SIOCGIFFLAGS, &flags);
    flags.ifr_flags &= ~IFF_UP;
    bad = bad || ioctl(fd, SIOCSIFFLAGS, &flags) || (mtu > 0 && ioctl(fd, SIOCSIFMTU, &size));
    struct ifreq none = {.ifr_addr.sa_family = AF_INET}; /* IPv4 stays with a card that is down: 0.0.0.0 takes it away */
    strcpy(none.ifr_name, name);
    for (int i = 0; !bad && i < 64 && !ioctl(fd, SIOCGIFADDR, &none); i++) {
        ((struct sockaddr_in *)&none.ifr_addr)->sin_addr.s_addr = 0;
        if (ioctl(fd, SIOCSIFADDR, &none)) break;
    }
    flags.ifr_flags |= IFF_UP;
    bad = bad || ioctl(fd, SIOCSIFFLAGS, &flags);
    int error = errno;
    if (fd >= 0) close(fd);
    return bad ? error : 0;
}

/* In a machine of our own init a client does not take them back. A file that is a link belongs to a service of the guest, which learns it
   from the lease. */
static void set_resolvers(char *resolvers, const char *domain) {
    char text[1024], *one;
    struct stat st;
    if (!strcmp(resolvers, "-") || (!lstat("/etc/resolv.conf", &st) && S_ISLNK(st.st_mode))) return;
    int n = strcmp(domain, "-") ? snprintf(text, 300, "search %.250s\n", domain) : 0;
    while ((one = strsep(&resolvers, ",")) && n < 900) n += snprintf(text + n, 64, "nameserver %.45s\n", one);
    overwrite("/etc/resolv.conf", text, 0644);
    if (!access("/run/roost/init", F_OK)) overwrite("/run/roost/resolvers", "machine\n", 0644);
}

/* The init of a tiny machine starts no client for a card with this file. */
static void take_from_client(const char *mac) {
    char path[64];
    snprintf(path, sizeof path, "/run/roost/card-%.17s", mac);
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
}

static const char *await_card(const char *mac, int milliseconds) {
    struct timespec wait = {0, LOOK_MS * 1000000};
    const char *name = find_card(mac);
    for (int i = 0; !name && i < milliseconds / LOOK_MS; i++) {
        nanosleep(&wait, NULL);
        name = find_card(mac);
    }
    return name;
}

static void each(char *list, unsigned index, const char *name, int gateways) {
    for (char *one; strcmp(list, "-") && (one = strsep(&list, ","));) {
        if ((errno = gateways ? add_default(index, name, one) : add_address(index, one))) fail(one);
        if (!list) return;
    }
}

static void set(char *word[6], const char *name) {
    if (!access("/run/roost/init", F_OK)) end_clients(name);
    if ((errno = clear(name, atoi(word[1])))) fail(name);
    unsigned index = if_nametoindex(name);
    each(word[2], index, name, 0);
    each(word[3], index, name, 1);
    set_resolvers(word[4], word[5]);
}

/* In a process of init's, while the host goes on. */
static void set_later(char *word[6]) {
    pid_t pid = fork();
    if (pid > 0) waitpid(pid, NULL, 0);
    if (pid) return;
    if (!fork()) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        for (int i = 0; i < 3; i++) dup2(null, i);
        syscall(SYS_close_range, 3, ~0U, 0); /* the port of the agent, too, which only one may have */
        setsid();
        const char *name = await_card(word[0], LATE_MS);
        if (name) set(word, name);
    }
    _exit(0);
}

/* MAC MTU ADDRESSES GATEWAYS RESOLVERS DOMAIN, each one word; lists have commas, and "-" is nothing. A card that was just plugged in takes its
   time to come. Another that is not there has its driver loaded later, while the system boots: in a tiny machine soon; elsewhere its own client
   asks then, and is told the same. */
void set_card(char *rest, int plugged) {
    char *word[6] = {0};
    int is_tiny = !access("/run/roost/init", F_OK);
    for (int i = 0; i < 6; i++) word[i] = strsep(&rest, " ");
    if (!word[5] || rest || strlen(word[0]) != 17 || strchr(word[0], '/')) return errno = EINVAL, fail("card");
    if (is_tiny) take_from_client(word[0]);
    const char *name = await_card(word[0], plugged ? PLUGGED_MS : 0);
    if (name) return set(word, name);
    if (plugged) errno = ENODEV, fail("card");
    else if (is_tiny) set_later(word);
}
