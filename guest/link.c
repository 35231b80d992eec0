/* A network card gets another MAC address while its cable is out, and whoever leases its address asks anew. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "builtin.h"
#include "setup.h"

#define MAC_TEXT 17
#define BUS "/run/dbus/system_bus_socket"
#define BUS_MS 2000

static char wanted[MAC_TEXT + 1], found[IFNAMSIZ];

/* Bridges and VLANs carry the address of their port: only a card has a device. */
static void match_card(const char *directory, const char *name) {
    char path[300];
    if (*found || strlen(name) >= sizeof found) return;
    snprintf(path, sizeof path, "%s/%s/device", directory, name);
    if (access(path, F_OK)) return;
    snprintf(path, sizeof path, "%s/%s/address", directory, name);
    char *address = slurp(path);
    if (!strncasecmp(address, wanted, MAC_TEXT)) strcpy(found, name);
    free(address);
}

const char *find_card(const char *mac) {
    snprintf(wanted, sizeof wanted, "%s", mac);
    *found = 0;
    each_entry("/sys/class/net", match_card);
    return *found ? found : NULL;
}

static int parse_mac(const char *text, uint8_t mac[6]) {
    int end = 0;
    return text && sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5, &end) == 6 &&
           end == MAC_TEXT && !text[end] && !(mac[0] & 1);
}

/* Down and up again: so the kernel makes IPv6 addresses of the new MAC address. */
static int change_mac(int fd, const char *name, const uint8_t mac[6]) {
    struct ifreq flags = {0}, down, address = {.ifr_hwaddr.sa_family = ARPHRD_ETHER};
    strcpy(flags.ifr_name, name);
    strcpy(address.ifr_name, name);
    memcpy(address.ifr_hwaddr.sa_data, mac, 6);
    if (ioctl(fd, SIOCGIFFLAGS, &flags)) return -1;
    down = flags;
    down.ifr_flags &= ~IFF_UP;
    if (flags.ifr_flags & IFF_UP && ioctl(fd, SIOCSIFFLAGS, &down)) return -1;
    int bad = ioctl(fd, SIOCSIFHWADDR, &address), error = errno;
    if (flags.ifr_flags & IFF_UP) bad |= ioctl(fd, SIOCSIFFLAGS, &flags);
    else errno = error;
    return bad;
}

/* ---- systemd-networkd, over D-Bus ---- */

struct message {
    uint8_t bytes[512];
    size_t length;
};

static void put(struct message *m, const void *data, size_t length) {
    memcpy(m->bytes + m->length, data, length);
    m->length += length;
}

static void put32(struct message *m, uint32_t value) { put(m, &value, sizeof value); }

static void pad(struct message *m) { m->length = (m->length + 7) & ~(size_t)7; }

/* A field of the header: a struct of its code and a variant of a string-like type. */
static void put_field(struct message *m, uint8_t code, char type, const char *text) {
    const uint8_t head[] = {code, 1, (uint8_t)type, 0};
    uint8_t length = (uint8_t)strlen(text);
    pad(m);
    put(m, head, sizeof head);
    if (type == 'g') put(m, &length, 1);
    else put32(m, length);
    put(m, text, (size_t)length + 1);
}

static void call(struct message *m, uint32_t serial, const char *path, const char *name, const char *member, const int32_t *argument) {
    const uint8_t little = *(const uint8_t *)&(uint16_t){1};
    const uint8_t head[] = {little ? 'l' : 'B', 1, 0, 1};
    *m = (struct message){.length = 0};
    put(m, head, sizeof head);
    put32(m, argument ? sizeof *argument : 0);
    put32(m, serial);
    put32(m, 0); /* the length of the fields, below */
    size_t start = m->length;
    char interface[64];
    snprintf(interface, sizeof interface, "%s%s", name, argument ? ".Manager" : "");
    put_field(m, 1, 'o', path);
    put_field(m, 2, 's', interface);
    put_field(m, 3, 's', member);
    put_field(m, 6, 's', name);
    if (argument) put_field(m, 8, 'g', "i");
    uint32_t fields = (uint32_t)(m->length - start);
    memcpy(m->bytes + start - 4, &fields, 4);
    pad(m);
    if (argument) put(m, argument, sizeof *argument);
}

static int receive(int fd, void *data, size_t length) {
    for (size_t done = 0; done < length;) {
        struct pollfd waiting = {fd, POLLIN, 0};
        if (poll(&waiting, 1, BUS_MS) <= 0) return -1;
        ssize_t n = recv(fd, (char *)data + done, length - done, 0);
        if (n <= 0) return -1;
        done += (size_t)n;
    }
    return 0;
}

/* The bus says OK to our uid in a line, then answers each of our calls: with 2, or with 3 for an error. */
static int await_answers(int fd, unsigned count) {
    uint32_t head[4];
    char c = 0, skipped[256];
    while (c != '\n')
        if (receive(fd, &c, 1)) return -1;
    while (count) {
        if (receive(fd, head, sizeof head)) return -1;
        uint8_t type = ((uint8_t *)head)[1];
        size_t left = ((head[3] + 7u) & ~7u) + head[1];
        if (type == 3) return -1;
        if (type == 2) count--;
        for (size_t part; left; left -= part) {
            part = left < sizeof skipped ? left : sizeof skipped;
            if (receive(fd, skipped, part)) return -1;
        }
    }
    return 0;
}

/* What `networkctl reconfigure` asks for, without the start of a program: let go of the old lease, and ask when the cable is in. */
static void reconfigure(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = BUS};
    struct message hello, ask;
    char opening[64];
    int32_t index = (int32_t)if_nametoindex(name);
    if (access("/run/systemd/netif", F_OK) || access(BUS, F_OK)) return;
    int n = snprintf(opening, sizeof opening, "%cAUTH EXTERNAL 30\r\nBEGIN\r\n", 0);
    call(&hello, 1, "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", NULL);
    call(&ask, 2, "/org/freedesktop/network1", "org.freedesktop.network1", "ReconfigureLink", &index);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int bad = fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) || write_all(fd, opening, (size_t)n) ||
              write_all(fd, hello.bytes, hello.length) || write_all(fd, ask.bytes, ask.length) || await_answers(fd, 2);
    if (bad) errno = EREMOTEIO, fail("systemd-networkd");
    if (fd >= 0) close(fd);
}

/* ---- udhcpc, which the init of a tiny machine starts again ---- */

static const char *client_of;

static void end_client(const char *directory, const char *name) {
    char path[300], line[512];
    pid_t pid = atoi(name);
    if (pid <= 1) return;
    snprintf(path, sizeof path, "%s/%d/cmdline", directory, pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, line, sizeof line - 1);
    if (fd >= 0) close(fd);
    line[n > 0 ? n : 0] = 0;
    if (strcmp(line, "udhcpc")) return;
    for (char *word = line; word < line + n; word += strlen(word) + 1)
        if (!strcmp(word, client_of)) kill(pid, SIGTERM);
}

void end_clients(const char *name) {
    client_of = name;
    each_entry("/proc", end_client);
}

void set_link(char *rest) {
    uint8_t old[6], mac[6];
    char *from = strsep(&rest, " ");
    if (!parse_mac(from, old) || !parse_mac(rest, mac)) return errno = EINVAL, fail("link");
    if (find_card(rest)) return;
    if (!find_card(from)) return errno = ENODEV, fail("link");
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || change_mac(fd, found, mac)) fail(found);
    if (fd >= 0) close(fd);
    reconfigure(found);
    if (!access("/run/roost/init", F_OK)) end_clients(found);
}
