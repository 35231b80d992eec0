/* Writes numbered blocks round and round, and says each number once it is on the disk; or checks that what was said is there.

   blocks write DISK FIRST COUNT SECRET          for ever
   blocks check DISK FIRST LAST COUNT SECRET     prints the first number that is lost, or "whole" */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIZE = 4096 };
static char block[SIZE], found[SIZE];

static int fail(const char *what) {
    perror(what);
    return 1;
}

/* Different in every part from every other block. */
static void fill(unsigned long number, const char *secret) {
    char text[64];
    int length = snprintf(text, sizeof text, "%lu %s ", number, secret);
    for (int at = 0; at < SIZE; at += length)
        memcpy(block + at, text, at + length < SIZE ? (size_t)length : (size_t)(SIZE - at));
}

static int write_blocks(int disk, unsigned long number, unsigned long count, const char *secret) {
    char line[32];
    for (;; number++) {
        fill(number, secret);
        if (pwrite(disk, block, SIZE, (off_t)(number % count) * SIZE) != SIZE) return fail("write");
        if (fdatasync(disk)) return fail("sync");
        int length = snprintf(line, sizeof line, "%lu\n", number);
        if (write(1, line, (size_t)length) != length) return fail("say");
    }
}

static int check_blocks(int disk, unsigned long first, unsigned long last, unsigned long count, const char *secret) {
    /* The next block may have been written too, in the place of the oldest. */
    if (last + 2 > first + count) first = last + 2 - count;
    for (unsigned long number = first; number <= last; number++) {
        fill(number, secret);
        if (pread(disk, found, SIZE, (off_t)(number % count) * SIZE) != SIZE) return fail("read");
        if (memcmp(block, found, SIZE)) return printf("lost %lu\n", number), 2;
    }
    return puts("whole") < 0;
}

int main(int argc, char **argv) {
    if (argc < 6) return fputs("blocks write|check DISK FIRST ...\n", stderr), 1;
    int writes = !strcmp(argv[1], "write");
    int disk = open(argv[2], writes ? O_RDWR : O_RDONLY);
    if (disk < 0) return fail(argv[2]);
    unsigned long first = strtoul(argv[3], NULL, 10), second = strtoul(argv[4], NULL, 10);
    if (writes) return write_blocks(disk, first, second, argv[5]);
    return argc < 7 ? 1 : check_blocks(disk, first, second, strtoul(argv[5], NULL, 10), argv[6]);
}
