/* Which built-in is asked for, and the little that they share. */
#include "builtin.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int complain(const char *what) {
    dprintf(2, "%s: %s\n", what, strerror(errno));
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
    if (argc == 1 && !strcmp(argv[0], "--version")) return dprintf(1, "%s\n", ROOST_AGENT_VERSION), 0;
    dprintf(2, "usage: roost-agent [archive PATH | extract DIRECTORY | setup | power off|reboot | --version]\n");
    return 2;
}
