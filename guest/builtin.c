/* Which built-in is asked for, and the little that they share. */
#include "builtin.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static char *complaints;
static size_t complaints_room;

void collect_complaints(char *buffer, size_t size) {
    complaints = buffer;
    complaints_room = size;
}

int complain(const char *what) {
    char line[256];
    int n = snprintf(line, sizeof line, "%s: %s\n", what, strerror(errno));
    if (!complaints) return dprintf(2, "%s", line), 1;
    size_t length = n < (int)sizeof line ? (size_t)n : sizeof line - 1;
    if (length >= complaints_room) return 1;
    memcpy(complaints, line, length + 1);
    complaints += length;
    complaints_room -= length;
    return 1;
}

int write_all(int fd, const void *data, size_t length) {
    const char *p = data;
    while (length) {
        ssize_t n = write(fd, p, length);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return complain("write"), -1;
        p += n;
        length -= (size_t)n;
    }
    return 0;
}

ssize_t read_full(int fd, void *data, size_t length) {
    char *p = data;
    size_t done = 0;
    while (done < length) {
        ssize_t n = read(fd, p + done, length - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return complain("read"), -1;
        if (!n) break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

int add_entropy(const uint8_t *bytes, size_t length) {
    uint32_t pool[2 + ENTROPY_MAX / 4]; /* struct rand_pool_info: bits, bytes, and then the bytes themselves */
    if (length < ENTROPY_MIN || length > ENTROPY_MAX) return EINVAL;
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    memcpy(pool + 2, bytes, length);
    pool[0] = (uint32_t)length * 8;
    pool[1] = (uint32_t)length;
    int error = ioctl(fd, RNDADDENTROPY, pool) || ioctl(fd, RNDRESEEDCRNG) ? errno : 0;
    close(fd);
    return error;
}

#define SYSTEMD_SIGRTMIN 34 /* glibc's; musl's is 35 */

int power_main(const char *action) {
    int off = !strcmp(action, "off");
    if (!off && strcmp(action, "reboot")) return dprintf(2, "power: off or reboot, not %s\n", action), 2;
    sync();
    if (!access("/run/systemd/system", F_OK)) return kill(1, SYSTEMD_SIGRTMIN + (off ? 4 : 5)) ? complain("init") : 0;
    if (!access("/run/roost/init", F_OK)) return kill(1, off ? SIGUSR2 : SIGTERM) ? complain("init") : 0;
    execlp(off ? "poweroff" : "reboot", off ? "poweroff" : "reboot", (char *)NULL);
    return complain(off ? "poweroff" : "reboot");
}

int builtin(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[0], "archive")) return archive_main(argv[1]);
    if (argc == 2 && !strcmp(argv[0], "extract")) return extract_main(argv[1]);
    if (argc == 2 && !strcmp(argv[0], "power")) return power_main(argv[1]);
    if (argc == 1 && !strcmp(argv[0], "setup")) return setup_main();
    if (argc == 2 && !strcmp(argv[0], "grow")) return grow_main(argv[1]);
    if (argc == 1 && !strcmp(argv[0], "seal")) return seal_main();
    if (argc == 1 && !strcmp(argv[0], "--version")) return dprintf(1, "%s\n", ROOST_AGENT_VERSION), 0;
    dprintf(2, "usage: roost-agent [archive PATH | extract DIRECTORY | setup | grow ID | seal | power off|reboot | --version]\n");
    return 2;
}
