/*
 * memory.so: preloaded into QEMU, maps the guest's memory on request.
 *
 * A thread of its own accepts on the listening unix socket whose number is in ROOST_MEMORY_FD, one connection at a time, and obeys
 * whoever holds it: Roost's daemon, which alone can reach that socket. QEMU gives its RAM block an address once and never asks again
 * what is mapped there, so the mapping can be exchanged below it. See docs/decisions/0011-memory-of-guests.md.
 *
 * Only raw system calls: the thread shares nothing with QEMU but the address space, and needs nothing of the C library but the birth
 * of a thread. All numbers are little-endian, as on every host this is built for.
 */
#include <stdint.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef int32_t s32;
typedef uint64_t u64;

/* Of the C library, by name alone so that any version of any will do. */
typedef unsigned long pthread_t;
extern int pthread_create(pthread_t *thread, const void *attributes, void *(*run)(void *), void *argument);
extern int pthread_detach(pthread_t thread);
extern char *getenv(const char *name);
extern int unsetenv(const char *name);

enum { HELLO = 1, MAP, COPY, PRESENT, POPULATE, LIST, PREPARE };

/* MAP: the list of layers begins anew; the first range must be all of the guest's memory, or all of them in order. */
#define REPLACE 1u
/* MAP with REPLACE, and LIST: layer 0 is mapped shared, so the guest writes to it. */
#define SHARED 2u
/* MAP: the list of layers begins anew above layer 0, which stays; the ranges must be all that was mapped from the others. */
#define KEEP_LOWEST 8u
/* PRESENT: only pages that belong to this process alone. */
#define PRIVATE 4u
/* MAP: no file is given; the ranges are of the topmost layer, which is not the lowest. */
#define TOPMOST 16u

#define MAGIC 0x314d5352u /* "RSM1" */
#define MAX_LAYERS 16u
#define MAX_RANGES 65536u
#define UNIT 4096ull

struct message {
	u32 magic, command;
	s32 error; /* errno, in answers */
	u32 flags, layers, count; /* descriptors, then ranges behind this header */
	u64 address, length; /* where the guest's memory is */
	u32 page, most; /* bytes of a page of this host; most ranges wanted */
	u64 bytes; /* in answers: bytes that the ranges cover before small gaps were closed */
};

struct range {
	u64 start; /* bytes from the beginning of the guest's memory */
	u32 units, layer;
};

#define PROT_READ_WRITE 3
#define MAP_SHARED 0x01
#define MAP_PRIVATE 0x02
#define MAP_FIXED 0x10
#define MAP_NORESERVE 0x4000
#define MADV_DONTNEED 4
#define MADV_DONTFORK 10
#define MADV_DONTDUMP 16
#define MADV_POPULATE_READ 22
#define EINTR 4
#define EAGAIN 11
#define EBADF 9
#define EINVAL 22
#define E2BIG 7
#define EIO 5
#define SOL_SOCKET 1
#define SCM_RIGHTS 1
#define SOCK_CLOEXEC 02000000
#define MSG_CMSG_CLOEXEC 0x40000000
#define MSG_CTRUNC 8
#define MSG_NOSIGNAL 0x4000
#define POLLIN 1

struct kernel_iovec {
	void *base;
	unsigned long length;
};

struct kernel_msghdr { /* struct user_msghdr of the kernel */
	void *name;
	int name_length;
	struct kernel_iovec *parts;
	unsigned long count;
	void *control;
	unsigned long control_length;
	unsigned int flags;
};

struct rights { /* struct cmsghdr and its data */
	unsigned long length;
	int level, type;
	int fds[MAX_LAYERS];
};

struct scan { /* struct pm_scan_arg of linux/fs.h, 6.7 */
	u64 size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, all, any, returned;
};

struct found {
	u64 start, end, categories;
};

#ifndef PAGEMAP_SCAN /* a test pretends that the kernel is older */
#define PAGEMAP_SCAN 0xc0606610u
#endif
#define PAGE_IS_FILE (1u << 2)
#define PAGE_IS_PRESENT (1u << 3)
#define PAGE_IS_SWAPPED (1u << 4)

/* Freestanding: there are no headers of Linux. arch/x86/entry/syscalls/syscall_64.tbl, else include/uapi/asm-generic/unistd.h. */
enum {
#if defined(__x86_64__)
	NR_accept4 = 288, NR_close = 3, NR_ioctl = 16, NR_listen = 50, NR_madvise = 28, NR_mmap = 9, NR_munmap = 11,
	NR_ppoll = 271, NR_pread64 = 17, NR_pwrite64 = 18, NR_recvfrom = 45, NR_recvmsg = 47, NR_rt_sigprocmask = 14,
	NR_sendmsg = 46, NR_sendto = 44
#else
	NR_accept4 = 242, NR_close = 57, NR_ioctl = 29, NR_listen = 201, NR_madvise = 233, NR_mmap = 222,
	NR_munmap = 215, NR_ppoll = 73, NR_pread64 = 67, NR_pwrite64 = 68, NR_recvfrom = 207, NR_recvmsg = 212,
	NR_rt_sigprocmask = 135, NR_sendmsg = 211, NR_sendto = 206
#endif
};

static struct range ranges[MAX_RANGES];
static union {
	struct found found[4096];
	u64 entries[12288];
} buffer;

static struct {
	u64 address, length;
	u32 count, shared;
	int fds[MAX_LAYERS];
} region;

static long call(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	long result;
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c,
		      x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
#elif defined(__riscv) && __riscv_xlen == 64
	register long a7 __asm__("a7") = number, a0 __asm__("a0") = a, a1 __asm__("a1") = b, a2 __asm__("a2") = c,
		      a3 __asm__("a3") = d, a4 __asm__("a4") = e, a5 __asm__("a5") = f;
	__asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5) : "memory");
	return a0;
#else
#error "no system calls for this architecture"
#endif
}

#define CALL3(n, a, b, c) call(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define CALL4(n, a, b, c, d) call(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

static int failed(long result)
{
	return result < 0 && result >= -4095;
}

static void close_all(const int *fds, u32 count)
{
	for (u32 i = 0; i < count; i++)
		CALL3(NR_close, fds[i], 0, 0);
}

/* The listening socket is the daemon's too, and does not block. After an error (no descriptor is left) a rest of 0.1 s, not a hot loop. */
static void wait_for(int fd, long error)
{
	struct {
		int fd;
		short events, returned;
	} one = {fd, POLLIN, 0};
	struct {
		long seconds, nanoseconds;
	} rest = {0, 100000000};
	int again = error == -EAGAIN || error == -EINTR;
	call(NR_ppoll, (long)&one, again, again ? 0 : (long)&rest, 0, 0, 0);
}

static int receive_all(int fd, void *data, u64 length)
{
	for (u64 done = 0; done < length;) {
		long got = call(NR_recvfrom, fd, (long)((u8 *)data + done), (long)(length - done), 0, 0, 0);
		if (got == -EINTR)
			continue;
		if (got <= 0)
			return -1;
		done += (u64)got;
	}
	return 0;
}

static int send_all(int fd, const void *data, u64 length)
{
	for (u64 done = 0; done < length;) {
		long sent = call(NR_sendto, fd, (long)((const u8 *)data + done), (long)(length - done), MSG_NOSIGNAL, 0, 0);
		if (sent == -EINTR)
			continue;
		if (sent <= 0)
			return -1;
		done += (u64)sent;
	}
	return 0;
}

/* A header and the descriptors that came with it, which are the caller's to close. */
static int receive(int fd, struct message *message, int *fds, u32 *count)
{
	struct rights rights;
	struct kernel_iovec part = {message, sizeof *message};
	struct kernel_msghdr header = {0};
	long got;

	*count = 0;
	do {
		header.parts = &part;
		header.count = 1;
		header.control = &rights;
		header.control_length = sizeof rights;
		got = CALL3(NR_recvmsg, fd, &header, MSG_CMSG_CLOEXEC);
	} while (got == -EINTR);
	if (got <= 0)
		return -1;
	if (header.control_length >= 16 + sizeof(int) && rights.level == SOL_SOCKET && rights.type == SCM_RIGHTS) {
		*count = (u32)((rights.length - 16) / sizeof(int));
		for (u32 i = 0; i < *count; i++)
			fds[i] = rights.fds[i];
	}
	if (header.flags & MSG_CTRUNC)
		return -1;
	return receive_all(fd, (u8 *)message + got, sizeof *message - (u64)got);
}

static int answer(int fd, const struct message *message, const int *fds)
{
	struct rights rights = {16 + message->layers * sizeof(int), SOL_SOCKET, SCM_RIGHTS, {0}};
	struct kernel_iovec part = {(void *)message, sizeof *message};
	struct kernel_msghdr header = {0};
	long sent;

	header.parts = &part;
	header.count = 1;
	if (message->layers) {
		for (u32 i = 0; i < message->layers; i++)
			rights.fds[i] = fds[i];
		header.control = &rights;
		header.control_length = (rights.length + 7) & ~7ul;
	}
	do
		sent = CALL3(NR_sendmsg, fd, &header, MSG_NOSIGNAL);
	while (sent == -EINTR);
	if (sent <= 0 || send_all(fd, (const u8 *)message + sent, sizeof *message - (u64)sent))
		return -1;
	return send_all(fd, ranges, message->count * sizeof *ranges);
}

/* What is asked for lies in the guest's memory, and that is where it always was. */
static int check(const struct message *ask, u32 fds)
{
	u64 page = ask->page;
	u32 files = ask->flags & TOPMOST ? 1 : fds;

	if (page < UNIT || page > 65536 || (page & (page - 1)) || !ask->length || (ask->address | ask->length) & (page - 1))
		return -EINVAL;
	if (ask->address + ask->length < ask->address)
		return -EINVAL;
	if (region.length && (region.address != ask->address || region.length != ask->length))
		return -EINVAL;
	for (u32 i = 0; i < ask->count; i++) {
		u64 length = ranges[i].units * UNIT;
		if ((ranges[i].start | length) & (page - 1) || !length || ranges[i].start >= ask->length)
			return -EINVAL;
		if (length > ask->length - ranges[i].start || (ask->command == MAP && ranges[i].layer >= files))
			return -EINVAL;
	}
	return 0;
}

static long map(u64 address, u64 length, int how, int fd, u64 offset)
{
	return call(NR_mmap, (long)address, (long)length, PROT_READ_WRITE, how | MAP_NORESERVE, fd, (long)offset);
}

/* Guest memory is no part of a core dump, nor of a child of QEMU, as QEMU itself has asked for the mappings that were here before. */
static void mark(void)
{
	CALL3(NR_madvise, region.address, region.length, MADV_DONTDUMP);
	CALL3(NR_madvise, region.address, region.length, MADV_DONTFORK);
}

static int check_map(const struct message *ask, const int *fds, u32 given, int how)
{
	u32 stay = ask->flags & REPLACE ? 0 : ask->flags & KEEP_LOWEST ? 1 : region.count;
	u64 end = 0;

	if (ask->flags == TOPMOST)
		return given || region.shared || region.count < 2 ? -EINVAL : 0;
	if (!given || ask->flags & TOPMOST || stay + given > MAX_LAYERS || (!region.length && !(ask->flags & REPLACE)))
		return -EINVAL;
	if (!(ask->flags & REPLACE) && (how == MAP_SHARED || region.shared))
		return -EINVAL;
	for (u32 i = 0; i < ask->count && ranges[i].start == end; i++)
		end += ranges[i].units * UNIT;
	if (ask->flags & REPLACE && end != ask->length)
		return -EINVAL;
	for (u32 i = 0; i < given; i++) {
		long trial = map(0, ask->length, i ? MAP_PRIVATE : how, fds[i], 0);
		if (failed(trial))
			return (int)trial;
		CALL3(NR_munmap, trial, ask->length, 0);
	}
	return 0;
}

/*
 * Of a guest that has run, the daemon has each page mapped once, from the layer that has it: so nobody ever sees an older one, not even
 * where the daemon is killed meanwhile. When a mapping fails nothing may be there any more: a guest without some of its memory must not run.
 */
static int do_map(const struct message *ask, const int *fds, u32 given)
{
	int how = ask->flags & SHARED ? MAP_SHARED : MAP_PRIVATE;
	int result = check_map(ask, fds, given, how);
	const int *files = ask->flags & TOPMOST ? region.fds + region.count - 1 : fds;

	if (result)
		return result;
	for (u32 i = 0; i < ask->count; i++) {
		u64 start = ranges[i].start;
		int kind = ranges[i].layer ? MAP_PRIVATE : how;
		if (failed(map(ask->address + start, ranges[i].units * UNIT, kind | MAP_FIXED, files[ranges[i].layer], start)))
			__builtin_trap();
	}
	if (ask->flags & REPLACE) {
		close_all(region.fds, region.count);
		region.address = ask->address;
		region.length = ask->length;
		region.count = 0;
		region.shared = how == MAP_SHARED;
	} else if (ask->flags & KEEP_LOWEST) {
		close_all(region.fds + 1, region.count - 1);
		region.count = 1;
	}
	for (u32 i = 0; i < given; i++)
		region.fds[region.count++] = fds[i];
	mark();
	return 0;
}

/* Collects ranges in order of address; when they become too many, small gaps between them are closed. */
struct list {
	u32 count, most;
	u64 gap;
};

static void put(struct list *list, u64 start, u64 end)
{
	while (end > start) { /* 32 bits of units are 16 TiB: one turn, but for monsters */
		u64 length = end - start > (1ull << 43) ? (1ull << 43) : end - start;
		ranges[list->count].start = start;
		ranges[list->count].units = (u32)(length / UNIT);
		ranges[list->count].layer = 0;
		list->count++;
		start += length;
	}
}

static u64 end_of(const struct range *range)
{
	return range->start + range->units * UNIT;
}

static void coarsen(struct list *list)
{
	u32 kept = 0;

	list->gap *= 2;
	for (u32 i = 1; i < list->count; i++) {
		if (ranges[i].start - end_of(&ranges[kept]) <= list->gap)
			ranges[kept].units = (u32)((end_of(&ranges[i]) - ranges[kept].start) / UNIT);
		else
			ranges[++kept] = ranges[i];
	}
	list->count = kept + 1;
}

static void add(struct list *list, u64 start, u64 end)
{
	struct range *last = list->count ? &ranges[list->count - 1] : 0;

	if (last && start - end_of(last) <= list->gap && end - last->start < (1ull << 43)) {
		last->units = (u32)((end - last->start) / UNIT);
		return;
	}
	put(list, start, end);
	while (list->count >= list->most)
		coarsen(list);
}

/* Linux 6.7 and later. */
static long scan(const struct message *ask, int pagemap, struct list *list, u64 *bytes)
{
	u64 at = ask->address, end = ask->address + ask->length;

	while (at < end) {
		struct scan arg = {0};
		arg.size = sizeof arg;
		arg.start = at;
		arg.end = end;
		arg.vec = (u64)(unsigned long)buffer.found;
		arg.vec_len = sizeof buffer.found / sizeof *buffer.found;
		arg.any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
		if (ask->flags & PRIVATE)
			arg.inverted = arg.all = PAGE_IS_FILE;
		long found = CALL3(NR_ioctl, pagemap, PAGEMAP_SCAN, &arg);
		if (failed(found))
			return found;
		for (long i = 0; i < found; i++) {
			*bytes += buffer.found[i].end - buffer.found[i].start;
			add(list, buffer.found[i].start - ask->address, buffer.found[i].end - ask->address);
		}
		if ((u64)found < arg.vec_len)
			break;
		at = buffer.found[found - 1].end; /* not walk_end, which is an older one's after more than 512 ranges */
	}
	return 0;
}

/* Older: Documentation/admin-guide/mm/pagemap.rst; bit 63 present, 62 swapped, 61 of a file or shared. */
static long walk(const struct message *ask, int pagemap, struct list *list, u64 *bytes)
{
	u64 page = ask->page, pages = ask->length / page, first = ask->address / page;

	for (u64 at = 0; at < pages;) {
		u64 want = (pages - at) * 8 < sizeof buffer.entries ? (pages - at) * 8 : sizeof buffer.entries;
		long got = CALL4(NR_pread64, pagemap, buffer.entries, want, (first + at) * 8);
		if (got <= 0 || got % 8)
			return got < 0 ? got : -EIO;
		for (u64 i = 0; i < (u64)got / 8; i++) {
			u64 entry = buffer.entries[i];
			if (!(entry >> 62) || ((ask->flags & PRIVATE) && (entry >> 61 & 1)))
				continue;
			*bytes += page;
			add(list, (at + i) * page, (at + i + 1) * page);
		}
		at += (u64)got / 8;
	}
	return 0;
}

static long do_scan(const struct message *ask, int pagemap, struct message *reply)
{
	struct list list = {0, ask->most, 4 * ask->page};
	long result;

	if (ask->most < 16 || ask->most > MAX_RANGES)
		return -EINVAL;
	result = scan(ask, pagemap, &list, &reply->bytes);
	if (failed(result) && reply->bytes == 0) {
		list.count = 0;
		result = walk(ask, pagemap, &list, &reply->bytes);
	}
	reply->count = failed(result) ? 0 : list.count;
	return result;
}

/* Copies the ranges into the same place of a file. */
static long copy(const struct message *ask, int file, u32 count)
{
	for (u32 i = 0; i < count; i++) {
		for (u64 at = ranges[i].start, end = end_of(&ranges[i]); at < end;) {
			long result = CALL4(NR_pwrite64, file, ask->address + at, end - at, at);
			if (result == -EINTR)
				continue;
			if (result <= 0)
				return result ? result : -EIO;
			at += (u64)result;
		}
	}
	return 0;
}

/* fds: the file that takes the ranges asked for; without any, pagemap, and the file that takes what the guest has written. */
static long do_copy(const struct message *ask, const int *fds, struct message *reply)
{
	long result;

	if (ask->count)
		return copy(ask, fds[0], ask->count);
	result = do_scan(ask, fds[0], reply);
	if (!failed(result))
		result = copy(ask, fds[1], reply->count);
	if (failed(result))
		reply->count = 0;
	return result;
}

static long do_populate(const struct message *ask)
{
	for (u32 i = 0; i < ask->count; i++) {
		u64 start = ask->address + ranges[i].start, length = ranges[i].units * UNIT;
		long result = CALL3(NR_madvise, start, length, MADV_POPULATE_READ);
		if (result == -EINVAL) /* before Linux 5.14 */
			for (u64 at = 0; at < length; at += ask->page)
				(void)*(volatile u8 *)(start + at);
		else if (failed(result))
			return result;
	}
	return 0;
}

/*
 * Drops the page tables of memory that is mapped shared, while the guest runs: they take 10 ms for each GiB, which would be part of its
 * pause. The pages stay in their file, and those that the guest uses come back one by one. Of private memory they would be lost.
 */
static long do_prepare(void)
{
	return region.shared ? CALL3(NR_madvise, region.address, region.length, MADV_DONTNEED) : 0;
}

/* Whether the connection goes on. `*kept` tells whether the descriptors have become the region's. */
static int obey(int fd, struct message *ask, const int *fds, u32 given, int *kept)
{
	struct message reply = {.magic = MAGIC, .command = ask->command};
	long result;

	if (ask->magic != MAGIC || ask->count > MAX_RANGES || receive_all(fd, ranges, ask->count * sizeof *ranges))
		return -1;
	result = ask->command == LIST ? 0 : check(ask, given);
	if (given != ask->layers || (ask->command != MAP && !region.length && ask->command != LIST))
		result = -EINVAL;
	if (!result) {
		switch (ask->command) {
		case MAP:
			result = do_map(ask, fds, given);
			*kept = !result;
			break;
		case COPY:
			result = given == (ask->count ? 1 : 2) ? do_copy(ask, fds, &reply) : -EINVAL;
			break;
		case PRESENT:
			result = given == 1 ? do_scan(ask, fds[0], &reply) : -EINVAL;
			break;
		case POPULATE:
			result = do_populate(ask);
			break;
		case PREPARE:
			result = do_prepare();
			break;
		case LIST:
			reply.layers = region.count;
			reply.flags = region.shared ? SHARED : 0;
			break;
		default:
			result = -EINVAL;
		}
	}
	reply.error = failed(result) ? (s32)-result : 0;
	reply.address = region.address;
	reply.length = region.length;
	return answer(fd, &reply, region.fds);
}

static void serve(int fd)
{
	struct message hello = {.magic = MAGIC, .command = HELLO, .address = region.address, .length = region.length};
	int going = answer(fd, &hello, 0);

	while (!going) {
		struct message ask;
		int fds[MAX_LAYERS], kept = 0;
		u32 given;
		going = receive(fd, &ask, fds, &given);
		if (!going)
			going = obey(fd, &ask, fds, given, &kept);
		if (!kept)
			close_all(fds, given);
	}
	CALL3(NR_close, fd, 0, 0);
}

static void *run(void *argument)
{
	int listener = (int)(long)argument;

	for (;;) {
		long fd = CALL4(NR_accept4, listener, 0, 0, SOCK_CLOEXEC);
		if (fd >= 0)
			serve((int)fd);
		else if (fd == -EBADF || fd == -EINVAL)
			return 0;
		else
			wait_for(listener, fd);
	}
}

__attribute__((constructor)) static void begin(void)
{
	const char *text = getenv("ROOST_MEMORY_FD");
	unsigned long long all = ~0ull, before;
	long listener = 0;
	pthread_t thread;

	if (!text || !*text)
		return;
	for (; *text >= '0' && *text <= '9' && listener < 100000; text++)
		listener = listener * 10 + (*text - '0');
	unsetenv("LD_PRELOAD");
	unsetenv("ROOST_MEMORY_FD");
	/* Listening again makes this process the one that SO_PEERCRED names: so the daemon can tell that the library is here. */
	if (*text || failed(CALL3(NR_listen, listener, 4, 0)))
		return;
	/* No signal of QEMU's may end up in our thread, which inherits the mask. */
	CALL4(NR_rt_sigprocmask, 0, &all, &before, 8);
	if (!pthread_create(&thread, 0, run, (void *)listener))
		pthread_detach(thread);
	CALL4(NR_rt_sigprocmask, 2, &before, 0, 8);
}
