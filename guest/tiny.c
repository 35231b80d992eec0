/* The init of a tiny machine: keeps the agent and a shell on the console alive, brings up the network, and shuts down when asked. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/input.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "boot.h"

#define RESPAWN_MS 200
#define LOOK_MS 5000 /* should an event get lost */
#define INPUTS 16
#define NICS 16

enum { SIGNALS, UEVENTS, FIRST_INPUT, WATCHED = FIRST_INPUT + INPUTS };

struct service {
    void (*run)(void); /* in the child; returns when it could not */
    pid_t pid;
    uint64_t not_before;
};

static struct pollfd watched[WATCHED];
static char inputs[INPUTS][16];
static struct { char name[IFNAMSIZ]; pid_t pid; } nics[NICS];

/* ---- services ---- */

static void run_agent(void) { execl("/roost/agent", "roost-agent", (char *)NULL); }

/* The terminal behind /dev/console: a shell needs a real one to control its jobs. */
static void run_shell(void) {
    char path[64] = "/dev/", *active = path + 5;
    int fd = open("/sys/class/tty/console/active", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, active, sizeof path - 6);
    active[n > 0 ? n : 0] = 0;
    active[strcspn(active, "\n")] = 0;
    char *last = strrchr(active, ' ');
    if (last) memmove(active, last + 1, strlen(last));
    int terminal = open(*active ? path : "/dev/console", O_RDWR);
    if (terminal < 0) return;
    for (int i = 0; i < 3; i++) dup2(terminal, i);
    ioctl(0, TIOCSCTTY, 1);
    setenv("HOME", "/root", 1);
    setenv("TERM", "vt100", 0);
    if (chdir("/root")) warn("/root");
    execl("/bin/busybox", "-sh", (char *)NULL);
}

static pid_t start(void (*run)(void)) {
    pid_t pid = fork();
    if (pid) return pid;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    run();
    _exit(127);
}

static struct service services[] = {{.run = run_agent}, {.run = run_shell}};

/* Milliseconds until the next service may start, -1 when all run. */
static int keep_services(unsigned count) {
    int wait = -1;
    uint64_t now = now_ms();
    for (unsigned i = 0; i < count; i++) {
        struct service *s = &services[i];
        if (s->pid > 0) continue;
        if (now >= s->not_before) {
            s->pid = start(s->run);
            s->not_before = now + RESPAWN_MS;
        }
        if (s->pid <= 0) wait = RESPAWN_MS;
    }
    return wait;
}

static void reap(void) {
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
        for (unsigned i = 0; i < sizeof services / sizeof *services; i++)
            if (services[i].pid == pid) services[i].pid = 0;
        for (unsigned i = 0; i < NICS; i++)
            if (nics[i].pid == pid) nics[i].pid = 0, *nics[i].name = 0;
    }
}

/* ---- network ---- */

static void loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request)) warn("lo");
    if (fd >= 0) close(fd);
}

static const char *lease_for;

static void run_dhcp(void) {
    int null = open("/dev/null", O_RDWR); /* the console is the user's */
    for (int i = 0; i < 3 && null >= 0; i++) dup2(null, i);
    execl("/bin/busybox", "udhcpc", "-f", "-n", "-t", "20", "-T", "1", "-i", lease_for, "-s", "/etc/udhcpc.script", (char *)NULL);
}

/* A client for each network card (not for what the user makes of them: bridges, tunnels), as long as the card is there, and unless the
   agent gives it its addresses. */
static void lease(const char *name) {
    char device[300], path[300], mac[18] = "", given[64];
    int slot = -1;
    snprintf(device, sizeof device, "/sys/class/net/%s/device", name);
    snprintf(path, sizeof path, "/sys/class/net/%s/address", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (read(fd, mac, sizeof mac - 1) < 0) warn(name);
        close(fd);
    }
    snprintf(given, sizeof given, "/run/roost/card-%s", mac);
    if (access(device, F_OK) || !access(given, F_OK)) return;
    for (int i = 0; i < NICS; i++) {
        if (!strcmp(nics[i].name, name)) return;
        if (!*nics[i].name) slot = i;
    }
    if (slot < 0) return;
    lease_for = nics[slot].name;
    snprintf(nics[slot].name, sizeof nics[slot].name, "%s", name);
    nics[slot].pid = start(run_dhcp);
}

/* ---- the power button ---- */

static int is_power_button(int fd) {
    unsigned char keys[KEY_MAX / 8 + 1] = {0};
    return ioctl(fd, EVIOCGBIT(EV_KEY, sizeof keys), keys) >= 0 && keys[KEY_POWER / 8] >> KEY_POWER % 8 & 1;
}

static void watch_input(const char *name) {
    char path[300];
    int slot = -1;
    for (int i = 0; i < INPUTS; i++) {
        if (!strcmp(inputs[i], name)) return;
        if (!*inputs[i]) slot = i;
    }
    if (slot < 0 || strncmp(name, "event", 5) || strlen(name) >= sizeof inputs[0]) return;
    snprintf(path, sizeof path, "/dev/input/%s", name);
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return;
    if (!is_power_button(fd)) {
        close(fd);
        return;
    }
    strcpy(inputs[slot], name);
    watched[FIRST_INPUT + slot] = (struct pollfd){fd, POLLIN, 0};
}

static int was_pressed(struct pollfd *input) {
    struct input_event event;
    int pressed = 0;
    ssize_t n;
    while ((n = read(input->fd, &event, sizeof event)) == sizeof event)
        pressed |= event.type == EV_KEY && event.code == KEY_POWER && event.value == 1;
    if (!n || (n < 0 && errno != EAGAIN)) {
        close(input->fd);
        input->fd = -1;
        *inputs[input - watched - FIRST_INPUT] = 0;
    }
    return pressed;
}

/* ---- devices ---- */

static void for_each(const char *directory, void (*act)(const char *)) {
    DIR *stream = opendir(directory);
    struct dirent *entry;
    while (stream && (entry = readdir(stream)))
        if (*entry->d_name != '.' && strcmp(entry->d_name, "lo")) act(entry->d_name);
    if (stream) closedir(stream);
}

static void look_for_devices(void) {
    for_each("/sys/class/net", lease);
    for_each("/dev/input", watch_input);
}

/* ---- the end ---- */

static void unmount_all(void) {
    static char targets[64][256];
    char line[1024];
    int count = 0;
    FILE *mounts = fopen("/proc/mounts", "re");
    while (mounts && count < 64 && fgets(line, sizeof line, mounts))
        if (sscanf(line, "%*s %255s", targets[count]) == 1) count++;
    if (mounts) fclose(mounts);
    while (count-- > 0)
        if (strcmp(targets[count], "/")) umount2(targets[count], 0);
}

static void end(int how) {
    kill(-1, SIGTERM);
    for (uint64_t until = now_ms() + 500; now_ms() < until && (waitpid(-1, NULL, WNOHANG) >= 0 || errno != ECHILD);) poll(NULL, 0, 10);
    kill(-1, SIGKILL);
    sync();
    unmount_all();
    sync();
    reboot(how);
    warn("reboot");
    for (;;) pause();
}

/* The signals of busybox's poweroff, halt and reboot, and of a container's stop. */
static void on_signal(unsigned number) {
    if (number == SIGUSR1 || number == SIGUSR2 || number == SIGPWR) end(RB_POWER_OFF);
    if (number == SIGTERM || number == SIGINT) end(RB_AUTOBOOT);
    reap();
}

static int watch_signals(void) {
    static const int numbers[] = {SIGCHLD, SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGPWR};
    sigset_t set;
    sigemptyset(&set);
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) sigaddset(&set, numbers[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    reboot(RB_DISABLE_CAD); /* Ctrl-Alt-Del comes as SIGINT */
    return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static void handle_events(void) {
    struct signalfd_siginfo info;
    while (read(watched[SIGNALS].fd, &info, sizeof info) == sizeof info) on_signal(info.ssi_signo);
    if (watched[UEVENTS].revents) drain_uevents(watched[UEVENTS].fd);
    for (int i = FIRST_INPUT; i < WATCHED; i++)
        if (watched[i].revents && was_pressed(&watched[i])) end(RB_POWER_OFF);
    look_for_devices();
}

static void make_directories(void) {
    static const char *const paths[] = {"/run/roost", "/root", "/tmp", "/etc", "/var", "/var/lib", "/dev/shm"};
    for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) mkdir(paths[i], 0755);
    chmod("/root", 0700);
    chmod("/tmp", 01777);
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    close(open("/run/roost/init", O_CREAT | O_WRONLY | O_CLOEXEC, 0644)); /* tells the agent whom to ask for a shutdown */
}

void run_tiny(void) {
    for (int i = 0; i < WATCHED; i++) watched[i].fd = -1;
    watched[SIGNALS] = (struct pollfd){watch_signals(), POLLIN, 0};
    watched[UEVENTS] = (struct pollfd){open_uevents(), POLLIN, 0};
    make_directories();
    keep_services(1); /* the agent first: the machine is there as soon as it answers */
    load_modules();
    loopback_up();
    look_for_devices();
    for (;;) {
        int wait = keep_services(2);
        poll(watched, WATCHED, wait >= 0 ? wait : LOOK_MS);
        handle_events();
    }
}
