/* One program that does on request what a program can do to its host, the same on every target, so that runtimes can be compared.

   probe COMMAND [ARGUMENT]...     What a target can not do answers "unsupported" with code 65; a refused operation says why in one
   word of its own (denied, missing, exists, directory, full, many, memory, unreachable, other) on stderr, with code 1; wrong use is code 64. */

#define _CRT_RAND_S /* rand_s */

#include "portable.h"

typedef int (*Command)(int count, char **words);

static const char *program = "";

int unsupported(const char *what)
{
    fprintf(stderr, "unsupported: %s\n", what);
    return UNSUPPORTED;
}

static const char *reason(int error)
{
    switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
#if defined(ENOTCAPABLE)
    case ENOTCAPABLE:
#endif
        return "denied";
    case ENOENT:
    case ENOTDIR:
        return "missing";
    case EEXIST:
    case ENOTEMPTY:
        return "exists";
    case EISDIR:
        return "directory";
    case ENOSPC:
    case EFBIG:
        return "full";
    case EMFILE:
    case ENFILE:
    case EAGAIN:
        return "many";
    case ENOMEM:
        return "memory";
    default:
        return "other";
    }
}

static int failed(const char *what, int error)
{
    fprintf(stderr, "%s: %s (%d %s)\n", what, reason(error), error, strerror(error));
    return 1;
}

static int done(int result, const char *what) { return result == 0 ? 0 : failed(what, errno); }

static int usage(void)
{
    fprintf(stderr, "usage\n");
    return 64;
}

static long number(const char *text) { return strtol(text, NULL, 10); }

static void hexadecimal(const char *text)
{
    for (; *text; text++)
        printf("%02x", (unsigned char)*text);
    putchar('\n');
}

/* --- what it is given: args, name, env, cwd, stdin */

static int args(int count, char **words)
{
    for (int i = 0; i < count; i++)
        hexadecimal(words[i]);
    return 0;
}

static int name(int count, char **words)
{
    hexadecimal(program);
    return 0;
}

#if !defined(_WIN32)
extern char **environ;
#endif

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static char *names[65536];

static int print_names(size_t count)
{
    qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++)
        printf("%s\n", names[i]);
    return 0;
}

static const char *variable(const char *key)
{
#if defined(_WIN32)
    const wchar_t *value = _wgetenv(wide(key));
    return value ? narrow(value) : NULL;
#else
    return getenv(key);
#endif
}

static int env(int count, char **words)
{
    if (count) {
        const char *value = variable(words[0]);
        if (value)
            printf("%s\n", value);
        return value ? 0 : 1;
    }
    size_t found = 0;
#if defined(_WIN32)
    wchar_t *all = GetEnvironmentStringsW();
    for (; *all && found < 65536; all += wcslen(all) + 1)
        if (*all != L'=')
            names[found++] = narrow(all);
#else
    for (char **entry = environ; entry && *entry && found < 65536; entry++)
        names[found++] = *entry;
#endif
    return print_names(found);
}

static int cwd(int count, char **words)
{
#if defined(_WIN32)
    wchar_t place[4096];
    if (!_wgetcwd(place, 4096))
        return failed("cwd", errno);
    printf("%s\n", narrow(place));
#else
    char place[4096];
    if (!getcwd(place, sizeof place))
        return failed("cwd", errno);
    printf("%s\n", place);
#endif
    return 0;
}

static char block[65536];

static int copy(FILE *from, FILE *to)
{
    size_t got;
    while ((got = fread(block, 1, sizeof block, from)) > 0)
        if (fwrite(block, 1, got, to) != got || fflush(to))
            return failed("copy", errno);
    return ferror(from) ? failed("copy", errno) : 0;
}

static int cat(int count, char **words)
{
    return copy(stdin, stdout);
}

static int end_of_input(int count, char **words)
{
    unsigned long long total = 0;
    size_t got;
    while ((got = fread(block, 1, sizeof block, stdin)) > 0)
        total += got;
    printf("%llu\n", total);
    return 0;
}

static int lines(int count, char **words)
{
    while (fgets(block, sizeof block, stdin)) {
        printf("got %s%s", block, strchr(block, '\n') ? "" : "\n");
        fflush(stdout);
    }
    return 0;
}

static int out(int count, char **words)
{
    for (int i = 0; i < count; i++)
        printf(i ? " %s" : "%s", words[i]);
    putchar('\n');
    return 0;
}

static int err(int count, char **words)
{
    for (int i = 0; i < count; i++)
        fprintf(stderr, i ? " %s" : "%s", words[i]);
    fputc('\n', stderr);
    return 0;
}

/* --- how it ends: exit, raise, abort, segv, overflow */

static int leave(int count, char **words)
{
    if (count != 1)
        return usage();
    exit((int)number(words[0]));
}

#if !defined(__wasi__)
static int signal_number(const char *text)
{
    static const struct {
        const char *name;
        int number;
    } known[] = {
        {"INT", SIGINT},   {"TERM", SIGTERM}, {"ABRT", SIGABRT}, {"SEGV", SIGSEGV}, {"FPE", SIGFPE}, {"ILL", SIGILL},
#if defined(POSIX)
        {"HUP", SIGHUP},   {"QUIT", SIGQUIT}, {"KILL", SIGKILL}, {"PIPE", SIGPIPE}, {"BUS", SIGBUS}, {"TRAP", SIGTRAP},
        {"USR1", SIGUSR1}, {"USR2", SIGUSR2}, {"ALRM", SIGALRM}, {"XCPU", SIGXCPU}, {"SYS", SIGSYS}, {"WINCH", SIGWINCH},
        {"STOP", SIGSTOP}, {"TSTP", SIGTSTP}, {"CONT", SIGCONT}, {"CHLD", SIGCHLD},
#endif
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, text))
            return known[i].number;
    return (int)number(text);
}
#endif

static int raise_signal(int count, char **words)
{
    if (count != 1)
        return usage();
#if defined(__wasi__)
    return unsupported("raise");
#else
    if (raise(signal_number(words[0])))
        return failed("raise", errno);
    printf("survived\n");
    return 0;
#endif
}

static int give_up(int count, char **words)
{
    abort();
}

static int segv(int count, char **words)
{
    /* The last page: not the null page, which WebAssembly has. */
    volatile char *nowhere = (volatile char *)(uintptr_t)-4096;
    *nowhere = 1;
    return 0;
}

static int trap(int count, char **words)
{
    __builtin_trap();
}

static int deeper(volatile int *depth)
{
    volatile char room[512];
    room[0] = (char)++*depth;
    return *depth < 0 ? 0 : deeper(depth) + room[0];
}

static int overflow(int count, char **words)
{
    volatile int depth = 0;
    return deeper(&depth);
}

/* --- signals: wait, handle, ignore */

static int wait_for_ever(int count, char **words)
{
    printf("ready\n");
    fflush(stdout);
    for (;;)
        sleep_ms(1000);
}

#if !defined(__wasi__)
static volatile sig_atomic_t caught;

static void note(int number) { caught = number; }
#endif

/* Says which signal of TERM, INT and HUP came, and ends with CODE (42). */
static int handle(int count, char **words)
{
#if defined(__wasi__)
    return unsupported("handle");
#else
    signal(SIGTERM, note);
    signal(SIGINT, note);
#if defined(POSIX)
    signal(SIGHUP, note);
#endif
    printf("ready\n");
    fflush(stdout);
    while (!caught)
        sleep_ms(10);
    printf("caught %d\n", (int)caught);
    return count ? (int)number(words[0]) : 42;
#endif
}

static int ignore(int count, char **words)
{
    if (count != 1)
        return usage();
#if defined(__wasi__)
    return unsupported("ignore");
#else
    signal(signal_number(words[0]), SIG_IGN);
    return wait_for_ever(0, words);
#endif
}

/* --- files */

static int read_file(int count, char **words)
{
    if (count != 1)
        return usage();
    FILE *file = open_file(words[0], "rb");
    if (!file)
        return failed("read", errno);
    int result = copy(file, stdout);
    fclose(file);
    return result;
}

static int put(const char *path, const char *mode, const char *text)
{
    FILE *file = open_file(path, mode);
    if (!file)
        return failed("write", errno);
    fwrite(text, 1, strlen(text), file);
    return done(fclose(file), "write");
}

static int write_file(int count, char **words) { return count == 2 ? put(words[0], "wb", words[1]) : usage(); }

static int append_file(int count, char **words) { return count == 2 ? put(words[0], "ab", words[1]) : usage(); }

static int list(int count, char **words)
{
    if (count != 1)
        return usage();
    size_t found = 0;
#if defined(_WIN32)
    wchar_t pattern[4096];
    _snwprintf(pattern, 4096, L"%ls/*", wide(words[0]));
    WIN32_FIND_DATAW entry;
    HANDLE directory = FindFirstFileW(pattern, &entry);
    if (directory == INVALID_HANDLE_VALUE)
        return failed("list", GetLastError() == ERROR_ACCESS_DENIED ? EACCES : ENOENT);
    do {
        if (wcscmp(entry.cFileName, L".") && wcscmp(entry.cFileName, L"..") && found < 65536)
            names[found++] = narrow(entry.cFileName);
    } while (FindNextFileW(directory, &entry));
    FindClose(directory);
#else
    DIR *directory = opendir(words[0]);
    if (!directory)
        return failed("list", errno);
    for (struct dirent *entry; (entry = readdir(directory)) && found < 65536;)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            names[found++] = strdup(entry->d_name);
    closedir(directory);
#endif
    return print_names(found);
}

static int is_directory(const char *path)
{
#if defined(_WIN32)
    struct _stat64 what;
    return !_wstat64(wide(path), &what) && what.st_mode & _S_IFDIR;
#else
    struct stat what;
    return !lstat(path, &what) && S_ISDIR(what.st_mode);
#endif
}

/* A file or an empty directory. */
static int remove_command(int count, char **words)
{
    if (count != 1)
        return usage();
    return done(is_directory(words[0]) ? remove_directory(words[0]) : remove_file(words[0]), "remove");
}

static int move(int count, char **words)
{
    return count == 2 ? done(rename_file(words[0], words[1]), "rename") : usage();
}

static int mkdir_command(int count, char **words)
{
    return count == 1 ? done(make_directory(words[0]), "mkdir") : usage();
}

static int kind(int count, char **words)
{
    if (count != 1)
        return usage();
#if defined(_WIN32)
    struct _stat64 what;
    if (_wstat64(wide(words[0]), &what))
        return failed("kind", errno);
    const char *is = what.st_mode & _S_IFDIR ? "directory" : "file";
#else
    struct stat what;
    if (lstat(words[0], &what))
        return failed("kind", errno);
    const char *is = S_ISDIR(what.st_mode) ? "directory" : S_ISLNK(what.st_mode) ? "link" : S_ISREG(what.st_mode) ? "file" : "other";
#endif
    if (!strcmp(is, "file"))
        printf("file %llu\n", (unsigned long long)what.st_size);
    else
        printf("%s\n", is);
    return 0;
}

static int size(int count, char **words)
{
    if (count != 1)
        return usage();
#if defined(_WIN32)
    struct _stat64 what;
    if (_wstat64(wide(words[0]), &what))
#else
    struct stat what;
    if (stat(words[0], &what))
#endif
        return failed("size", errno);
    printf("%lld\n", (long long)what.st_size);
    return 0;
}

/* Writes a file where temporary files go, and reads it back. */
static int tmp(int count, char **words)
{
    const char *place = variable("TMPDIR");
    char path[4096], back[8] = "";
    snprintf(path, sizeof path, "%s/probe.tmp", place ? place : "/tmp");
    int result = put(path, "wb", "kept");
    if (result)
        return result;
    FILE *file = open_file(path, "rb");
    if (!file || fread(back, 1, 4, file) != 4)
        return failed("tmp", errno);
    fclose(file);
    printf("%s\n", back);
    return done(remove_file(path), "tmp");
}

static int link_command(int count, char **words)
{
    if (count != 2)
        return usage();
#if defined(_WIN32)
    return unsupported("link");
#else
    return done(symlink(words[0], words[1]), "link");
#endif
}

static int readlink_command(int count, char **words)
{
    if (count != 1)
        return usage();
#if defined(_WIN32)
    return unsupported("readlink");
#else
    ssize_t length = readlink(words[0], block, sizeof block - 1);
    if (length < 0)
        return failed("readlink", errno);
    printf("%.*s\n", (int)length, block);
    return 0;
#endif
}

/* Opens PATH up to N times and keeps it open; prints how often that worked. */
static int opens(int count, char **words)
{
    if (count != 2)
        return usage();
    long wanted = number(words[0]), held = 0;
#if defined(_WIN32)
    while (held < wanted
           && CreateFileW(wide(words[1]), GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, 0, NULL) != INVALID_HANDLE_VALUE)
        held++;
#else
    while (held < wanted && open(words[1], O_RDONLY) != -1)
        held++;
#endif
    printf("%ld\n", held);
    return 0;
}

/* Writes N MiB to PATH; prints how many whole ones it took. */
static int fill(int count, char **words)
{
    if (count != 2)
        return usage();
#if defined(POSIX)
    signal(SIGXFSZ, SIG_IGN);
#endif
    long wanted = number(words[1]) * 16, taken = 0;
    FILE *file = open_file(words[0], "wb");
    if (!file)
        return failed("fill", errno);
    setvbuf(file, NULL, _IONBF, 0);
    memset(block, 'x', sizeof block);
    while (taken < wanted && fwrite(block, 1, sizeof block, file) == sizeof block)
        taken++;
    int error = taken < wanted ? errno : 0;
    fclose(file);
    printf("%ld\n", taken / 16);
    return error ? failed("fill", error) : 0;
}

/* --- load: time, memory, output, processes, threads, arithmetic */

static int nap(int count, char **words)
{
    if (count != 1)
        return usage();
    printf("ready\n");
    fflush(stdout);
    sleep_ms(number(words[0]));
    return 0;
}

/* For ever, or about N seconds of wall time. */
static int spin(int count, char **words)
{
    time_t until = count ? time(NULL) + number(words[0]) : 0;
    printf("ready\n");
    fflush(stdout);
    for (volatile uint64_t rounds = 0;; rounds = rounds + 1)
        if (until && rounds % 65536 == 0 && time(NULL) >= until)
            return 0;
}

/* Takes N MiB, one by one, and writes to each page of them. */
static int eat(int count, char **words)
{
    if (count != 1)
        return usage();
    long wanted = number(words[0]);
    for (long i = 0; i < wanted; i++) {
        volatile char *piece = malloc(1 << 20);
        if (!piece) {
            fprintf(stderr, "eat: memory after %ld\n", i);
            return 1;
        }
        for (size_t at = 0; at < 1 << 20; at += 1024)
            piece[at] = (char)at + 1;
    }
    printf("ate %ld\n", wanted);
    return 0;
}

static int flood(int count, char **words)
{
    unsigned long long left = count ? strtoull(words[0], NULL, 10) : ~0ull;
    memset(block, 'x', sizeof block);
    while (left) {
        size_t piece = left < sizeof block ? (size_t)left : sizeof block;
        if (fwrite(block, 1, piece, stdout) != piece)
            return failed("flood", errno);
        left -= piece;
    }
    return 0;
}

#if defined(_WIN32)
static HANDLE child(const char *arguments)
{
    wchar_t path[4096], line[8192];
    GetModuleFileNameW(NULL, path, 4096);
    _snwprintf(line, 8192, L"\"%ls\" %ls", path, wide(arguments));
    STARTUPINFOW start = {.cb = sizeof start};
    PROCESS_INFORMATION made;
    if (!CreateProcessW(path, line, NULL, NULL, TRUE, 0, NULL, NULL, &start, &made))
        return NULL;
    return made.hProcess;
}
#endif

/* Starts up to N processes that all live at once, says how many there were, and ends them after a second. */
static int forks(int count, char **words)
{
    if (count != 1)
        return usage();
#if defined(__wasi__)
    return unsupported("fork");
#elif defined(_WIN32)
    static HANDLE children[4096];
    long wanted = number(words[0]), made = 0;
    while (made < wanted && made < 4096 && (children[made] = child("haunt 20000")))
        made++;
    printf("started %ld\n", made);
    fflush(stdout);
    sleep_ms(1000);
    for (long i = 0; i < made; i++)
        TerminateProcess(children[i], 0);
    return 0;
#else
    static pid_t children[65536];
    long wanted = number(words[0]), made = 0;
    while (made < wanted && made < 65536) {
        pid_t pid = fork();
        if (pid == 0) {
            sleep_ms(20000);
            _exit(0);
        }
        if (pid == -1)
            break;
        children[made++] = pid;
    }
    printf("started %ld\n", made);
    fflush(stdout);
    sleep_ms(1000);
    for (long i = 0; i < made; i++) {
        kill(children[i], SIGKILL);
        waitpid(children[i], NULL, 0);
    }
    return 0;
#endif
}

static int bomb(int count, char **words)
{
#if defined(__wasi__)
    return unsupported("bomb");
#elif defined(_WIN32)
    printf("ready\n");
    fflush(stdout);
    for (;;)
        child("bomb");
#else
    printf("ready\n");
    fflush(stdout);
    for (;;)
        if (fork() == -1)
            sleep_ms(1);
#endif
}

/* Leaves a process behind, in a session of its own and deaf, that would write to stdout after N ms (ten minutes). */
static int orphan(int count, char **words)
{
    const char *wanted = count ? words[0] : "600000";
#if defined(__wasi__)
    (void)wanted;
    return unsupported("orphan");
#elif defined(_WIN32)
    char line[64];
    snprintf(line, sizeof line, "haunt %s", wanted);
    return child(line) ? 0 : failed("orphan", EAGAIN);
#else
    pid_t pid = fork();
    if (pid == -1)
        return failed("orphan", errno);
    if (pid)
        return 0;
    setsid();
    signal(SIGHUP, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    sleep_ms(number(wanted));
    printf("still here\n");
    return 0;
#endif
}

static int haunt(int count, char **words)
{
    sleep_ms(count ? number(words[0]) : 0);
    printf("still here\n");
    return 0;
}

/* Runs itself with these arguments and prints how that ended. */
static int again(int count, char **words)
{
    if (!count)
        return usage();
#if defined(__wasi__)
    return unsupported("again");
#elif defined(_WIN32)
    char line[4096] = "";
    for (int i = 0; i < count; i++)
        snprintf(line + strlen(line), sizeof line - strlen(line), "\"%s\" ", words[i]);
    fflush(stdout);
    HANDLE process = child(line);
    if (!process)
        return failed("again", EAGAIN);
    DWORD code = 0;
    WaitForSingleObject(process, INFINITE);
    GetExitCodeProcess(process, &code);
    printf("exit %lu\n", code);
    return 0;
#else
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        execv("/proc/self/exe", words - 1);
        execv(program, words - 1);
        _exit(127);
    }
    int status;
    if (pid == -1 || waitpid(pid, &status, 0) == -1)
        return failed("again", errno);
    if (WIFEXITED(status))
        printf("exit %d\n", WEXITSTATUS(status));
    else
        printf("signal %d\n", WTERMSIG(status));
    return 0;
#endif
}

static uint32_t mixed(uint32_t rounds)
{
    uint64_t state = 88172645463325252ull;
    for (uint32_t i = 0; i < rounds; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state *= 0x9E3779B97F4A7C15ull;
    }
    return (uint32_t)(state >> 32) ^ (uint32_t)state;
}

static uint32_t primes(void)
{
    static uint8_t composite[1 << 20];
    uint32_t sum = 0;
    memset(composite, 0, sizeof composite);
    for (uint32_t i = 2; i < sizeof composite; i++) {
        if (composite[i])
            continue;
        sum = sum * 31 + i;
        for (uint32_t at = i * 2; at < sizeof composite; at += i)
            composite[at] = 1;
    }
    return sum;
}

static uint32_t product(void)
{
    enum { SIZE = 160 };
    static uint32_t a[SIZE][SIZE], b[SIZE][SIZE];
    uint32_t sum = 0;
    for (int i = 0; i < SIZE * SIZE; i++)
        a[i / SIZE][i % SIZE] = (uint32_t)i * 2654435761u, b[i / SIZE][i % SIZE] = (uint32_t)i ^ 0x5bd1e995u;
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++) {
            uint32_t cell = 0;
            for (int k = 0; k < SIZE; k++)
                cell += a[i][k] * b[k][j];
            sum = sum * 33 + cell;
        }
    return sum;
}

/* About 10 ms of a present processor for each round: integer arithmetic, memory, branches. The checksum is the same on every target. */
static int compute(int count, char **words)
{
    uint32_t sum = 0;
    long rounds = count ? number(words[0]) : 1;
    for (long i = 0; i < rounds; i++)
        sum = sum * 2654435761u + (mixed(1000000) ^ primes() ^ product());
    printf("%08lx\n", (unsigned long)sum);
    return 0;
}

#if defined(POSIX)
static void *work(void *cell)
{
    *(uint32_t *)cell = mixed(*(uint32_t *)cell);
    return NULL;
}
#elif defined(_WIN32)
static DWORD WINAPI work(void *cell)
{
    *(uint32_t *)cell = mixed(*(uint32_t *)cell);
    return 0;
}
#endif

/* Prints the sum of what N threads computed side by side. */
static int threads(int count, char **words)
{
    if (count != 1)
        return usage();
#if defined(__wasi__)
    return unsupported("threads");
#else
    static uint32_t cells[1024];
    uint32_t sum = 0;
    long wanted = number(words[0]), made = 0;
#if defined(_WIN32)
    static HANDLE all[1024];
    for (; made < wanted && made < 1024; made++) {
        cells[made] = 1000 + (uint32_t)made;
        if (!(all[made] = CreateThread(NULL, 0, work, &cells[made], 0, NULL)))
            return failed("threads", EAGAIN);
    }
    for (long i = 0; i < made; i++)
        WaitForSingleObject(all[i], INFINITE);
#else
    static pthread_t all[1024];
    for (; made < wanted && made < 1024; made++) {
        cells[made] = 1000 + (uint32_t)made;
        int error = pthread_create(&all[made], NULL, work, &cells[made]);
        if (error)
            return failed("threads", error);
    }
    for (long i = 0; i < made; i++)
        pthread_join(all[i], NULL);
#endif
    for (long i = 0; i < made; i++)
        sum += cells[i];
    printf("%08lx\n", (unsigned long)sum);
    return 0;
#endif
}

/* --- what is around it */

/* What is open beside the three. */
static int fds(int count, char **words)
{
#if defined(POSIX)
    struct stat what;
    for (int i = 3; i < 4096; i++)
        if (!fstat(i, &what))
            printf("%d\n", i);
    return 0;
#else
    return unsupported("fds");
#endif
}

static int terminal(int count, char **words)
{
    for (int i = 0; i < 3; i++)
        printf("%s%c", isatty(i) ? "true" : "false", i < 2 ? ' ' : '\n');
    return 0;
}

static int winsize(int count, char **words)
{
#if defined(POSIX)
    struct winsize size;
    if (ioctl(0, TIOCGWINSZ, &size))
        return failed("winsize", errno);
    printf("%d %d\n", size.ws_row, size.ws_col);
    return 0;
#else
    return unsupported("winsize");
#endif
}

static int now(int count, char **words)
{
    printf("%lld\n", (long long)time(NULL));
    return 0;
}

static int ids(int count, char **words)
{
#if defined(POSIX)
    printf("%ld %ld %ld %ld %d\n", (long)getuid(), (long)geteuid(), (long)getgid(), (long)getegid(), getgroups(0, NULL));
    return 0;
#else
    return unsupported("ids");
#endif
}

static int uid(int count, char **words)
{
#if defined(POSIX)
    printf("%ld\n", (long)getuid());
    return 0;
#else
    return unsupported("uid");
#endif
}

static int pid(int count, char **words)
{
#if defined(POSIX)
    printf("%ld\n", (long)getpid());
    return 0;
#elif defined(_WIN32)
    printf("%d\n", _getpid());
    return 0;
#else
    return unsupported("pid");
#endif
}

static int hostname(int count, char **words)
{
#if defined(POSIX)
    if (gethostname(block, sizeof block))
        return failed("hostname", errno);
    printf("%s\n", block);
    return 0;
#else
    return unsupported("hostname");
#endif
}

static int entropy(int count, char **words)
{
    unsigned char bytes[8];
#if defined(_WIN32)
    for (size_t i = 0; i < sizeof bytes; i++) {
        unsigned int piece;
        if (rand_s(&piece))
            return failed("random", errno);
        bytes[i] = (unsigned char)piece;
    }
#else
    if (getentropy(bytes, sizeof bytes))
        return failed("random", errno);
#endif
    for (size_t i = 0; i < sizeof bytes; i++)
        printf("%02x", bytes[i]);
    putchar('\n');
    return 0;
}

/* --- network: connect, listen, resolve */

#if !defined(__wasi__)

#if defined(_WIN32)
typedef SOCKET Socket;
static int socket_error(void)
{
    int error = WSAGetLastError();
    return error == WSAEACCES ? EACCES : error;
}
static void network(void)
{
    WSADATA data;
    WSAStartup(MAKEWORD(2, 2), &data);
}
#define close closesocket
#define SHUT_WR SD_SEND
#else
typedef int Socket;
#define INVALID_SOCKET (-1)
static int socket_error(void) { return errno; }
static void network(void) {}
#endif

static struct addrinfo *addresses(const char *host, const char *port)
{
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    network();
    int error = getaddrinfo(host, port, &wanted, &found);
    if (error)
        fprintf(stderr, "resolve: missing (%d)\n", error);
    return error ? NULL : found;
}

static int refused(const char *what, int error)
{
    if (error == EACCES || error == EPERM)
        return failed(what, error);
    fprintf(stderr, "%s: unreachable (%d)\n", what, error);
    return 1;
}

static int drain(Socket peer)
{
    for (;;) {
        long got = recv(peer, block, sizeof block, 0);
        if (got <= 0)
            return got < 0;
        fwrite(block, 1, (size_t)got, stdout);
        fflush(stdout);
    }
}
#endif

/* connect HOST PORT [TEXT]: sends the text and a line end ("hello"), prints what comes until the end. */
static int connect_command(int count, char **words)
{
    if (count != 2 && count != 3)
        return usage();
#if defined(__wasi__)
    return unsupported("connect");
#else
    struct addrinfo *found = addresses(words[0], words[1]);
    if (!found)
        return 1;
    int error = 0;
    for (; found; found = found->ai_next) {
        Socket peer = socket(found->ai_family, SOCK_STREAM, 0);
        if (peer == INVALID_SOCKET || connect(peer, found->ai_addr, found->ai_addrlen)) {
            error = socket_error();
            continue;
        }
        int length = snprintf(block, sizeof block, "%s\n", count == 3 ? words[2] : "hello");
        send(peer, block, (size_t)length, 0);
        shutdown(peer, SHUT_WR);
        return drain(peer);
    }
    return refused("connect", error);
#endif
}

/* listen PORT: says "ready", takes one connection on any address, and sends back what comes until the end. */
static int listen_command(int count, char **words)
{
    if (count != 1)
        return usage();
#if defined(__wasi__)
    return unsupported("listen");
#else
    network();
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons((uint16_t)number(words[0]))};
    Socket door = socket(AF_INET, SOCK_STREAM, 0);
    if (door == INVALID_SOCKET || bind(door, (struct sockaddr *)&place, sizeof place) || listen(door, 16))
        return refused("listen", socket_error());
    printf("ready\n");
    fflush(stdout);
    Socket peer = accept(door, NULL, NULL);
    if (peer == INVALID_SOCKET)
        return refused("listen", socket_error());
    for (long got; (got = recv(peer, block, sizeof block, 0)) > 0;)
        send(peer, block, (size_t)got, 0);
    close(peer);
    return 0;
#endif
}

static int resolve(int count, char **words)
{
    if (count != 1)
        return usage();
#if defined(__wasi__)
    return unsupported("resolve");
#else
    struct addrinfo *found = addresses(words[0], NULL);
    if (!found)
        return 1;
    for (; found; found = found->ai_next) {
        getnameinfo(found->ai_addr, found->ai_addrlen, block, sizeof block, NULL, 0, NI_NUMERICHOST);
        printf("%s\n", block);
    }
    return 0;
#endif
}

/* --- escapes: attempts.c, where the target is Linux */

#if defined(__linux__)
int attempt(int count, char **words);
int attempts(int count, char **words);
#else
static int attempt(int count, char **words)
{
    return unsupported("attempt");
}
static int attempts(int count, char **words) { return attempt(count, words); }
#endif

static const struct {
    const char *name;
    Command run;
} commands[] = {
    {"abort", give_up},
    {"again", again},
    {"append", append_file},
    {"args", args},
    {"attempt", attempt},
    {"attempts", attempts},
    {"bomb", bomb},
    {"cat", cat},
    {"compute", compute},
    {"connect", connect_command},
    {"cwd", cwd},
    {"eat", eat},
    {"env", env},
    {"eof", end_of_input},
    {"err", err},
    {"exit", leave},
    {"fds", fds},
    {"fill", fill},
    {"flood", flood},
    {"fork", forks},
    {"handle", handle},
    {"haunt", haunt},
    {"hostname", hostname},
    {"ids", ids},
    {"ignore", ignore},
    {"kind", kind},
    {"lines", lines},
    {"link", link_command},
    {"list", list},
    {"listen", listen_command},
    {"mkdir", mkdir_command},
    {"name", name},
    {"opens", opens},
    {"orphan", orphan},
    {"out", out},
    {"overflow", overflow},
    {"pid", pid},
    {"raise", raise_signal},
    {"random", entropy},
    {"read", read_file},
    {"readlink", readlink_command},
    {"remove", remove_command},
    {"rename", move},
    {"resolve", resolve},
    {"segv", segv},
    {"size", size},
    {"sleep", nap},
    {"spin", spin},
    {"threads", threads},
    {"time", now},
    {"tmp", tmp},
    {"trap", trap},
    {"tty", terminal},
    {"uid", uid},
    {"wait", wait_for_ever},
    {"winsize", winsize},
    {"write", write_file},
};

static int help(void)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        printf("%s\n", commands[i].name);
    return 0;
}

static int run(int count, char **words)
{
    program = words[0];
    if (count < 2)
        return help();
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(commands[i].name, words[1])) {
            int code = commands[i].run(count - 2, words + 2);
            return fflush(stdout) ? 1 : code;
        }
    return usage();
}

#if defined(_WIN32)
int main(void)
{
    int count;
    wchar_t **given = CommandLineToArgvW(GetCommandLineW(), &count);
    char **words = calloc((size_t)count + 1, sizeof *words);
    for (int i = 0; i < count; i++)
        words[i] = narrow(given[i]);
    for (int i = 0; i < 3; i++)
        _setmode(i, _O_BINARY);
    return run(count, words);
}
#else
int main(int count, char **words) { return run(count, words); }
#endif
