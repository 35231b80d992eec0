/* Roost's guest agent: one virtio-serial port, many commands. PROTOCOL.md says what travels on it.

   One thread, and nothing it does waits, except in epoll. Everything it holds is bounded: one frame coming in, 256 KiB going out,
   and for each session one queue of input; whoever does not read stops its own writer, and nobody else. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "builtin.h"
#include "freeze.h"
#include "session.h"

#define PORT_NAME "roost.agent.0"
#define FEATURES "identity seal freeze cards" /* what came after the first agents */
#define OUT_SIZE (256u << 10)
#define OUT_SPARE (8u << 10)      /* kept free of output, so that answers to the host always fit */
#define INFO_MAX 512
#define COMPLAINTS 2000
#define IDLE_MS 50                /* a frame whose rest does not come for this long may belong to a host that died */
#define ABSENT_MS 500             /* how often a port without a host is looked at, should its wake-up get lost */
#define PRIORITY (-15)            /* in a machine that has just been copied everybody wakes up; we are what the host waits for */
#define TAG_PORT UINT64_MAX
#define TAG_CHILD (UINT64_MAX - 1)
#define TAG_FREEZE (UINT64_MAX - 2)

static int port = -1, poller, child_events, port_given, harmless;
static int port_readable, port_writable, host_absent, host_sure, children_changed;
static struct decoder decoder;
static uint8_t out[OUT_SIZE];
static size_t out_start, out_end;
static uint8_t epoch[FRAME_NONCE]; /* the nonce of the host we belong to */
static int has_epoch;

uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- the way out ---- */

static void out_compact(void) {
    memmove(out, out + out_start, out_end - out_start);
    out_end -= out_start;
    out_start = 0;
}

size_t out_room(void) {
    if (out_start == out_end) out_start = out_end = 0;
    if (OUT_SIZE - out_end < FRAME_HEADER + FRAME_DATA + OUT_SPARE) out_compact();
    size_t free_bytes = OUT_SIZE - out_end;
    return free_bytes < FRAME_HEADER + FRAME_DATA + OUT_SPARE ? 0 : FRAME_DATA;
}

uint8_t *out_payload(void) { return out + out_end + FRAME_HEADER; }

void out_commit(uint32_t session, uint8_t type, uint32_t length) {
    frame_seal(out + out_end, session, type, length);
    out_end += FRAME_HEADER + length;
}

/* For small frames. The caller knows that there is room: output stops at OUT_SPARE, and frames are only taken in while out_room. */
void out_frame(uint32_t session, uint8_t type, const void *payload, uint32_t length) {
    if (OUT_SIZE - out_end < FRAME_HEADER + length) out_compact();
    if (OUT_SIZE - out_end < FRAME_HEADER + length) return;
    if (length) memcpy(out_payload(), payload, length);
    out_commit(session, type, length);
}

/* ---- the port ---- */

int watch(int fd, unsigned session, unsigned stream) {
    struct epoll_event event = {.events = EPOLLET | (stream == STREAM_IN ? EPOLLOUT : EPOLLIN), .data.u64 = session * 4u + stream};
    return epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static int open_named(const char *entry) {
    char path[sizeof "/sys/class/virtio-ports//name" + NAME_MAX], name[64];
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, name, sizeof name - 1);
    close(fd);
    name[n > 0 ? n : 0] = 0;
    name[strcspn(name, "\n")] = 0;
    if (strcmp(name, PORT_NAME)) return -1;
    snprintf(path, sizeof path, "/dev/%s", entry);
    return open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

/* By its name in sysfs: there before udev has made /dev/virtio-ports, and without udev. */
static int find_port(void) {
    DIR *directory = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    int fd = -1;
    while (directory && fd < 0 && (entry = readdir(directory)))
        if (*entry->d_name != '.') fd = open_named(entry->d_name);
    if (directory) closedir(directory);
    return fd;
}

static void pause_ms(unsigned ms) {
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

/* Not there yet (driver loading), busy (an agent of the initramfs still holds it) and gone (unplugged) are all the same: try again. */
static void acquire_port(void) {
    unsigned wait = 1;
    while (port < 0 && (port = find_port()) < 0) {
        pause_ms(wait);
        freeze_moved();
        if (wait < 200) wait += wait / 4 + 1;
    }
    struct epoll_event event = {.events = EPOLLET | EPOLLIN | EPOLLOUT | EPOLLRDHUP, .data.u64 = TAG_PORT};
    epoll_ctl(poller, EPOLL_CTL_ADD, port, &event);
    decoder_clear(&decoder);
    out_start = out_end = 0;
    port_readable = port_writable = 1;
    uint8_t version[] = ROOST_AGENT_VERSION;
    out_frame(0, FRAME_HELLO, version, sizeof version - 1);
}

/* The host closed its end: its sessions end, and half a frame from it must not meet the next host's bytes. */
static void host_left(void) {
    freeze_abandon();
    if (port_given) exit(0);
    sessions_kill_all();
    decoder_clear(&decoder);
    out_start = out_end = 0;
    has_epoch = host_sure = 0;
    host_absent = 1;
    port_readable = 0;
}

static void port_lost(void) {
    host_left();
    close(port);
    port = -1;
    acquire_port();
}

static int flush_port(void) {
    if (!port_writable || out_start == out_end) return 0;
    size_t length = out_end - out_start < FRAME_DATA ? out_end - out_start : FRAME_DATA;
    ssize_t n = write(port, out + out_start, length);
    if (n > 0) out_start += (size_t)n, host_sure = 1;
    if (n > 0 || (n < 0 && errno == EINTR)) return 1;
    port_writable = 0;
    if (n < 0 && errno != EAGAIN && errno != EPIPE && errno != ENOTCONN) port_lost();
    return 0;
}

/* ---- frames for the agent itself ---- */

static void os_id(char *id, size_t size) {
    char line[256];
    FILE *file = fopen("/etc/os-release", "re");
    snprintf(id, size, "unknown");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "ID=", 3)) continue;
        char *value = line + 3 + (line[3] == '"');
        value[strcspn(value, "\"\n")] = 0;
        snprintf(id, size, "%.60s", value);
    }
    if (file) fclose(file);
}

static void reset(const struct frame *frame) {
    uint8_t answer[FRAME_NONCE + INFO_MAX];
    struct utsname name;
    char id[64];
    if (!has_epoch || memcmp(epoch, frame->payload, FRAME_NONCE)) { /* a repeated reset is only answered again */
        sessions_kill_all();
        freeze_abandon();
        out_start = out_end = 0;
        memcpy(epoch, frame->payload, FRAME_NONCE);
        has_epoch = 1;
    }
    uname(&name);
    os_id(id, sizeof id);
    memcpy(answer, epoch, FRAME_NONCE);
    int n = snprintf((char *)answer + FRAME_NONCE, INFO_MAX, "agent=%s\ncan=%s\nkernel=%s\narch=%s\nos=%s\n", ROOST_AGENT_VERSION,
                     FEATURES, name.release, name.machine, id);
    out_frame(0, FRAME_RESET, answer, FRAME_NONCE + (uint32_t)(n < INFO_MAX ? n : INFO_MAX - 1));
}

/* Not a process of its own: what that costs a machine that has just been copied, and is emulated, is as much as all the rest. */
static void take_identity(const struct frame *frame) {
    static char lines[FRAME_MAX + 1];
    char answer[4 + COMPLAINTS] = "";
    memcpy(lines, frame->payload, frame->length);
    lines[frame->length] = 0;
    collect_complaints(answer + 4, COMPLAINTS);
    int error = harmless ? EOPNOTSUPP : identify(lines);
    collect_complaints(NULL, 0);
    explicit_bzero(lines, frame->length); /* there were keys in it */
    write32((uint8_t *)answer, (uint32_t)error);
    out_frame(0, FRAME_IDENTITY, answer, 4 + (uint32_t)strlen(answer + 4));
}

static void handle(const struct frame *frame) {
    if (frame->type == FRAME_RESET && !frame->session && frame->length == FRAME_NONCE) reset(frame);
    else if (!has_epoch) return;
    else if (frame->type == FRAME_PING) out_frame(0, FRAME_PING, frame->payload, frame->length < 64 ? frame->length : 64);
    else if (frame->type == FRAME_IDENTITY && !frame->session) take_identity(frame);
    else if (frame->type == FRAME_FREEZE || frame->type == FRAME_THAW) freeze_frame(frame);
    else session_frame(frame);
}

/* Frames are taken in only while their answers fit. */
static int take_frames(void) {
    struct frame frame;
    int moved = 0;
    while (out_room() && decoder_next(&decoder, &frame)) {
        decoder_drop(&decoder, &frame);
        handle(&frame);
        moved = 1;
    }
    return moved;
}

static int read_port(void) {
    size_t room;
    if (!port_readable || !out_room()) return 0;
    uint8_t *space = decoder_space(&decoder, &room);
    ssize_t n = read(port, space, room < (64u << 10) ? room : 64u << 10);
    if (n > 0) {
        decoder.used += (size_t)n;
        if (host_absent) port_writable = 1;
        host_absent = 0;
        return 1;
    }
    if (n < 0 && errno == EINTR) return 1;
    if (n < 0 && errno == EAGAIN) port_readable = host_absent = 0, host_sure = 1;
    else if (n < 0 && errno != EPIPE && errno != ECONNRESET) port_lost();
    else if (host_sure || port_given) host_left();
    else port_readable = 0, host_absent = 1; /* what a host sends may arrive before the kernel knows that it has come */
    return 0;
}

/* ---- the loop ---- */

static void wait_for_events(int timeout) {
    struct epoll_event events[64];
    int count = epoll_wait(poller, events, 64, timeout);
    struct signalfd_siginfo info;
    for (int i = 0; i < count; i++) {
        uint64_t tag = events[i].data.u64;
        if (tag == TAG_PORT) port_readable = port_writable = 1;
        else if (tag == TAG_FREEZE) freeze_moved();
        else if (tag != TAG_CHILD) sessions_ready((unsigned)(tag / 4), (unsigned)(tag % 4));
        else for (children_changed = 1; read(child_events, &info, sizeof info) > 0;);
    }
    if (!count && host_absent) port_readable = port_writable = 1;
}

static int shorter(int a, int b) { return a < 0 ? b : b < 0 || a < b ? a : b; }

static void serve(void) {
    struct frame frame;
    for (;;) {
        int moved;
        do {
            moved = take_frames();
            moved |= read_port();
            if (children_changed) sessions_reap();
            children_changed = 0;
            moved |= sessions_pump();
            moved |= flush_port();
        } while (moved);
        int half = !decoder.lost && decoder.used > decoder.start && !decoder.peeked;
        int timeout = shorter(sessions_timeout(), shorter(half ? IDLE_MS : -1, host_absent ? ABSENT_MS : -1));
        uint64_t before = now_ms();
        wait_for_events(shorter(timeout, freeze_timeout()));
        freeze_expire();
        if (half && now_ms() - before >= IDLE_MS && decoder_peek(&decoder, &frame)) {
            decoder_drop(&decoder, &frame);
            handle(&frame);
        }
    }
}

/* A kernel without a console starts us with nothing open: our own files must not become some command's output. */
static void open_standard_files(void) {
    int fd;
    while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd < 3);
    if (fd >= 3) close(fd);
}

/* `--port-fd N [MOUNTS]` is for tests: a port that is open already, and the file systems that may be frozen; without them the machine is left
   alone, for it is the tester's own. */
int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--port-fd")) return builtin(argc - 1, argv + 1);
    open_standard_files();
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL); /* what our starter ignores, commands must not inherit */
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, NULL);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    child_events = signalfd(-1, &children, SFD_NONBLOCK | SFD_CLOEXEC);
    harmless = argc == 3;
    int frozen = freeze_open(harmless ? "" : argc > 3 ? argv[3] : "/proc/self/mounts");
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = TAG_CHILD}, freezing = {.events = EPOLLIN, .data.u64 = TAG_FREEZE};
    if (poller < 0 || child_events < 0 || frozen < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, child_events, &event) ||
        epoll_ctl(poller, EPOLL_CTL_ADD, frozen, &freezing)) {
        perror("roost-agent");
        return 1;
    }
    setpriority(PRIO_PROCESS, 0, PRIORITY);
    if (argc > 2) {
        port = atoi(argv[2]);
        port_given = 1;
        fcntl(port, F_SETFL, O_NONBLOCK);
        fcntl(port, F_SETFD, FD_CLOEXEC);
    }
    acquire_port();
    serve();
}
