/* seal: makes a machine ready to be copied. What tells it from another is removed, and the SSH server held, which has the old keys in
   its memory; `setup` gives each copy an identity of its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "builtin.h"
#include "setup.h"

#define NAME "localhost"

static void forget(const char *path) {
    if (unlink(path) && errno != ENOENT && errno != ENOTDIR) fail(path);
}

/* Those who append to it go on. */
static void empty(const char *path) {
    if (truncate(path, 0) && errno != ENOENT) fail(path);
}

static void forget_entry(const char *directory, const char *name) {
    char path[512];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    if (!lstat(path, &st) && !S_ISDIR(st.st_mode)) forget(path);
}

static void forget_key(const char *directory, const char *name) {
    if (!strncmp(name, "ssh_host_", 9)) forget_entry(directory, name);
}

static void forget_lease(const char *directory, const char *name) {
    if (strstr(name, "lease")) forget_entry(directory, name);
}

static void forget_history(const char *directory, const char *name) {
    static const char *const files[] = {".bash_history", ".ash_history", ".lesshst", ".viminfo", ".python_history"};
    char path[512];
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s/%s", directory, name, files[i]);
        forget(path);
    }
}

/* What it logged so far concerns nobody else. */
static void clear_journal(const char *id) {
    char *rotate[] = {"journalctl", "-q", "--rotate", "--vacuum-time=1s", NULL};
    if (!is_id(id)) return;
    if (!access("/var/log/journal", F_OK)) run(rotate); /* where there is none, there is nothing to clear */
    move_journal(id, SEALED);
}

static void forget_machine_id(void) {
    char *id = slurp("/etc/machine-id");
    struct stat st;
    id[strcspn(id, "\n")] = 0;
    clear_journal(id);
    if (*id) overwrite("/etc/machine-id", "", 0444);
    if (!lstat("/var/lib/dbus/machine-id", &st) && S_ISREG(st.st_mode)) forget("/var/lib/dbus/machine-id");
    free(id);
}

static void hold_ssh_server(void) {
    pid_t pid = ssh_server();
    if (pid && kill(pid, SIGSTOP)) fail("sshd");
}

int seal_main(void) {
    hold_ssh_server();
    each_entry("/etc/ssh", forget_key);
    forget_random_seeds();
    forget_cloud_instance();
    each_entry("/var/lib/dhcp", forget_lease);
    each_entry("/var/lib/dhclient", forget_lease);
    each_entry("/var/lib/NetworkManager", forget_lease);
    each_entry("/home", forget_history);
    forget_history("", "root");
    empty("/var/log/wtmp");
    empty("/var/log/btmp");
    empty("/var/log/lastlog");
    forget_machine_id();
    set_hostname(NAME);
    forget(SETUP_MARK);
    sync();
    return failures != 0;
}
