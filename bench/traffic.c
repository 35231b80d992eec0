/* The two ends of a measured connection, in a guest or outside, as one static program:
 *   traffic serve PORT            answers what the others ask
 *   traffic send HOST PORT S      prints bits per second that arrived there within S seconds
 *   traffic receive HOST PORT S   the same the other way round
 *   traffic ping HOST PORT N      prints the median of N round trips of one byte, in microseconds
 * One TCP connection each, IPv4. A connection that is not made is tried again for 10 seconds. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 17, MOST_TRIPS = 100000, RETRY_MICROSECONDS = 2000, TRIES = 5000 };
static char block[BLOCK];

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct sockaddr_in place(const char *host, const char *port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    if (inet_pton(AF_INET, host, &at.sin_addr) != 1) die(host);
    return at;
}

static int dial(const char *host, const char *port, char what) {
    struct sockaddr_in at = place(host, port);
    for (int i = 0; i < TRIES; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
        if (fd < 0) die("socket");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0) {
            if (write(fd, &what, 1) != 1) die("write");
            return fd;
        }
        close(fd);
        usleep(RETRY_MICROSECONDS);
    }
    die("connect");
    return -1;
}

static void answer(int fd) {
    char what;
    ssize_t got;
    uint64_t bytes = 0;
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (read(fd, &what, 1) != 1) return;
    if (what == 's') {
        while ((got = read(fd, block, BLOCK)) > 0) bytes += (uint64_t)got;
        if (write(fd, &bytes, sizeof bytes) < 0) return;
    } else if (what == 'r') {
        while (write(fd, block, BLOCK) > 0) {}
    } else {
        while ((got = read(fd, block, BLOCK)) > 0)
            if (write(fd, block, (size_t)got) != got) return;
    }
}

static int serve(const char *port) {
    struct sockaddr_in at = place("0.0.0.0", port);
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 16)) die("listen");
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int one = accept(fd, NULL, NULL);
        if (one < 0) continue;
        if (fork() == 0) {
            answer(one);
            _exit(0);
        }
        close(one);
    }
}

static int send_for(int fd, double seconds) {
    double begin = now();
    uint64_t bytes = 0;
    while (now() < begin + seconds)
        if (write(fd, block, BLOCK) < 0) die("write");
    shutdown(fd, SHUT_WR);
    if (read(fd, &bytes, sizeof bytes) != sizeof bytes) die("the other end's count");
    return printf("%.0f\n", (double)bytes * 8 / (now() - begin)) < 0;
}

static int receive_for(int fd, double seconds) {
    double begin = now();
    uint64_t bytes = 0;
    ssize_t got = 1;
    while (got > 0 && now() < begin + seconds)
        if ((got = read(fd, block, BLOCK)) > 0) bytes += (uint64_t)got;
    return printf("%.0f\n", (double)bytes * 8 / (now() - begin)) < 0;
}

static int compare(const void *one, const void *two) {
    double a = *(const double *)one, b = *(const double *)two;
    return (a > b) - (a < b);
}

static int ping(int fd, int trips) {
    static double spent[MOST_TRIPS];
    if (trips < 1 || trips > MOST_TRIPS) return 2;
    for (int i = 0; i < trips; i++) {
        double begin = now();
        if (write(fd, "x", 1) != 1 || read(fd, block, 1) != 1) die("a round trip");
        spent[i] = now() - begin;
    }
    qsort(spent, (size_t)trips, sizeof *spent, compare);
    return printf("%.1f\n", spent[trips / 2] * 1e6) < 0;
}

int main(int count, char **words) {
    signal(SIGPIPE, SIG_IGN);
    if (count == 3 && !strcmp(words[1], "serve")) return serve(words[2]);
    if (count != 5) return 2;
    if (!strcmp(words[1], "send")) return send_for(dial(words[2], words[3], 's'), atof(words[4]));
    if (!strcmp(words[1], "receive")) return receive_for(dial(words[2], words[3], 'r'), atof(words[4]));
    if (!strcmp(words[1], "ping")) return ping(dial(words[2], words[3], 'e'), atoi(words[4]));
    return 2;
}
