/* Starting a command: its user, environment, directory, terminal or pipes, in a process group of its own. */
#define _GNU_SOURCE
#include "builtin.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define STRINGS_MAX 8192
#define GROUPS_MAX 256

struct request {
    unsigned flags, rows, columns;
    uint32_t window;
    const char *user, *cwd, *file;
    char **env, **argv;
};

struct account {
    int change;
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX];
    int group_count;
    char home[256], shell[128], name[64];
};

static char *strings[STRINGS_MAX + 3];

/* Payload: flags, rows, columns u16; window u32; counts of environment and arguments u16; then NUL-terminated strings. */
static int parse(struct request *r, const uint8_t *payload, uint32_t length) {
    if (length < 16 || payload[length - 1]) return EINVAL;
    unsigned env = read16(payload + 10), args = read16(payload + 12);
    if (env + args > STRINGS_MAX) return E2BIG;
    *r = (struct request){.flags = read16(payload), .rows = read16(payload + 2), .columns = read16(payload + 4),
                          .window = read32(payload + 6), .env = strings, .argv = strings + env + 1};
    const char *p = (const char *)payload + 14, *end = (const char *)payload + length;
    for (unsigned i = 0; i < env + args + 2; i++) {
        if (p >= end) return EINVAL;
        if (i == 0) r->user = p;
        else if (i == 1) r->cwd = p;
        else if (i < env + 2) r->env[i - 2] = (char *)p;
        else r->argv[i - env - 2] = (char *)p;
        p += strlen(p) + 1;
    }
    r->env[env] = r->argv[args] = NULL;
    r->file = r->argv[0];
    return p != end || (args && !*r->file) ? EINVAL : 0;
}

/* No arguments: the account's shell, told by the dash that it is a login shell. */
static void choose_shell(struct request *r, struct account *a) {
    static char name[sizeof a->shell + 1];
    if (r->file) return;
    const char *slash = strrchr(a->shell, '/');
    snprintf(name, sizeof name, "-%s", slash ? slash + 1 : a->shell);
    r->file = a->shell;
    r->argv[0] = name;
    r->argv[1] = NULL;
}

static int find_account(struct account *a, const char *user) {
    memset(a, 0, sizeof *a);
    a->uid = getuid();
    a->gid = getgid();
    struct passwd *entry = *user ? getpwnam(user) : getpwuid(a->uid);
    if (!entry && *user && strspn(user, "0123456789") == strlen(user)) entry = getpwuid((uid_t)strtoul(user, NULL, 10));
    if (!entry && *user) return ENOENT;
    snprintf(a->home, sizeof a->home, "%s", entry ? entry->pw_dir : "/");
    snprintf(a->shell, sizeof a->shell, "%s", entry && *entry->pw_shell ? entry->pw_shell : "/bin/sh");
    snprintf(a->name, sizeof a->name, "%s", entry ? entry->pw_name : "root");
    if (!*user || !entry) return 0;
    a->change = getuid() == 0;
    a->uid = entry->pw_uid;
    a->gid = entry->pw_gid;
    if (!a->change) return a->uid == getuid() ? 0 : EPERM;
    a->group_count = GROUPS_MAX;
    if (getgrouplist(a->name, a->gid, a->groups, &a->group_count) < 0) a->group_count = GROUPS_MAX;
    return 0;
}

static const char *lookup(char **env, const char *name) {
    size_t n = strlen(name);
    for (; *env; env++)
        if (!strncmp(*env, name, n) && (*env)[n] == '=') return *env + n + 1;
    return NULL;
}

/* The request's environment, and behind it what it lacks; our own environment (systemd's) is nobody's business. */
static char **environment(const struct request *r, const struct account *a) {
    static char *env[STRINGS_MAX + 8], defaults[6][512];
    const char *names[] = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM"};
    const char *values[] = {DEFAULT_PATH, a->home, a->name, a->name, a->shell, "xterm-256color"};
    unsigned count = 0;
    for (char **e = r->env; *e; e++) env[count++] = *e;
    for (unsigned i = 0; i < (r->flags & EXEC_PTY ? 6 : 5); i++) {
        if (lookup(r->env, names[i])) continue;
        snprintf(defaults[i], sizeof defaults[i], "%s=%s", names[i], values[i]);
        env[count++] = defaults[i];
    }
    env[count] = NULL;
    return env;
}

static int open_terminal(const struct request *r, int ends[2]) {
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), number, zero = 0;
    char name[32];
    if (master < 0) return errno;
    struct winsize size = {.ws_row = r->rows, .ws_col = r->columns};
    if (ioctl(master, TIOCGPTN, &number) < 0 || ioctl(master, TIOCSPTLCK, &zero) < 0) goto fail;
    snprintf(name, sizeof name, "/dev/pts/%d", number);
    if ((ends[1] = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) goto fail;
    ioctl(master, TIOCSWINSZ, &size);
    ends[0] = master;
    return 0;
fail:;
    int error = errno;
    close(master);
    return error;
}

struct plumbing {
    int in[2], out[2], err[2]; /* [0] is read from, [1] written to; a terminal is out[0] (master) and out[1] (slave) */
};

static void unplug(struct plumbing *p) {
    for (int i = 0; i < 2; i++) {
        if (p->in[i] >= 0) close(p->in[i]);
        if (p->out[i] >= 0) close(p->out[i]);
        if (p->err[i] >= 0) close(p->err[i]);
    }
}

static int plumb(const struct request *r, struct plumbing *p) {
    *p = (struct plumbing){{-1, -1}, {-1, -1}, {-1, -1}};
    int error = 0;
    if (r->flags & EXEC_PTY) return open_terminal(r, p->out);
    if (r->flags & EXEC_STDIN) error = pipe2(p->in, O_CLOEXEC);
    else if ((p->in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) error = -1;
    if (error || pipe2(p->out, O_CLOEXEC) || pipe2(p->err, O_CLOEXEC)) {
        error = errno;
        unplug(p);
        return error;
    }
    fcntl(p->out[0], F_SETPIPE_SZ, 1 << 18);
    return 0;
}

/* Raw system calls: between vfork and exec the C library must not touch what it shares with the parent. */
static int become(const struct account *a) {
    if (!a->change) return 0;
    if (syscall(SYS_setgroups, a->group_count, a->groups)) return -1;
    if (syscall(SYS_setresgid, a->gid, a->gid, a->gid)) return -1;
    return (int)syscall(SYS_setresuid, a->uid, a->uid, a->uid);
}

static int enter_directory(const struct request *r, const struct account *a) {
    if (*r->cwd) return chdir(r->cwd);
    return chdir(a->home) && chdir("/") ? -1 : 0;
}

/* Without exec, which costs a machine that has just been copied, and is emulated, a quarter of a second. */
static void run_builtin(const struct request *r) {
    int count = 0;
    if (syscall(SYS_close_range, 3, ~0u, 0))
        for (int fd = 3; fd < 1024; fd++) close(fd);
    while (r->argv[count]) count++;
    _exit(builtin(count, r->argv));
}

static void run_child(const struct request *r, const struct account *a, const struct plumbing *p, char **env) {
    int terminal = r->flags & EXEC_PTY;
    sigset_t none;
    sigemptyset(&none);
    setsid();
    setpriority(PRIO_PROCESS, 0, 0);
    int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC); /* the agent is protected, commands are not */
    if (score >= 0 && write(score, "0", 1) >= -1) close(score);
    if (dup2(terminal ? p->out[1] : p->in[0], 0) < 0 || dup2(p->out[1], 1) < 0) return;
    if (dup2(terminal ? p->out[1] : p->err[1], 2) < 0) return;
    if (terminal && ioctl(0, TIOCSCTTY, 0) < 0) return;
    if (become(a) || enter_directory(r, a)) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody could speak for it any more; after become(), which clears it */
    struct sigaction plain = {.sa_handler = SIG_DFL};
    sigaction(SIGPIPE, &plain, NULL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (r->flags & EXEC_BUILTIN) run_builtin(r);
    else if (strchr(r->file, '/')) execve(r->file, r->argv, env);
    else execvpe(r->file, r->argv, env);
}

/* vfork: no page table is copied, and the child's errno is ours when it could not exec. A built-in goes on in a copy of us. */
static pid_t launch(const struct request *r, const struct account *a, const struct plumbing *p, int *error) {
    static volatile int failure;
    char **env = environment(r, a), *path = getenv("PATH"), kept[512] = "";
    const char *wanted = lookup(env, "PATH");
    if (path) snprintf(kept, sizeof kept, "%s", path);
    setenv("PATH", wanted ? wanted : DEFAULT_PATH, 1); /* execvpe searches our PATH: make it the command's */
    failure = 0;
    pid_t pid = r->flags & EXEC_BUILTIN ? fork() : vfork();
    if (!pid) {
        run_child(r, a, p, env);
        failure = errno;
        _exit(127);
    }
    *error = pid < 0 ? errno : failure;
    if (*kept) setenv("PATH", kept, 1);
    return pid;
}

static void adopt(struct session *s, const struct request *r, struct plumbing *p) {
    struct stream *streams = s->streams;
    uint32_t window = r->window < WINDOW_MAX ? r->window : WINDOW_MAX;
    streams[STREAM_IN] = (struct stream){.fd = p->in[1]};
    streams[STREAM_OUT] = (struct stream){.fd = p->out[0], .credit = window};
    streams[STREAM_ERR] = (struct stream){.fd = p->err[0], .credit = window};
    s->pty = !!(r->flags & EXEC_PTY);
    if (s->pty) streams[STREAM_IN].fd = fcntl(p->out[0], F_DUPFD_CLOEXEC, 3);
    for (unsigned i = 0; i < 3; i++)
        if (streams[i].fd >= 0) fcntl(streams[i].fd, F_SETFL, O_NONBLOCK | (i || s->pty ? 0 : O_WRONLY));
}

int spawn(struct session *s, const uint8_t *payload, uint32_t length) {
    static struct account account;
    struct request request;
    struct plumbing plumbing;
    int error = parse(&request, payload, length);
    if (!error) error = find_account(&account, request.user);
    if (!error) choose_shell(&request, &account);
    if (!error && request.flags & (EXEC_STDIN | EXEC_PTY) && !s->queue && !(s->queue = malloc(INPUT_QUEUE))) error = ENOMEM;
    if (!error) error = plumb(&request, &plumbing);
    if (error) return error;
    pid_t pid = launch(&request, &account, &plumbing, &error);
    if (pid < 0 || error) {
        if (pid > 0) waitpid(pid, NULL, 0);
        unplug(&plumbing);
        return error;
    }
    close(plumbing.out[1]);
    if (plumbing.in[0] >= 0) close(plumbing.in[0]);
    if (plumbing.err[1] >= 0) close(plumbing.err[1]);
    s->pid = pid;
    adopt(s, &request, &plumbing);
    return 0;
}
