/*
 * Calls of libxenforeignmemory with the arguments of a table's row. Each prints its result as a line of text. Not every
 * table uses all of them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xenforeignmemory.h>
#include <xentoolcore.h>
#include <xentoollog.h>

enum { FRAME = 4096, FRAMES_MOST = 4 };

/* The hosts. */
enum {
    MOCK_PV = 1,    /* simulated by the library, with a PV dom0 */
    MOCK_AUTO = 2,  /* the same, with an auto-translated dom0 */
    FAKE = 4,       /* fake_privcmd.c: a PV dom0 */
    FAKE_OLD = 8,   /* the same, with an old kernel */
    XEN_PV = 16,    /* a real Xen, with a PV dom0 */
    XEN_AUTO = 32,  /* the same, with an auto-translated dom0: PVH, or arm64 */
    NO_XEN = 64,    /* a plain Linux */
    FAKE_OLD_XEN = 128, /* a new kernel on Xen 4.14 */
    SIMULATED = MOCK_PV | MOCK_AUTO | FAKE,
    ANY = SIMULATED | XEN_PV | XEN_AUTO,
};

/* The arguments of a row; its function ignores some. 0 stands for a default. */
struct call {
    uint32_t dom;       /* 0: the guest */
    uint32_t dom_plus;  /* added to the number of the domain */
    int prot;           /* 0: PROT_READ | PROT_WRITE */
    int flags;
    bool err;           /* whether to pass an array for errors */
    size_t pages;       /* 0: the number of frames */
    size_t n;
    uint64_t frames[FRAMES_MOST];
    unsigned type;
    unsigned long first, nr;  /* of a resource */
};
#define FRAMES(...) .n = sizeof((uint64_t[]){ __VA_ARGS__ }) / sizeof(uint64_t), .frames = { __VA_ARGS__ }
#define NO_ACCESS (-1)

static unsigned host;
static uint32_t guest;
/* The first frame of a real guest's RAM. */
#ifdef __aarch64__
#define RAM 0x40000
#else
#define RAM 0
#endif
/* The frame that rows call 0. The lowest frames of a real guest hold its kernel. */
static uint64_t base;

/* A frame that a small guest does not have: at 2 GiB. */
#define HOLE (1ull << 19)
/* Frame numbers that differ by this have the same page-table entry in a PV dom0. */
#define ALIAS (1ull << 40)
enum { NO_DOMAIN = 0x7000, GRANT_TABLE = 1 };

/* ---- the results of a row ---- */

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    static bool before;
    va_list more;
    if (before)
        putchar(' ');
    before = true;
    va_start(more, format);
    vprintf(format, more);
    va_end(more);
    /* The next call may kill the process. */
    fflush(stdout);
}

static void say_error(int error)
{
    const char *name = strerrorname_np(error);
    say("%s", name ? name : "unknown errno");
}

__attribute__((unused)) static void say_result(int result)
{
    int error = errno;
    say("%d", result);
    if (result)
        say_error(error);
}

/* Prints the permissions at an address according to /proc/self/maps, or "hole". */
static void say_access(const void *addr)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4096], access[5];
    unsigned long start, end, at = (uintptr_t)addr;
    while (fgets(line, sizeof(line), maps))
        if (sscanf(line, "%lx-%lx %4s", &start, &end, access) == 3 && start <= at && at < end) {
            say("%s", access);
            fclose(maps);
            return;
        }
    fclose(maps);
    say("hole");
}

/* Returns the row's number of a frame that begins with `content`. */
static uint64_t number_of(uint64_t content)
{
    return (host & (XEN_PV | XEN_AUTO) ? content / FRAME : content) - base;
}

/* Prints the result of a map call: each frame's content or error. Failed frames are never touched. */
static void say_mapped(const void *mapped, size_t n, const int *err)
{
    if (!mapped) {
        say("NULL");
        say_error(errno);
        return;
    }
    say("mapped");
    for (size_t i = 0; i < n; i++)
        if (err && err[i]) {
            say_error(-err[i]);
        } else {
            say("%ld", (long)number_of(*(const volatile uint64_t *)((const char *)mapped + i * FRAME)));
        }
}

/* ---- a logger that keeps the last message ---- */

static struct {
    unsigned lines;
    xentoollog_level level;
    int error;
    char context[64], text[1024];
} logged;

__attribute__((format(printf, 5, 0))) static void log_message(xentoollog_logger *logger, xentoollog_level level,
    int error, const char *context, const char *format, va_list more)
{
    (void)logger;
    logged.lines++;
    logged.level = level;
    logged.error = error;
    snprintf(logged.context, sizeof(logged.context), "%s", context ? context : "");
    vsnprintf(logged.text, sizeof(logged.text), format, more);
}

static void log_progress(xentoollog_logger *logger, const char *context, const char *what, int percent,
    unsigned long done, unsigned long total)
{
    (void)logger, (void)context, (void)what, (void)percent, (void)done, (void)total;
}

static void log_destroy(xentoollog_logger *logger)
{
    (void)logger;
}

static xentoollog_logger logger = { log_message, log_progress, log_destroy };

static void say_logged(void)
{
    say("%u", logged.lines);
    if (logged.lines)
        say("%s %s %s", xtl_level_to_string(logged.level), logged.context, *logged.text ? "text" : "no text");
}

static xenforeignmemory_handle *open_handle(void)
{
    xenforeignmemory_handle *handle = xenforeignmemory_open(&logger, 0);
    if (!handle) {
        say("cannot open:");
        say_error(errno);
        exit(1);
    }
    return handle;
}

/* ---- calls ---- */

static uint32_t dom_of(const struct call *call)
{
    return (call->dom ? call->dom : guest) + call->dom_plus;
}

static int prot_of(const struct call *call)
{
    return call->prot == NO_ACCESS ? PROT_NONE : call->prot ? call->prot : PROT_READ | PROT_WRITE;
}

/* Maps the frames of a row at a place. Fills err[] with nonsense before the call, and leaves the result in `err`. */
static void *map_at(xenforeignmemory_handle *handle, void *place, const struct call *call, int err[FRAMES_MOST])
{
    xen_pfn_t gfns[FRAMES_MOST];
    for (size_t i = 0; i < FRAMES_MOST; i++) {
        /* Small numbers are relative to the guest's first frame. */
        gfns[i] = call->frames[i] + ((call->frames[i] & (ALIAS - 1)) < 100 ? base : 0);
        err[i] = 1;
    }
    size_t pages = call->pages ? call->pages : call->n;
    int *errors = call->err ? err : NULL;
    if (!place && !call->flags)
        return xenforeignmemory_map(handle, dom_of(call), prot_of(call), pages, gfns, errors);
    return xenforeignmemory_map2(handle, dom_of(call), place, prot_of(call), call->flags, pages, gfns, errors);
}

static void say_map_at(xenforeignmemory_handle *handle, void *place, const struct call *call)
{
    int err[FRAMES_MOST];
    say_mapped(map_at(handle, place, call, err), call->n, call->err ? err : NULL);
}

/* Reserves twelve pages; rows map to the four in the middle. */
static char *reserve(void)
{
    return mmap(NULL, 12 * FRAME, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

__attribute__((unused)) static void map(const struct call *call)
{
    say_map_at(open_handle(), NULL, call);
}

/* Maps into the middle of a reservation, and prints the permissions there and around it afterwards. */
__attribute__((unused)) static void map_over_reservation(const struct call *call)
{
    char *place = reserve() + 4 * FRAME;
    say_map_at(open_handle(), place, call);
    say("around:");
    say_access(place - 1);
    say_access(place + 4 * FRAME);
    say("there:");
    say_access(place);
}
