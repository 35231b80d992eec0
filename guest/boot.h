/* What the two halves of init share. */
#ifndef ROOST_BOOT_H
#define ROOST_BOOT_H

#include <stddef.h>
#include <stdint.h>

/* Says what went wrong on the console, with errno's text. */
void warn(const char *what);
/* The value of a word of the kernel command line ("roost.root="), or NULL. Valid until the next call. */
const char *kernel_option(const char *name);
/* A socket that becomes readable whenever a device appears. */
int open_uevents(void);
void drain_uevents(int fd);
uint64_t now_ms(void);

/* Waits for the root partition, mounts it and becomes its init. Returns only when that was not possible. */
void switch_root(const char *device, char **argv);
/* Tiny: the machine lives in the initramfs. */
void run_tiny(void) __attribute__((noreturn));
void load_modules(void);

#endif
