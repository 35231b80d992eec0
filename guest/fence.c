/*
 * fence: stands between a machine's network card and the process that is its network (passt), and drops what would
 * reach the host itself.
 *
 * passt opens an ordinary socket of the host to whatever address a frame names. With --no-map-gw the gateway's address
 * no longer leads to the host's loopback, but a frame that names 127.0.0.1 or 0.0.0.0 still does, and a guest's kernel
 * can be told to send one. So frames from the guest pass only when they are ARP, or IPv4 to a destination outside of
 * "this network" (0/8), loopback (127/8) and link-local (169.254/16: a cloud host's metadata service, which hands out
 * the host's credentials); see RFC 6890. Towards the guest everything passes.
 *
 * Usage: fence, with descriptor 3 the guest's stream and 4 passt's: frames behind their length, 32 bits, big-endian.
 * Ends when either end does.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum {
    GUEST = 3,
    WORLD = 4,
    LONGEST = 65535 + 18, /* an IPv4 packet, its Ethernet header, a VLAN tag */
    ROOM = 4 * (LONGEST + 4),
    ETHERNET = 14,
    IPV4 = 20,
};

struct flow {
    int in, out;
    size_t begin, checked, end; /* buf[begin..checked) may go out, buf[checked..end) is not looked at yet */
    unsigned char buf[ROOM];
};

static struct flow outbound, inbound;

static int forbidden(const unsigned char *address)
{
    return address[0] == 0 || address[0] == 127 || (address[0] == 169 && address[1] == 254);
}

static int may_pass(const unsigned char *frame, size_t length)
{
    if (length < ETHERNET)
        return 0;
    unsigned type = frame[12] << 8 | frame[13];
    if (type == 0x0806)
        return 1;
    if (type != 0x0800 || length < ETHERNET + IPV4 || frame[ETHERNET] >> 4 != 4)
        return 0;
    const unsigned char *source = frame + ETHERNET + 12, *destination = frame + ETHERNET + 16;
    /* A DHCP client has no address yet, so 0.0.0.0 may be a source. */
    return source[0] != 127 && !forbidden(destination);
}

/* Looks at the whole frames that have come; 0 when the guest breaks the framing. */
static int check(struct flow *flow)
{
    while (flow->end - flow->checked >= 4) {
        unsigned char *at = flow->buf + flow->checked;
        size_t length = (size_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3];
        if (length > LONGEST)
            return 0;
        if (flow->end - flow->checked < 4 + length)
            break;
        if (may_pass(at + 4, length)) {
            flow->checked += 4 + length;
        } else {
            flow->end -= 4 + length;
            memmove(at, at + 4 + length, flow->end - flow->checked);
        }
    }
    return 1;
}

static int receive(struct flow *flow)
{
    if (flow->begin > 0) {
        memmove(flow->buf, flow->buf + flow->begin, flow->end - flow->begin);
        flow->checked -= flow->begin;
        flow->end -= flow->begin;
        flow->begin = 0;
    }
    ssize_t got = read(flow->in, flow->buf + flow->end, ROOM - flow->end);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    flow->end += (size_t)got;
    if (flow == &inbound) {
        flow->checked = flow->end;
        return got > 0;
    }
    return got > 0 && check(flow);
}

static int deliver(struct flow *flow)
{
    ssize_t put = write(flow->out, flow->buf + flow->begin, flow->checked - flow->begin);
    if (put < 0)
        return errno == EAGAIN || errno == EINTR;
    flow->begin += (size_t)put;
    return 1;
}

static short wanted(const struct flow *in, const struct flow *out)
{
    /* A partial frame always has room to become whole: what is checked drains, the rest is less than one frame. */
    return (short)((in->end - in->begin < ROOM ? POLLIN : 0) | (out->checked > out->begin ? POLLOUT : 0));
}

static int step(struct pollfd *end, struct flow *in, struct flow *out)
{
    if (end->revents & POLLOUT && !deliver(out))
        return 0;
    if (end->revents & POLLIN)
        return receive(in);
    return !(end->revents & (POLLERR | POLLHUP | POLLNVAL));
}

int main(void)
{
    struct pollfd ends[2] = {{.fd = GUEST}, {.fd = WORLD}};
    outbound.in = inbound.out = GUEST;
    outbound.out = inbound.in = WORLD;
    for (int i = 0; i < 2; i++)
        if (fcntl(ends[i].fd, F_SETFL, fcntl(ends[i].fd, F_GETFL) | O_NONBLOCK) < 0)
            return 1;
    for (;;) {
        ends[0].events = wanted(&outbound, &inbound);
        ends[1].events = wanted(&inbound, &outbound);
        if (poll(ends, 2, -1) < 0 && errno != EINTR)
            return 1;
        if (!step(&ends[0], &outbound, &inbound) || !step(&ends[1], &inbound, &outbound))
            return 0;
    }
}
