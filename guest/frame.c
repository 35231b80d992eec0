/* Framing without I/O: checksummed frames, and finding the way again after a connection broke in the middle of one. */
#include "frame.h"

#include <string.h>

static uint32_t crc_table[256];

static void crc_prepare(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        crc_table[i] = c;
    }
}

uint32_t crc32_update(uint32_t crc, const void *data, size_t length) {
    const uint8_t *p = data;
    if (!crc_table[1]) crc_prepare();
    crc = ~crc;
    while (length--) crc = crc_table[(crc ^ *p++) & 255] ^ (crc >> 8);
    return ~crc;
}

uint32_t read32(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }
uint16_t read16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
void write32(uint8_t *p, uint32_t v) { p[0] = v; p[1] = v >> 8; p[2] = v >> 16; p[3] = v >> 24; }

void frame_seal(uint8_t *at, uint32_t session, uint8_t type, uint32_t length) {
    write32(at, FRAME_MAGIC);
    write32(at + 4, length);
    write32(at + 8, session);
    write32(at + 12, type);
    write32(at + 16, crc32_update(crc32_update(0, at, 16), at + FRAME_HEADER, length));
}

/* What stands at `p`: 1 a whole good frame, 0 the beginning of one, -1 none. */
static int examine(const uint8_t *p, size_t have, struct frame *out) {
    uint8_t magic[4];
    write32(magic, FRAME_MAGIC);
    if (memcmp(p, magic, have < 4 ? have : 4)) return -1;
    if (have < FRAME_HEADER) return 0;
    uint32_t length = read32(p + 4);
    if (length > FRAME_MAX || read32(p + 12) > 255) return -1;
    if (have < FRAME_HEADER + length) return 0;
    uint32_t crc = crc32_update(crc32_update(0, p, 16), p + FRAME_HEADER, length);
    if (crc != read32(p + 16)) return -1;
    *out = (struct frame){read32(p + 8), length, p[12], p + FRAME_HEADER};
    return 1;
}

static int is_reset(const struct frame *frame) {
    return frame->type == FRAME_RESET && !frame->session && frame->length == FRAME_NONCE;
}

/* Could a reset frame begin at `p`? Keeps a long bogus length from hiding the reset behind it. */
static int may_be_reset(const uint8_t *p, size_t have) {
    return have < 8 || read32(p + 4) == FRAME_NONCE;
}

static void discard(struct decoder *d, size_t count) {
    d->start += count;
    d->peeked = 0;
}

/* Looks for a whole reset frame, or the beginning of one, `at` bytes into what there is; drops what is in front of it. */
static int find_reset(struct decoder *d, size_t at, int whole, struct frame *out) {
    for (; d->start + at < d->used; at++) {
        const uint8_t *p = d->buffer + d->start + at;
        size_t have = d->used - d->start - at;
        int verdict = examine(p, have, out);
        if (verdict < whole || !may_be_reset(p, have) || (verdict && !is_reset(out))) continue;
        discard(d, at);
        return verdict;
    }
    if (!whole) d->start = d->used;
    return 0;
}

void decoder_clear(struct decoder *d) {
    d->start = d->used = 0;
    d->lost = 1;
    d->peeked = 0;
}

uint8_t *decoder_space(struct decoder *d, size_t *room) {
    memmove(d->buffer, d->buffer + d->start, d->used - d->start);
    d->used -= d->start;
    d->start = 0;
    d->peeked = 0;
    *room = sizeof d->buffer - d->used;
    return d->buffer + d->used;
}

int decoder_next(struct decoder *d, struct frame *out) {
    if (!d->lost) {
        int verdict = examine(d->buffer + d->start, d->used - d->start, out);
        if (verdict >= 0) return verdict;
        d->lost = 1;
    }
    if (!find_reset(d, 0, 0, out)) return 0;
    d->lost = 0;
    return 1;
}

void decoder_drop(struct decoder *d, const struct frame *frame) { discard(d, FRAME_HEADER + frame->length); }

int decoder_peek(struct decoder *d, struct frame *out) {
    if (d->lost || d->peeked || examine(d->buffer + d->start, d->used - d->start, out)) return 0;
    d->peeked = 1;
    return find_reset(d, 1, 1, out);
}
