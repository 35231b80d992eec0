/* freeze and thaw: the guest's file systems are whole on the disk for as long as a snapshot of it takes.

   Freezing writes out everything, which may take long: a thread does that, so that the agent goes on answering, and can thaw. From the
   request on it takes and lasts at most FREEZE_MS. While anything is frozen the agent itself writes no file and waits for nobody. */
#define _GNU_SOURCE
#include "freeze.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "session.h"

#ifndef FREEZE_MS
#define FREEZE_MS 10000
#endif
#define FILE_SYSTEMS 64
#define STACK (64 << 10)

enum { IDLE, FREEZING, FROZEN, GIVING_UP };

struct file_system {
    int fd;
    dev_t device;
    atomic_int frozen;
};

static const char *mounts;
static struct file_system systems[FILE_SYSTEMS]; /* in the order of freezing */
static unsigned count;
static int state, finished = -1, worker_error, thaw_asked, host_waits;
static atomic_int stop;
static pthread_t worker;
static uint64_t deadline;

static void answer(uint8_t type, int error) {
    uint8_t payload[4];
    write32(payload, (uint32_t)error);
    if (host_waits) out_frame(0, type, payload, sizeof payload);
}

/* ---- which file systems ---- */

/* The kernel writes space, tab, newline and backslash as \ and three octal digits. */
static void unescape(char *text) {
    char *to = text;
    for (char *p = text; *p; p++) {
        if (*p == '\\' && p[1] && p[2] && p[3]) {
            *to++ = (char)((p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0'));
            p += 3;
        } else *to++ = *p;
    }
    *to = 0;
}

static void add_mount(const char *directory) {
    struct stat st;
    int fd = count < FILE_SYSTEMS ? open(directory, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC) : -1;
    int known = fd < 0 || fstat(fd, &st);
    for (unsigned i = 0; i < count && !known; i++) known = systems[i].device == st.st_dev;
    if (!known) systems[count++] = (struct file_system){.fd = fd, .device = st.st_dev};
    else if (fd >= 0) close(fd);
}

/* Those on block devices that can be written to, the last mounted first: what is mounted later may stand on what is there already. */
static void collect(void) {
    char line[4096], source[1024], directory[1024], options[1024];
    FILE *file = fopen(mounts, "re");
    count = 0;
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "%1023s %1023s %*s %1023s", source, directory, options) != 3) continue;
        if (strncmp(source, "/dev/", 5) || (strcmp(options, "rw") && strncmp(options, "rw,", 3))) continue;
        unescape(directory);
        add_mount(directory);
    }
    if (file) fclose(file);
    for (unsigned i = 0; i < count / 2; i++) {
        struct file_system other = systems[i];
        systems[i] = systems[count - 1 - i];
        systems[count - 1 - i] = other;
    }
}

static void forget_systems(void) {
    while (count) close(systems[--count].fd);
}

/* ---- freezing, in its own thread ---- */

static void *freeze_all(void *nothing) {
    uint64_t one = 1;
    for (unsigned i = 0; i < count && !stop && !worker_error; i++) {
        if (!ioctl(systems[i].fd, FIFREEZE, 0)) systems[i].frozen = 1;
        else if (errno != EOPNOTSUPP && errno != EBUSY) worker_error = errno; /* cannot be frozen; is, by somebody else */
    }
    if (write(finished, &one, sizeof one) < 0) worker_error = errno;
    return nothing;
}

static void begin(void) {
    pthread_attr_t attributes;
    if (state != IDLE || !*mounts) return answer(FRAME_FREEZE, *mounts ? EBUSY : EOPNOTSUPP);
    collect();
    stop = worker_error = thaw_asked = 0;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    int error = pthread_create(&worker, &attributes, freeze_all, NULL);
    pthread_attr_destroy(&attributes);
    if (error) {
        forget_systems();
        return answer(FRAME_FREEZE, error);
    }
    state = FREEZING;
    deadline = now_ms() + FREEZE_MS;
}

/* ---- thawing ---- */

/* In the order of freezing. One that is just being frozen is not touched: it may wait for one of those before it. */
static void thaw_frozen(void) {
    for (unsigned i = 0; i < count; i++)
        if (atomic_exchange(&systems[i].frozen, 0)) ioctl(systems[i].fd, FITHAW, 0);
}

static void end(void) {
    thaw_frozen();
    forget_systems();
    state = IDLE;
    if (thaw_asked) answer(FRAME_THAW, 0);
    thaw_asked = 0;
}

/* The thread ends after the file system it is at; what it has frozen by then is thawed when it has. */
static void give_up(int error) {
    if (state == FROZEN) return end();
    if (state == FREEZING) answer(FRAME_FREEZE, error);
    if (state != IDLE) state = GIVING_UP;
    stop = 1;
    thaw_frozen();
}

void freeze_moved(void) {
    uint64_t times;
    if (read(finished, &times, sizeof times) < 0 || state == IDLE || state == FROZEN) return;
    pthread_join(worker, NULL);
    if (state == FREEZING) {
        answer(FRAME_FREEZE, worker_error);
        state = FROZEN;
    } else worker_error = ECANCELED;
    if (worker_error) end();
}

void freeze_frame(const struct frame *frame) {
    host_waits = 1;
    if (frame->type == FRAME_FREEZE) return begin();
    if (state == IDLE) return answer(FRAME_THAW, 0);
    thaw_asked = 1;
    give_up(ECANCELED);
}

void freeze_abandon(void) {
    host_waits = thaw_asked = 0;
    give_up(ECANCELED);
}

int freeze_timeout(void) {
    uint64_t now = now_ms();
    if (state != FREEZING && state != FROZEN) return -1;
    return deadline > now ? (int)(deadline - now) : 0;
}

void freeze_expire(void) {
    if (!freeze_timeout()) give_up(ETIMEDOUT);
}

int freeze_open(const char *table) {
    mounts = table;
    if (*mounts) collect();
    for (unsigned i = 0; i < count; i++) ioctl(systems[i].fd, FITHAW, 0);
    forget_systems();
    return finished = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
}
