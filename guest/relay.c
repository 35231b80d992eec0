/*
 * relay: takes connections and datagrams at sockets that it was given, and carries them to addresses of the network it lives in.
 *
 * It needs no rights: the sockets at which it listens come from whoever may make them, over a control socket, and may be of another network
 * namespace; those with which it connects are of its own. So a port of the host leads to a guest, and a resolver's question to the host's.
 *
 * Usage: relay, with descriptor 3 a listening socket (AF_UNIX, SOCK_SEQPACKET). Each message is a request, and is answered by one message:
 *
 *   add KEY tcp|udp ADDRESS PORT   and a descriptor: what arrives at it goes to ADDRESS PORT   ok | error WHY
 *   remove KEY                     what stands goes on                                         ok | error WHY
 *   list                                                                                       connections N sessions N refused N, then a KEY a line
 *   socket tcp|udp ADDRESS PORT    a socket of the network it lives in                         ok, and a descriptor | error WHY
 *
 * All of it is bounded: connections and sessions by the limit of descriptors, control clients by CLIENTS. What does not fit is refused (TCP) or
 * takes the place of the session that was silent for longest (UDP). Whoever controls it may come and go; it goes on.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    CONTROL = 3,
    CLIENTS = 8,
    LISTENERS = 1024,
    KEY = 64,
    REQUEST = 256,
    ANSWER = LISTENERS * (KEY + 1) + 128,
    SPARE_PIPES = 16,
    RESERVED = 64, /* descriptors for all that is no connection: listeners come on top */
    MOST_CONNECTIONS = 100000,
    MOST_SESSIONS = 8192,
    BUCKETS = 4096,
    PIECE = 1 << 18,  /* bytes of a splice: the pipe says how much it really is */
    TURNS = 8,        /* splices, accepts, datagrams until others have their turn */
    DATAGRAM = 65535,
    IDLE_MS = 30000,  /* a session's silence */
    REST_MS = 100,    /* after the kernel could not give a descriptor */
    CONNECT_TRIES = 4 /* of a SYN: about 15 seconds */
};

enum kind { GATE, CLIENT, TCP, UDP, SIDE, SESSION };

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

struct watched { /* what an event is about: the first field of everything that has a descriptor */
    enum kind kind;
    int fd;
    uint32_t events; /* 0: not in the epoll set */
};

struct listener {
    struct watched w;
    char key[KEY + 1];
    union address target;
    struct listener *next;
};

struct connection;

struct side {
    struct watched w;
    struct connection *of;
    int pipe[2]; /* what came from here and is not delivered; -1 while there is nothing */
    size_t held;
    int ended; /* nothing more comes from here */
};

struct connection {
    struct side side[2]; /* who called, whom we called */
    int connecting, dead;
    struct connection *next; /* of the dead */
};

struct session {
    struct watched w;
    struct listener *at;
    union address client, local;
    uint64_t used;
    struct session *chain, *older, *newer, *dead;
};

static int epoll, spare[SPARE_PIPES][2], spares, clients;
static struct watched gate = {GATE, CONTROL, 0}, client[CLIENTS];
static struct listener *listeners;
static unsigned listening, connections, sessions, refused, most_connections, most_sessions;
static struct connection *dead_connections;
static struct session *bucket[BUCKETS], *oldest, *newest, *dead_sessions;
static struct listener *dead_listeners;
static uint64_t resting; /* until then no listener is asked */

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Nothing is watched that nothing is wanted of: a hang-up is told whether it is wanted or not, and would be told for ever. */
static int watch(struct watched *w, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = w};
    if (w->events == events) return 0;
    int how = !events ? EPOLL_CTL_DEL : w->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(epoll, how, w->fd, &event)) return -1;
    w->events = events;
    return 0;
}

static socklen_t length_of(const union address *a) { return a->any.sa_family == AF_INET ? sizeof a->v4 : sizeof a->v6; }

static int parse(union address *a, const char *address, const char *port)
{
    char *end;
    unsigned long number = strtoul(port, &end, 10);
    memset(a, 0, sizeof *a);
    if (*end || end == port || number > 65535) return -1;
    if (inet_pton(AF_INET, address, &a->v4.sin_addr) == 1) {
        a->v4.sin_family = AF_INET;
        a->v4.sin_port = htons((uint16_t)number);
        return 0;
    }
    if (inet_pton(AF_INET6, address, &a->v6.sin6_addr) != 1) return -1;
    a->v6.sin6_family = AF_INET6;
    a->v6.sin6_port = htons((uint16_t)number);
    return 0;
}

static void set(int fd, int level, int name, int value) { setsockopt(fd, level, name, &value, sizeof value); }

/* Whoever is at the other end learns that it did not end well. */
static void reset(int fd)
{
    struct linger none = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    close(fd);
}

static void rest(void)
{
    resting = now() + REST_MS;
    watch(&gate, 0);
    for (struct listener *l = listeners; l; l = l->next) watch(&l->w, 0);
}

static int is_exhausted(void) { return errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM; }

static void resume(void)
{
    resting = 0;
    if (clients < CLIENTS) watch(&gate, EPOLLIN);
    for (struct listener *l = listeners; l; l = l->next)
        if (watch(&l->w, EPOLLIN)) return rest();
}

/* ---- TCP ---- */

static int take_pipe(struct side *from)
{
    if (spares) {
        memcpy(from->pipe, spare[--spares], sizeof from->pipe);
        return 0;
    }
    if (pipe2(from->pipe, O_NONBLOCK | O_CLOEXEC)) return from->pipe[0] = from->pipe[1] = -1, -1;
    fcntl(from->pipe[1], F_SETPIPE_SZ, PIECE); /* as long as this user may; else it is what it is */
    return 0;
}

static void give_pipe(struct side *from)
{
    if (from->pipe[0] < 0) return;
    if (!from->held && spares < SPARE_PIPES) memcpy(spare[spares++], from->pipe, sizeof from->pipe);
    else close(from->pipe[0]), close(from->pipe[1]);
    from->pipe[0] = from->pipe[1] = -1;
    from->held = 0;
}

static void end(struct connection *c, int badly)
{
    if (c->dead) return;
    for (int i = 0; i < 2; i++) {
        watch(&c->side[i].w, 0);
        give_pipe(&c->side[i]);
        if (badly) reset(c->side[i].w.fd);
        else close(c->side[i].w.fd);
    }
    c->dead = 1;
    c->next = dead_connections;
    dead_connections = c;
    connections--;
}

static int nothing_now(void) { return errno == EAGAIN || errno == EINTR; }

/* A pipe is held only by what could not be delivered at once, so that a connection that is silent needs two descriptors. */
static int carry(struct side *from, struct side *to)
{
    for (int turn = 0; turn < TURNS; turn++) {
        ssize_t n;
        if (!from->held) {
            if (from->ended) return 0;
            if (from->pipe[0] < 0 && take_pipe(from)) return -1;
            n = splice(from->w.fd, NULL, from->pipe[1], NULL, PIECE, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
            if (n <= 0) give_pipe(from);
            if (n < 0) return nothing_now() ? 0 : -1;
            if (!n) {
                from->ended = 1;
                return shutdown(to->w.fd, SHUT_WR) && errno != ENOTCONN ? -1 : 0;
            }
            from->held = (size_t)n;
        }
        n = splice(from->pipe[0], NULL, to->w.fd, NULL, from->held, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (n < 0) return nothing_now() ? 0 : -1;
        from->held -= (size_t)n;
        if (!from->held) give_pipe(from);
    }
    return 0;
}

static uint32_t wanted(const struct side *side, const struct side *other)
{
    return (side->ended || side->held ? 0 : EPOLLIN) | (other->held ? EPOLLOUT : 0);
}

static void attend(struct connection *c)
{
    struct side *a = &c->side[0], *b = &c->side[1];
    if (carry(a, b) || carry(b, a)) return end(c, 1);
    if (a->ended && b->ended && !a->held && !b->held) return end(c, 0);
    if (watch(&a->w, wanted(a, b)) || watch(&b->w, wanted(b, a))) end(c, 1);
}

static void on_side(struct side *side, uint32_t events)
{
    struct connection *c = side->of;
    int error = 0;
    socklen_t size = sizeof error;
    if (c->dead) return;
    if (events & EPOLLERR && !getsockopt(side->w.fd, SOL_SOCKET, SO_ERROR, &error, &size) && error) return end(c, 1);
    if (c->connecting && events & (EPOLLOUT | EPOLLHUP)) c->connecting = 0;
    if (!c->connecting) attend(c);
}

static int call(const union address *target)
{
    int fd = socket(target->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    set(fd, IPPROTO_TCP, TCP_SYNCNT, CONNECT_TRIES);
    if (connect(fd, &target->any, length_of(target)) && errno != EINPROGRESS) return close(fd), -1;
    return fd;
}

static void take(struct listener *l, int fd)
{
    struct connection *c = connections < most_connections ? calloc(1, sizeof *c) : NULL;
    int to = c ? call(&l->target) : -1;
    if (to < 0) {
        refused++;
        free(c);
        return reset(fd);
    }
    const int both[] = {fd, to};
    for (int i = 0; i < 2; i++) {
        c->side[i] = (struct side){.w = {SIDE, both[i], 0}, .of = c, .pipe = {-1, -1}};
        set(both[i], IPPROTO_TCP, TCP_NODELAY, 1);
        set(both[i], SOL_SOCKET, SO_KEEPALIVE, 1);
        set(both[i], IPPROTO_TCP, TCP_KEEPIDLE, 120);
        set(both[i], IPPROTO_TCP, TCP_KEEPINTVL, 20);
    }
    connections++;
    c->connecting = 1;
    if (watch(&c->side[1].w, EPOLLOUT)) end(c, 1);
}

static void on_tcp(struct listener *l)
{
    for (int turn = 0; turn < TURNS; turn++) {
        int fd = accept4(l->w.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) take(l, fd);
        else if (errno == EAGAIN) return;
        else if (is_exhausted()) return rest();
        else if (errno == EBADF || errno == EINVAL || errno == ENOTSOCK) return (void)watch(&l->w, 0);
    }
}

/* ---- UDP ---- */

static unsigned hash(const struct listener *l, const union address *a, const union address *local)
{
    const unsigned char *bytes = (const unsigned char *)a, *more = (const unsigned char *)local;
    uint32_t h = 2166136261u ^ (uint32_t)((uintptr_t)l >> 4);
    for (size_t i = 0; i < sizeof *a; i++) h = ((h ^ bytes[i]) * 16777619u ^ more[i]) * 16777619u;
    return h % BUCKETS;
}

static void out_of_order(struct session *s)
{
    *(s->older ? &s->older->newer : &oldest) = s->newer;
    *(s->newer ? &s->newer->older : &newest) = s->older;
}

static void to_newest(struct session *s)
{
    s->used = now();
    s->older = newest;
    s->newer = NULL;
    *(newest ? &newest->newer : &oldest) = s;
    newest = s;
}

static void forget(struct session *s)
{
    struct session **place = &bucket[hash(s->at, &s->client, &s->local)];
    while (*place != s) place = &(*place)->chain;
    *place = s->chain;
    out_of_order(s);
    watch(&s->w, 0);
    close(s->w.fd);
    s->at = NULL;
    s->dead = dead_sessions;
    dead_sessions = s;
    sessions--;
}

static struct session *session_of(struct listener *l, const union address *from, const union address *local)
{
    struct session **place = &bucket[hash(l, from, local)], *s;
    for (s = *place; s; s = s->chain)
        if (s->at == l && !memcmp(&s->client, from, sizeof *from) && !memcmp(&s->local, local, sizeof *local)) return s;
    while (oldest && sessions >= most_sessions) forget(oldest);
    int fd = socket(l->target.any.sa_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return NULL;
    s = connect(fd, &l->target.any, length_of(&l->target)) ? NULL : calloc(1, sizeof *s);
    if (!s) {
        int error = errno;
        close(fd);
        errno = error;
        return NULL;
    }
    *s = (struct session){.w = {SESSION, fd, 0}, .at = l, .client = *from, .local = *local};
    if (watch(&s->w, EPOLLIN)) return close(fd), free(s), NULL;
    place = &bucket[hash(l, from, local)]; /* forgetting may have changed it */
    s->chain = *place;
    *place = s;
    to_newest(s);
    sessions++;
    return s;
}

static char datagram[DATAGRAM];

union room {
    struct cmsghdr align;
    char bytes[256];
};

/* The address of ours that it came to, from which the answer must come. */
static void find_local(struct msghdr *m, union address *local)
{
    memset(local, 0, sizeof *local);
    struct in_pktinfo v4;
    struct in6_pktinfo v6;
    struct cmsghdr *c = CMSG_FIRSTHDR(m);
    if (c && c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
        memcpy(&v4, CMSG_DATA(c), sizeof v4);
        local->v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = v4.ipi_spec_dst};
    } else if (c && c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
        memcpy(&v6, CMSG_DATA(c), sizeof v6);
        local->v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = v6.ipi6_addr, .sin6_scope_id = v6.ipi6_ifindex};
    }
}

static void on_udp(struct listener *l)
{
    for (int turn = 0; turn < TURNS * 4; turn++) {
        union address from = {0}, local;
        union room room;
        struct iovec data = {datagram, sizeof datagram};
        struct msghdr m = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &data, .msg_iovlen = 1};
        m.msg_control = &room;
        m.msg_controllen = sizeof room;
        ssize_t n = recvmsg(l->w.fd, &m, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n < 0 && (errno == EBADF || errno == ENOTSOCK)) return (void)watch(&l->w, 0);
        if (n < 0) continue; /* what an earlier answer met */
        find_local(&m, &local);
        struct session *s = session_of(l, &from, &local);
        if (!s) {
            refused++;
            if (is_exhausted()) return rest();
            continue; /* there is no way to it now */
        }
        out_of_order(s);
        to_newest(s);
        send(s->w.fd, datagram, (size_t)n, MSG_NOSIGNAL);
    }
}

static void answer_from(struct session *s, size_t length)
{
    union room room = {0};
    struct iovec data = {datagram, length};
    struct msghdr m = {.msg_name = &s->client, .msg_namelen = length_of(&s->client), .msg_iov = &data, .msg_iovlen = 1};
    struct cmsghdr *c = &room.align;
    m.msg_control = &room;
    if (s->local.any.sa_family == AF_INET) {
        struct in_pktinfo v4 = {.ipi_spec_dst = s->local.v4.sin_addr};
        *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof v4), .cmsg_level = IPPROTO_IP, .cmsg_type = IP_PKTINFO};
        memcpy(CMSG_DATA(c), &v4, sizeof v4);
        m.msg_controllen = CMSG_SPACE(sizeof v4);
    } else if (s->local.any.sa_family == AF_INET6) {
        struct in6_pktinfo v6 = {.ipi6_addr = s->local.v6.sin6_addr, .ipi6_ifindex = s->local.v6.sin6_scope_id};
        *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof v6), .cmsg_level = IPPROTO_IPV6, .cmsg_type = IPV6_PKTINFO};
        memcpy(CMSG_DATA(c), &v6, sizeof v6);
        m.msg_controllen = CMSG_SPACE(sizeof v6);
    }
    if (!m.msg_controllen) m.msg_control = NULL;
    sendmsg(s->at->w.fd, &m, MSG_NOSIGNAL);
}

static void on_session(struct session *s)
{
    for (int turn = 0; s->at && turn < TURNS; turn++) {
        ssize_t n = recv(s->w.fd, datagram, sizeof datagram, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n < 0) continue; /* ECONNREFUSED: the guest's matter; the error is gone with this call */
        out_of_order(s);
        to_newest(s);
        answer_from(s, (size_t)n);
    }
}

/* ---- control ---- */

static struct listener **find(const char *key)
{
    struct listener **place = &listeners;
    while (*place && strcmp((*place)->key, key)) place = &(*place)->next;
    return place;
}

static const char *add(char *words[], int fd)
{
    struct listener *l;
    union address target;
    int udp = !strcmp(words[1], "udp"), type = 0;
    socklen_t size = sizeof type;
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) || type != (udp ? SOCK_DGRAM : SOCK_STREAM)) return "error no such socket came";
    if (!udp && strcmp(words[1], "tcp")) return "error the protocol is tcp or udp";
    if (parse(&target, words[2], words[3])) return "error no address";
    if (strlen(words[0]) > KEY || *find(words[0])) return "error the key is taken";
    if (listening >= LISTENERS || !(l = calloc(1, sizeof *l))) return "error too many listeners";
    *l = (struct listener){.w = {udp ? UDP : TCP, fd, 0}, .target = target, .next = listeners};
    strcpy(l->key, words[0]);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    if (udp) {
        set(fd, IPPROTO_IP, IP_PKTINFO, 1);
        set(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
    }
    if (!resting && watch(&l->w, EPOLLIN)) return free(l), "error it can not be watched";
    listeners = l;
    listening++;
    return NULL;
}

static const char *remove_listener(const char *key)
{
    struct listener **place = find(key), *l = *place;
    if (!l) return "error there is no such key";
    for (struct session *s = oldest, *next; s; s = next) {
        next = s->newer;
        if (s->at == l) forget(s);
    }
    *place = l->next;
    watch(&l->w, 0);
    close(l->w.fd);
    l->w.fd = -1;
    l->next = dead_listeners;
    dead_listeners = l;
    listening--;
    return "ok";
}

static const char *make_socket(char *words[], int *fd)
{
    union address a;
    int udp = !strcmp(words[0], "udp");
    if (parse(&a, words[1], words[2])) return "error no address";
    *fd = socket(a.any.sa_family, (udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);
    if (*fd < 0) return "error no socket";
    if (!udp) set(*fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (a.any.sa_family == AF_INET6) set(*fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    if (bind(*fd, &a.any, length_of(&a)) || (!udp && listen(*fd, 1024))) {
        const char *why = errno == EADDRINUSE ? "error taken" : errno == EACCES ? "error not allowed" : "error no such address here";
        close(*fd);
        *fd = -1;
        return why;
    }
    return "ok";
}

static char answer[ANSWER];

static const char *list(void)
{
    int n = snprintf(answer, sizeof answer, "connections %u sessions %u refused %u\n", connections, sessions, refused);
    for (struct listener *l = listeners; l; l = l->next) n += snprintf(answer + n, sizeof answer - (size_t)n, "%s\n", l->key);
    return answer;
}

/* `fd` is what came with it; it holds what goes back, or -1. What is not kept is closed. */
static const char *obey(char *request, int *fd)
{
    char *words[6] = {0};
    int count = 0, came = *fd;
    *fd = -1;
    for (char *word; count < 6 && (word = strsep(&request, " "));) words[count++] = word;
    const char *said = "error no such request";
    if (count == 5 && !strcmp(words[0], "add")) {
        said = add(words + 1, came);
        if (!said) return "ok";
    } else if (count == 2 && !strcmp(words[0], "remove")) said = remove_listener(words[1]);
    else if (count == 1 && !strcmp(words[0], "list")) said = list();
    else if (count == 4 && !strcmp(words[0], "socket")) said = make_socket(words + 1, fd);
    if (came >= 0) close(came);
    return said;
}

static void drop(struct watched *w)
{
    watch(w, 0);
    close(w->fd);
    w->fd = -1;
    clients--;
    watch(&gate, EPOLLIN);
}

static void reply(struct watched *w, const char *text, int fd)
{
    union room room = {0};
    struct iovec data = {(char *)text, strlen(text)};
    struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1};
    if (fd >= 0) {
        m.msg_control = &room;
        m.msg_controllen = CMSG_SPACE(sizeof fd);
        room.align = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&room.align), &fd, sizeof fd);
    }
    ssize_t sent = sendmsg(w->fd, &m, MSG_NOSIGNAL);
    if (fd >= 0) close(fd);
    if (sent < 0) drop(w);
}

/* The first descriptor of a message; all others are closed. */
static int descriptor_of(struct msghdr *m)
{
    int first = -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(m);
    if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) return -1;
    for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= c->cmsg_len; at += sizeof(int)) {
        int fd;
        memcpy(&fd, CMSG_DATA(c) + at, sizeof fd);
        if (first < 0) first = fd;
        else close(fd);
    }
    return first;
}

static void on_client(struct watched *w)
{
    char request[REQUEST + 1];
    union room room;
    struct iovec data = {request, REQUEST};
    struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
    ssize_t n = recvmsg(w->fd, &m, MSG_CMSG_CLOEXEC);
    if (n < 0 && nothing_now()) return;
    int fd = n < 0 ? -1 : descriptor_of(&m);
    if (n <= 0 || m.msg_flags & MSG_TRUNC) {
        if (fd >= 0) close(fd);
        return drop(w);
    }
    request[n] = 0;
    const char *said = obey(request, &fd);
    reply(w, said, fd);
}

static void on_gate(void)
{
    int fd = accept4(CONTROL, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), i = 0;
    if (fd < 0 && is_exhausted()) return rest();
    if (fd < 0) return;
    while (i < CLIENTS && client[i].fd >= 0) i++;
    client[i] = (struct watched){CLIENT, fd, 0};
    set(fd, SOL_SOCKET, SO_SNDBUF, 2 * ANSWER);
    clients++;
    if (watch(&client[i], EPOLLIN)) drop(&client[i]);
    if (clients == CLIENTS) watch(&gate, 0);
}

/* ---- all of it ---- */

static void on_event(struct watched *w, uint32_t events)
{
    if (w->fd < 0 || !w->events) return; /* gone since the kernel told */
    switch (w->kind) {
    case GATE: return on_gate();
    case CLIENT: return on_client(w);
    case TCP: return on_tcp((struct listener *)w);
    case UDP: return on_udp((struct listener *)w);
    case SIDE: return on_side((struct side *)w, events);
    case SESSION: return on_session((struct session *)w);
    }
}

/* Only now: events of the same batch may have named them. */
static void bury(void)
{
    for (struct connection *c; (c = dead_connections); free(c)) dead_connections = c->next;
    for (struct session *s; (s = dead_sessions); free(s)) dead_sessions = s->dead;
    for (struct listener *l; (l = dead_listeners); free(l)) dead_listeners = l->next;
}

static int time_left(void)
{
    uint64_t at = now(), next = UINT64_MAX;
    while (oldest && oldest->used + IDLE_MS <= at) forget(oldest);
    if (resting && resting <= at) resume();
    if (oldest) next = oldest->used + IDLE_MS;
    if (resting && resting < next) next = resting;
    return next == UINT64_MAX ? -1 : next <= at ? 0 : (int)(next - at);
}

/* A connection is two descriptors, and at times two pipes. */
static void measure(void)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    rlim_t most = files.rlim_cur < 1 << 20 ? files.rlim_cur : 1 << 20;
    rlim_t left = most > 4 * RESERVED ? most - RESERVED - (most > 2 * LISTENERS ? LISTENERS : RESERVED) : RESERVED;
    most_sessions = left / 8 < MOST_SESSIONS ? (unsigned)(left / 8) : MOST_SESSIONS;
    most_connections = (left - most_sessions) / 3 < MOST_CONNECTIONS ? (unsigned)((left - most_sessions) / 3) : MOST_CONNECTIONS;
}

int main(void)
{
    struct epoll_event events[256];
    signal(SIGPIPE, SIG_IGN);
    measure();
    for (int i = 0; i < CLIENTS; i++) client[i].fd = -1;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || fcntl(CONTROL, F_SETFL, fcntl(CONTROL, F_GETFL) | O_NONBLOCK) < 0 || watch(&gate, EPOLLIN)) return 1;
    for (;;) {
        int n = epoll_wait(epoll, events, 256, time_left());
        if (n < 0 && errno != EINTR) return 1;
        for (int i = 0; i < n; i++) on_event(events[i].data.ptr, events[i].events);
        bury();
    }
}
