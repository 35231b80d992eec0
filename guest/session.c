/* Sessions. Nothing here waits: a stream moves only while it is ready, has credit and the way out has room. */
#define _GNU_SOURCE
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "spawn.h"

/* A daemon started by the command may hold its output for ever: after the exit we wait for this much silence, but no longer than that. */
#define SILENCE_MS 100
#define LINGER_MS 1000

static struct session sessions[SESSIONS];
static unsigned highest; /* slots from here on were never used */

static struct session *find(uint32_t id) {
    for (unsigned i = 0; i < highest; i++)
        if (sessions[i].pid && !sessions[i].forgotten && sessions[i].id == id) return &sessions[i];
    return NULL;
}

static void shut(struct stream *stream) {
    if (stream->fd >= 0) close(stream->fd);
    stream->fd = -1;
}

/* The group, and on a terminal the job in its foreground. The leader is not reaped before the session ends, so its number is still ours. */
static void send_signal(struct session *s, int number, int everyone) {
    pid_t front = 0;
    if (s->pty && s->streams[STREAM_OUT].fd >= 0) ioctl(s->streams[STREAM_OUT].fd, TIOCGPGRP, &front);
    if (front > 1) kill(-front, number);
    if (front != s->pid && (everyone || front <= 1)) kill(-s->pid, number);
}

static void release(struct session *s) {
    uint8_t *queue = s->queue;
    for (unsigned i = 0; i < 3; i++) shut(&s->streams[i]);
    waitpid(s->pid, NULL, 0);
    *s = (struct session){.queue = NULL};
    free(queue);
}

/* Kills what is left and says nothing more about it; the slot is free when the process is. */
static void forget(struct session *s) {
    send_signal(s, SIGKILL, 1);
    for (unsigned i = 0; i < 3; i++) shut(&s->streams[i]);
    s->forgotten = 1;
    if (s->exited) release(s);
}

void sessions_kill_all(void) {
    for (unsigned i = 0; i < highest; i++)
        if (sessions[i].pid && !sessions[i].forgotten) forget(&sessions[i]);
}

static void send_window(struct session *s) {
    uint8_t payload[5] = {STREAM_IN};
    write32(payload + 1, s->owed);
    out_frame(s->id, FRAME_WINDOW, payload, sizeof payload);
    s->owed = 0;
}

static void start(const struct frame *frame) {
    uint8_t payload[4];
    unsigned i = 0;
    while (i < SESSIONS && sessions[i].pid) i++;
    struct session *s = &sessions[i];
    int error = i == SESSIONS ? EAGAIN : find(frame->session) ? EEXIST : spawn(s, frame->payload, frame->length);
    if (error) {
        write32(payload, (uint32_t)error);
        out_frame(frame->session, FRAME_FAILED, payload, sizeof payload);
        return;
    }
    if (i >= highest) highest = i + 1;
    s->id = frame->session;
    for (unsigned k = 0; k < 3; k++)
        if (s->streams[k].fd >= 0 && watch(s->streams[k].fd, i, k)) s->streams[k].ready = 1;
    write32(payload, (uint32_t)s->pid);
    out_frame(s->id, FRAME_STARTED, payload, sizeof payload);
    if (!s->queue) return;
    s->owed = INPUT_QUEUE;
    send_window(s);
}

static void take_input(struct session *s, const uint8_t *data, uint32_t length) {
    if (s->streams[STREAM_IN].fd < 0 || s->input_ended) {
        s->owed += length; /* nobody reads any more: swallow it, the exit code tells the rest */
        return;
    }
    if (length > INPUT_QUEUE - s->queued) {
        forget(s); /* the host broke its promise; there is no room to be kind in */
        return;
    }
    uint32_t tail = (s->head + s->queued) % INPUT_QUEUE, first = INPUT_QUEUE - tail;
    if (first > length) first = length;
    memcpy(s->queue + tail, data, first);
    memcpy(s->queue, data + first, length - first);
    s->queued += length;
}

static void grant(struct session *s, const struct frame *frame) {
    if (frame->length != 5 || frame->payload[0] < STREAM_OUT || frame->payload[0] > STREAM_ERR) return;
    struct stream *stream = &s->streams[frame->payload[0]];
    uint32_t more = read32(frame->payload + 1);
    stream->credit = more > WINDOW_MAX - stream->credit ? WINDOW_MAX : stream->credit + more;
}

static void resize(struct session *s, const struct frame *frame) {
    if (frame->length != 4 || !s->pty || s->streams[STREAM_OUT].fd < 0) return;
    struct winsize size = {.ws_row = read16(frame->payload), .ws_col = read16(frame->payload + 2)};
    ioctl(s->streams[STREAM_OUT].fd, TIOCSWINSZ, &size);
}

void session_frame(const struct frame *frame) {
    if (frame->type == FRAME_EXEC) {
        start(frame);
        return;
    }
    struct session *s = find(frame->session);
    if (!s) return;
    switch (frame->type) {
    case FRAME_INPUT: take_input(s, frame->payload, frame->length); break;
    case FRAME_END: s->input_ended = 1; break;
    case FRAME_WINDOW: grant(s, frame); break;
    case FRAME_RESIZE: resize(s, frame); break;
    case FRAME_CLOSE: forget(s); break;
    case FRAME_SIGNAL:
        if (frame->length == 1 && frame->payload[0] && !s->exited) send_signal(s, frame->payload[0], 0);
        break;
    }
}

/* A terminal has no end of input but ^D. */
static int end_input(struct session *s) {
    struct stream *in = &s->streams[STREAM_IN];
    if (s->pty && write(in->fd, "\4", 1) < 0 && errno == EAGAIN) {
        in->ready = 0;
        return 0;
    }
    shut(in);
    return 1;
}

static int pump_input(struct session *s) {
    struct stream *in = &s->streams[STREAM_IN];
    int moved = 0;
    if (in->fd >= 0 && in->ready && s->queued) {
        uint32_t length = INPUT_QUEUE - s->head < s->queued ? INPUT_QUEUE - s->head : s->queued;
        ssize_t n = write(in->fd, s->queue + s->head, length);
        if (n < 0 && errno == EAGAIN) in->ready = 0;
        else if (n < 0 && errno != EINTR) shut(in), n = s->queued;
        if (n > 0) {
            s->head = (s->head + (uint32_t)n) % INPUT_QUEUE;
            s->queued -= (uint32_t)n;
            s->owed += (uint32_t)n;
            moved = 1;
        }
    }
    if (in->fd >= 0 && in->ready && !s->queued && s->input_ended) moved |= end_input(s);
    if (s->owed >= INPUT_QUEUE / 4 && out_room()) {
        send_window(s);
        moved = 1;
    }
    return moved;
}

static int pump_output(struct session *s, unsigned which) {
    struct stream *stream = &s->streams[which];
    size_t room = out_room();
    if (stream->fd < 0 || !stream->ready || !stream->credit || !room) return 0;
    if (room > stream->credit) room = stream->credit;
    ssize_t n = read(stream->fd, out_payload(), room);
    if (n < 0 && errno == EINTR) return 1;
    if (n < 0 && errno == EAGAIN) {
        stream->ready = 0;
        stream->left = 0;
        return 0;
    }
    if (n <= 0) { /* EIO is how a terminal says that nobody has it open any more */
        shut(stream);
        return 1;
    }
    stream->credit -= (uint32_t)n;
    stream->left = (uint32_t)n > stream->left ? 0 : stream->left - (uint32_t)n;
    if (s->exited) s->heard_at = now_ms();
    out_commit(s->id, which == STREAM_OUT ? FRAME_STDOUT : FRAME_STDERR, (uint32_t)n);
    return 1;
}

static uint64_t silence_at(const struct session *s) {
    uint64_t quiet = s->heard_at + SILENCE_MS, end = s->exited_at + LINGER_MS;
    return quiet < end ? quiet : end;
}

static int holds_output(const struct session *s, unsigned which) {
    const struct stream *stream = &s->streams[which];
    return stream->fd >= 0 && (stream->left || now_ms() < silence_at(s));
}

/* The exit frame goes after all output: when both pipes ended, or only a stranger still holds them. */
static int finish(struct session *s) {
    if (!s->exited || !out_room() || holds_output(s, STREAM_OUT) || holds_output(s, STREAM_ERR)) return 0;
    uint8_t payload[5] = {(uint8_t)s->status_signal};
    write32(payload + 1, (uint32_t)s->status_code);
    out_frame(s->id, FRAME_EXIT, payload, sizeof payload);
    release(s);
    return 1;
}

int sessions_pump(void) {
    static unsigned first; /* whoever comes first in a full channel changes from round to round */
    int moved = 0;
    for (unsigned i = 0; i < highest; i++) {
        struct session *s = &sessions[(first + i) % highest];
        if (!s->pid || s->forgotten) continue;
        moved |= pump_input(s);
        moved |= pump_output(s, STREAM_OUT);
        moved |= pump_output(s, STREAM_ERR);
        moved |= finish(s);
    }
    first = highest ? (first + 1) % highest : 0;
    return moved;
}

void sessions_ready(unsigned session, unsigned stream) {
    if (session < SESSIONS && stream < 3) sessions[session].streams[stream].ready = 1;
}

static void note_exit(struct session *s) {
    siginfo_t info = {0};
    if (waitid(P_PID, (id_t)s->pid, &info, WEXITED | WNOHANG | WNOWAIT) || !info.si_pid) return;
    s->exited = 1;
    s->status_signal = info.si_code == CLD_EXITED ? 0 : info.si_status;
    s->status_code = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
    s->exited_at = s->heard_at = now_ms();
    for (unsigned k = STREAM_OUT; k <= STREAM_ERR; k++) {
        int left = 0;
        if (s->streams[k].fd >= 0 && !ioctl(s->streams[k].fd, FIONREAD, &left) && left > 0) s->streams[k].left = (uint32_t)left;
    }
    if (s->forgotten) release(s);
}

void sessions_reap(void) {
    for (unsigned i = 0; i < highest; i++)
        if (sessions[i].pid && !sessions[i].exited) note_exit(&sessions[i]);
}

int sessions_timeout(void) {
    int timeout = -1;
    uint64_t now = now_ms();
    for (unsigned i = 0; i < highest; i++) {
        struct session *s = &sessions[i];
        if (!s->pid || !s->exited || s->streams[STREAM_OUT].left || s->streams[STREAM_ERR].left) continue;
        uint64_t at = silence_at(s);
        int wait = at > now ? (int)(at - now) : 0;
        if (wait && (timeout < 0 || wait < timeout)) timeout = wait;
    }
    return timeout;
}
