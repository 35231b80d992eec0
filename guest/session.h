/* Sessions: commands that run in the guest, their streams and their credit. */
#ifndef ROOST_SESSION_H
#define ROOST_SESSION_H

#include <stdint.h>
#include <sys/types.h>

#include "frame.h"

#define SESSIONS 256
#define INPUT_QUEUE (128u << 10)
#define WINDOW_MAX (4u << 20)

enum { STREAM_IN, STREAM_OUT, STREAM_ERR };

struct stream {
    int fd;         /* -1: closed */
    int ready;      /* epoll said so; cleared at EAGAIN (edge-triggered: nothing ever spins) */
    uint32_t credit; /* bytes we may still send to the host */
    uint32_t left;  /* after the exit: what the command itself may have left in the pipe */
};

struct session {
    uint32_t id;
    pid_t pid;                      /* 0: the slot is free */
    int pty;                        /* STREAM_OUT is the terminal's master, and input goes there */
    int exited, forgotten;          /* the process has ended (not reaped) / the host has closed the session */
    int status_signal, status_code;
    struct stream streams[3];
    uint8_t *queue;                 /* ring of INPUT_QUEUE bytes */
    uint32_t queued, head, owed;    /* owed: bytes written on, not yet granted again */
    int input_ended;
    uint64_t exited_at, heard_at;   /* milliseconds, CLOCK_MONOTONIC */
};

/* Provided by agent.c: the bounded way out. */
size_t out_room(void);
uint8_t *out_payload(void);
void out_commit(uint32_t session, uint8_t type, uint32_t length);
void out_frame(uint32_t session, uint8_t type, const void *payload, uint32_t length);
int watch(int fd, unsigned session, unsigned stream);
uint64_t now_ms(void);

void session_frame(const struct frame *frame);
/* Moves what can be moved; 1 when something was. */
int sessions_pump(void);
void sessions_ready(unsigned session, unsigned stream);
/* Looks at which commands have ended. */
void sessions_reap(void);
void sessions_kill_all(void);
/* Milliseconds until a session must be looked at again, -1 for never. */
int sessions_timeout(void);

#endif
