/* What tells one machine from another: random numbers, machine-id, SSH host keys, name. In a copy all of it is another's. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "builtin.h"
#include "setup.h"

#define SSH "/etc/ssh"
#define KEY_PREFIX "ssh_host_"
#define KEYS_MAX 8
#define KIND_MAX 16
#define SSH_REST 2 /* seconds */

static char kinds[KEYS_MAX][KIND_MAX + 1]; /* of the host keys that were given */
static int kinds_given;

void forget_given_keys(void) { kinds_given = 0; }

/* ---- clock, random numbers ---- */

void set_clock(const char *seconds) {
    struct timespec now, wanted;
    char *end;
    wanted.tv_sec = strtoll(seconds, &end, 10);
    wanted.tv_nsec = *end == '.' ? (long)(strtod(end, NULL) * 1e9) : 0;
    clock_gettime(CLOCK_REALTIME, &now);
    if (wanted.tv_sec <= 0 || (now.tv_sec == wanted.tv_sec && labs(now.tv_nsec - wanted.tv_nsec) < 500000000)) return;
    if (clock_settime(CLOCK_REALTIME, &wanted)) fail("clock");
}

static int hex_digit(char c) {
    const char *digits = "0123456789abcdef", *p = c ? strchr(digits, c) : NULL;
    return p ? (int)(p - digits) : -1;
}

void set_entropy(char *hex) {
    uint8_t bytes[ENTROPY_MAX];
    size_t n = 0;
    for (; n < sizeof bytes && hex_digit(hex[2 * n]) >= 0 && hex_digit(hex[2 * n + 1]) >= 0; n++)
        bytes[n] = (uint8_t)(hex_digit(hex[2 * n]) << 4 | hex_digit(hex[2 * n + 1]));
    errno = hex[2 * n] ? EINVAL : add_entropy(bytes, n);
    if (errno) fail("entropy");
}

/* They were written for the next boot of the machine that this one is a copy of; without one the kernel gathers its own. */
void forget_random_seeds(void) {
    unlink("/var/lib/systemd/random-seed");
    unlink("/var/lib/urandom/random-seed");
    unlink("/var/lib/misc/random-seed");
}

/* ---- names ---- */

void set_hostname(const char *name) {
    char line[160], *hosts = slurp("/etc/hosts"), *kept = calloc(1, strlen(hosts) + sizeof line + 2);
    if (!kept || !is_name(name, "-.", 63)) return errno = EINVAL, fail("hostname");
    if (sethostname(name, strlen(name))) fail("sethostname");
    snprintf(line, sizeof line, "%s\n", name);
    overwrite("/etc/hostname", line, 0644);
    for (char *p = strtok(hosts, "\n"); p; p = strtok(NULL, "\n"))
        if (strncmp(p, "127.0.1.1", 9)) strcat(strcat(kept, p), "\n");
    if (!strstr(kept, "127.0.0.1")) strcat(kept, "127.0.0.1 localhost\n");
    snprintf(line, sizeof line, "127.0.1.1 %s\n", name);
    char *new = NULL;
    if (asprintf(&new, "%s%s", kept, line) > 0) replace("/etc/hosts", new, 0644);
    free(new);
    free(kept);
    free(hosts);
    utimensat(AT_FDCWD, "/run/agetty.reload", NULL, 0); /* consoles show their prompt again; there once getty runs */
}

int is_id(const char *id) { return strlen(id) == 32 && strspn(id, "0123456789abcdef") == 32; }

static const char *journal;

static void point_link(const char *directory, const char *name) {
    char path[128];
    struct stat st;
    snprintf(path, sizeof path, "%s/%.64s", directory, name);
    if (!is_id(name) || lstat(path, &st) || !S_ISLNK(st.st_mode)) return;
    if (unlink(path) || symlink(journal, path)) fail(path);
}

/* Links, because journald knows its directory by the id that it was started with, and begins a new file there when the clock steps back. */
static void move_journal_in(const char *directory, const char *old, const char *new) {
    char from[128], to[128];
    snprintf(from, sizeof from, "%s/%s", directory, old);
    snprintf(to, sizeof to, "%s/%s", directory, new);
    if (access(from, F_OK)) return;
    if (rename(from, to)) return fail(from);
    journal = new;
    each_entry(directory, point_link);
    if (is_id(old) && symlink(new, from)) fail(from);
}

void move_journal(const char *old, const char *new) {
    move_journal_in("/var/log/journal", old, new);
    move_journal_in("/run/log/journal", old, new);
}

void set_machine_id(const char *id) {
    char line[40], *old = slurp("/etc/machine-id");
    if (!is_id(id)) return free(old), errno = EINVAL, fail("machine-id");
    old[strcspn(old, "\n")] = 0;
    snprintf(line, sizeof line, "%s\n", id);
    overwrite("/etc/machine-id", line, 0444);
    struct stat st;
    if (!lstat("/var/lib/dbus/machine-id", &st) && S_ISREG(st.st_mode)) replace("/var/lib/dbus/machine-id", line, 0444);
    if (strcmp(old, id) && (!*old || is_id(old))) move_journal(*old ? old : SEALED, id);
    free(old);
}

/* A seed disk names the instance it is for: that is how cloud-init knows a new one. What it kept of another's seed it must not take for
   this machine's; what it has from no seed is the same for all machines, and done. */
void forget_cloud_instance(void) {
    char *id = slurp("/var/lib/cloud/data/instance-id");
    if (*id && strncmp(id, "iid-datasource-none", 19)) {
        unlink("/var/lib/cloud/instance");
        unlink("/var/lib/cloud/data/instance-id");
    }
    free(id);
}

/* ---- SSH ---- */

/* In place. Returns 0 when it is not base64. */
static int decode_base64(char *text) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned bits = 0, have = 0;
    char *to = text, *p = text;
    for (const char *digit; *p && *p != '='; p++) {
        if (!(digit = strchr(alphabet, *p))) return 0;
        bits = bits << 6 | (unsigned)(digit - alphabet);
        if ((have += 6) >= 8) *to++ = (char)(bits >> (have -= 8));
    }
    p += strspn(p, "=");
    *to = 0;
    return !*p;
}

void set_host_key(char *rest) {
    char path[96], line[1024], *kind = strsep(&rest, " "), *private = strsep(&rest, " ");
    if (access(SSH, F_OK)) return; /* nobody serves SSH here */
    int good = rest && *rest && strlen(rest) < sizeof line - 1 && is_name(kind, "", KIND_MAX) && kinds_given < KEYS_MAX;
    if (!good || !decode_base64(private) || strncmp(private, "-----BEGIN ", 11)) return errno = EINVAL, fail("host-key");
    snprintf(path, sizeof path, SSH "/" KEY_PREFIX "%s_key", kind);
    create(path, private, 0600);
    strcat(path, ".pub");
    snprintf(line, sizeof line, "%s\n", rest);
    create(path, line, 0644);
    strcpy(kinds[kinds_given++], kind);
}

static int was_given(const char *kind, size_t length) {
    for (int i = 0; i < kinds_given; i++)
        if (strlen(kinds[i]) == length && !memcmp(kinds[i], kind, length)) return 1;
    return 0;
}

static void remove_foreign_key(const char *directory, const char *name) {
    char path[300];
    const char *kind = name + sizeof KEY_PREFIX - 1, *end = strstr(name, "_key");
    if (strncmp(name, KEY_PREFIX, sizeof KEY_PREFIX - 1) || !end || end < kind || strlen(name) > 200) return;
    int certificate = !!strstr(end, "-cert"); /* for a key that is no more */
    if (was_given(kind, (size_t)(end - kind)) && !certificate) return;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    if (unlink(path)) fail(path);
}

/* Not `ssh-keygen -A`: it would spend seconds (in emulation, a minute) on an RSA key that nobody needs. */
static void generate_keys(void) {
    static const char *const types[] = {"ed25519", "ecdsa"};
    char path[64];
    for (unsigned i = 0; i < 2; i++) {
        snprintf(path, sizeof path, SSH "/" KEY_PREFIX "%s_key", types[i]);
        char *argv[] = {"ssh-keygen", "-q", "-N", "", "-t", (char *)types[i], "-f", path, NULL};
        if (run(argv) && access(path, F_OK)) fail("ssh-keygen"); /* a unit of the image may have been faster */
    }
}

int make_host_keys(int copied) {
    static const char *const there[] = {SSH "/" KEY_PREFIX "ed25519_key", SSH "/" KEY_PREFIX "ecdsa_key", SSH "/" KEY_PREFIX "rsa_key"};
    if (access(SSH "/sshd_config", F_OK)) return 0;
    if (kinds_given || copied) each_entry(SSH, remove_foreign_key);
    if (kinds_given) return 1;
    /* At the first boot of an image of ours its own unit makes them before ssh starts, and nobody has to wait for that here. */
    if (!copied && !ssh_server() && !access("/etc/systemd/system/roost-ssh-keys.service", F_OK)) return 0;
    if (!access(there[0], F_OK) || !access(there[1], F_OK) || !access(there[2], F_OK)) return 0;
    generate_keys();
    return 1;
}

pid_t ssh_server(void) {
    char path[64], *text = slurp(SSH_PID);
    pid_t pid = atoi(text);
    free(text);
    if (pid <= 1) return 0;
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    text = slurp(path);
    int is = !strcmp(text, "sshd\n"); /* the file may be older than the process of this number */
    free(text);
    return is ? pid : 0;
}

/* Stopped, it shows nobody an old key; when it goes on it first obeys the hangup: it closes its sockets and starts itself anew with the new
   keys. That costs an emulated machine half a second of its only processor, so it waits until whoever made the machine had their turn. */
void renew_ssh_server(void) {
    pid_t pid = ssh_server(), waiting;
    if (!pid || kill(pid, SIGSTOP) || kill(pid, SIGHUP)) return;
    if (!(waiting = fork())) {
        struct timespec rest = {SSH_REST, 0};
        if (fork()) _exit(0); /* so that the kernel's first process takes it in */
        for (int fd = 0; fd < 64; fd++) close(fd); /* not the port: the agent may be started anew meanwhile */
        while (nanosleep(&rest, &rest) && errno == EINTR) {}
        kill(pid, SIGCONT);
        _exit(0);
    }
    if (waiting < 0) return (void)kill(pid, SIGCONT);
    waitpid(waiting, NULL, 0);
}
