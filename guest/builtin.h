/* Things the agent does itself, each in a process of its own (roost-agent NAME ARGS), so that a guest needs no tar, no useradd. */
#ifndef ROOST_BUILTIN_H
#define ROOST_BUILTIN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifndef ROOST_AGENT_VERSION
#define ROOST_AGENT_VERSION "dev"
#endif

/* Exit codes of archive and extract; others are 1. */
#define EXIT_ABSENT 44

int builtin(int argc, char **argv);
int archive_main(const char *path);
int extract_main(const char *path);
int setup_main(void);
int grow_main(const char *id);
int seal_main(void);
int power_main(const char *action);

/* Both complain on standard error and return -1 when not all could be moved. */
int write_all(int fd, const void *data, size_t length);
/* 0 at the end of file, otherwise all of it. */
ssize_t read_full(int fd, void *data, size_t length);
#define ENTROPY_MIN 32
#define ENTROPY_MAX 64
/* Into the kernel's random number generator, which uses it at once. Returns errno. */
int add_entropy(const uint8_t *bytes, size_t length);
/* A message on standard error (or in the buffer, as long as there is room) with errno's text. Returns 1, an exit code. */
int complain(const char *what);
/* From now on complaints go there; NULL: to standard error again. */
void collect_complaints(char *buffer, size_t size);
/* The lines of setup, in the agent's own process and at once: no user's program runs. Returns errno: EIO when something could not be done,
   EINPROGRESS when the root is to be grown, which `grow` does. */
int identify(char *lines);

#endif
