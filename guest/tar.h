/* The tar format: ustar, with pax records for what does not fit. */
#ifndef ROOST_TAR_H
#define ROOST_TAR_H

#define TAR_BLOCK 512
#define TAR_NAME_MAX 4096      /* longest path or link target we take or make (PATH_MAX) */
#define TAR_RECORDS_MAX 65536  /* longest block of pax records we take */

struct tar_header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100];
    char magic[6], version[2], owner[32], group[32], major[8], minor[8], prefix[155], padding[12];
};

_Static_assert(sizeof(struct tar_header) == TAR_BLOCK, "a tar header is one block");

static inline unsigned tar_checksum(const struct tar_header *header) {
    const unsigned char *p = (const unsigned char *)header;
    unsigned sum = 8 * ' ';
    for (unsigned i = 0; i < TAR_BLOCK; i++) sum += i >= 148 && i < 156 ? 0 : p[i];
    return sum;
}

#endif
