/* Framing: what travels on the port. PROTOCOL.md is the contract; src/roost/hypervisor/agentwire.py is the other side. */
#ifndef ROOST_FRAME_H
#define ROOST_FRAME_H

#include <stddef.h>
#include <stdint.h>

#define FRAME_MAGIC 0x31545352u /* "RST1" */
#define FRAME_HEADER 20
#define FRAME_MAX (256u << 10)  /* largest payload */
#define FRAME_DATA (32u << 10)  /* largest payload we make: virtio_console copies at most 32 KiB a write */
#define FRAME_NONCE 16

enum frame_type {
    FRAME_RESET = 'R',   /* both ways */
    FRAME_PING = 'P',    /* both ways */
    FRAME_WINDOW = 'W',  /* both ways */
    FRAME_FREEZE = 'Q',  /* both ways */
    FRAME_THAW = 'T',    /* both ways */
    FRAME_IDENTITY = 'U', /* both ways */
    FRAME_EXEC = 'X',    /* to the guest from here on */
    FRAME_INPUT = 'I',
    FRAME_END = 'E',
    FRAME_SIGNAL = 'S',
    FRAME_RESIZE = 'Z',
    FRAME_CLOSE = 'K',
    FRAME_HELLO = 'H',   /* from the guest from here on */
    FRAME_STARTED = 'Y',
    FRAME_FAILED = 'F',
    FRAME_STDOUT = 'O',
    FRAME_STDERR = 'e',
    FRAME_EXIT = 'C',
};

struct frame {
    uint32_t session, length;
    uint8_t type;
    const uint8_t *payload;
};

/* Bytes in, frames out. Starts and, after damage, stays lost: then only a reset frame is believed. */
struct decoder {
    size_t start, used;
    int lost, peeked;
    uint8_t buffer[FRAME_HEADER + FRAME_MAX];
};

uint32_t crc32_update(uint32_t crc, const void *data, size_t length);
uint32_t read32(const uint8_t *from);
uint16_t read16(const uint8_t *from);
void write32(uint8_t *to, uint32_t value);

/* Writes the 20 bytes in front of a payload that follows them in memory. */
void frame_seal(uint8_t *at, uint32_t session, uint8_t type, uint32_t length);

void decoder_clear(struct decoder *decoder);
/* Where to read more bytes to, and how many fit (never 0 once decoder_next has returned 0). */
uint8_t *decoder_space(struct decoder *decoder, size_t *room);
/* 1: `out` is the next frame, valid until decoder_space; 0: more bytes are needed. */
int decoder_next(struct decoder *decoder, struct frame *out);
void decoder_drop(struct decoder *decoder, const struct frame *frame);
/* A frame was begun and its rest does not come: look inside it for the reset of a new host. 1 when one was found. */
int decoder_peek(struct decoder *decoder, struct frame *out);

#endif
