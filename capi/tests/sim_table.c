/*
 * Rows that need a simulated kernel, or one without Xen: frames that are paged out, known contents of a resource, an
 * old kernel, no device. See table.h.
 */
#include "table.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

/* Paged-out frames of the simulated guests: one comes back after some attempts, the other never does. */
enum { AWAY = 64, GONE = 65 };
enum { PAGING = MOCK_PV | FAKE };
/* The first 8 bytes of frame 0 of the simulated grant table; those of frame 1 are one more. */
#define GRANT 0x6772616e74000000ull

static void resource_content(const struct call *call)
{
    char *mapped = NULL;
    if (!xenforeignmemory_map_resource(open_handle(), guest, call->type, 0, call->first, call->nr, (void **)&mapped,
            PROT_READ, 0))
        say_mapped(NULL, 0, NULL);
    for (size_t i = 0; mapped && i < call->nr; i++)
        say("%lu", (unsigned long)(*(uint64_t *)(mapped + i * FRAME) - GRANT));
}

static void say_resource_bytes(xenforeignmemory_handle *handle, const struct call *call)
{
    size_t bytes = 0;
    say_result(xenforeignmemory_resource_size(handle, guest, call->type, 0, &bytes));
    say("%zu", bytes);
}

static void resource_bytes(const struct call *call)
{
    say_resource_bytes(open_handle(), call);
}

static void resource_bytes_when_restricted(const struct call *call)
{
    xenforeignmemory_handle *handle = open_handle();
    say_result(xenforeignmemory_restrict(handle, guest));
    say_resource_bytes(handle, call);
}

/* The address at which a thread must not get memory; how often it has tried, and got it; and whether it should stop. */
static char *forbidden;
static atomic_uint tries, taken;
static atomic_bool enough;

static void *take_what_is_free(void *nothing)
{
    while (!enough) {
        /* The kernel uses the hint if it is free. */
        char *got = mmap(forbidden, 4 * FRAME, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        taken += got == forbidden;
        munmap(got, 4 * FRAME);
        tries++;
    }
    return nothing;
}

/* Fails to map over a reservation again and again, while another thread tries to map the same addresses. That thread
   continues until it has made one more complete attempt. */
static void map_over_while_another_maps(const struct call *call)
{
    pthread_t id;
    int err[FRAMES_MOST];
    xenforeignmemory_handle *handle = open_handle();
    forbidden = reserve() + 4 * FRAME;
    pthread_create(&id, NULL, take_what_is_free, NULL);
    for (int i = 0; i < 2000 || (!taken && tries < 2000); i++)
        if (map_at(handle, forbidden, call, err))
            say("mapped");
    for (unsigned before = tries; !taken && tries - before < 2;)
        sched_yield();
    enough = true;
    pthread_join(id, NULL);
    say(taken ? "taken by another thread" : "kept");
}

static xenforeignmemory_handle *to_be_cancelled;
static atomic_bool cancelled;

static void *map_and_be_cancelled(void *call)
{
    int err[FRAMES_MOST];
    while (!cancelled)
        ;
    map_at(to_be_cancelled, NULL, call, err);
    pthread_testcancel();
    return NULL;
}

/* Cancels a thread as soon as it makes a call. */
static void cancel_in_a_call(const struct call *call)
{
    pthread_t id;
    void *result;
    to_be_cancelled = open_handle();
    pthread_create(&id, NULL, map_and_be_cancelled, (void *)call);
    pthread_cancel(id);
    cancelled = true;
    pthread_join(id, &result);
    say(result == PTHREAD_CANCELED ? "cancelled" : "not cancelled");
}

static void restrict_handle(const struct call *call)
{
    (void)call;
    say_result(xenforeignmemory_restrict(open_handle(), guest));
}

static void restrict_all(const struct call *call)
{
    (void)call;
    open_handle();
    say_result(xentoolcore_restrict_all(guest));
}

/* Redirects stderr to a file. */
static int catch_stderr(void)
{
    int file = memfd_create("stderr", 0);
    dup2(file, STDERR_FILENO);
    return file;
}

static void say_lines(int file)
{
    char text[4096];
    ssize_t len = pread(file, text, sizeof(text), 0), lines = 0;
    for (ssize_t i = 0; i < len; i++)
        lines += text[i] == '\n';
    say("%zd on stderr", lines);
}

static void failure_without_logger(const struct call *call)
{
    int file = catch_stderr();
    xenforeignmemory_handle *handle = xenforeignmemory_open(NULL, 0);
    xenforeignmemory_restrict(handle, guest);
    say_map_at(handle, NULL, call);
    say_lines(file);
}

static void open_here(const struct call *call)
{
    (void)call;
    int file = catch_stderr();
    xenforeignmemory_handle *handle = xenforeignmemory_open(&logger, 0);
    handle ? say("a handle") : say_mapped(NULL, 0, NULL);
    say_logged();
    say_lines(file);
}

static void open_without_logger(const struct call *call)
{
    (void)call;
    int file = catch_stderr();
    xenforeignmemory_handle *handle = xenforeignmemory_open(NULL, 0);
    handle ? say("a handle") : say_mapped(NULL, 0, NULL);
    say_lines(file);
}

static const struct row rows[] = {
    { "open", SIMULATED, open_here, { 0 }, BOTH("a handle 0 0 on stderr") },
    { "open: logger NULL", SIMULATED, open_without_logger, { 0 }, BOTH("a handle 0 on stderr") },
    { "open: no device", NO_XEN, open_here, { 0 }, BOTH("NULL ENOENT 1 error xenforeignmemory text 0 on stderr") },
    { "open: no device, logger NULL", NO_XEN, open_without_logger, { 0 }, BOTH("NULL ENOENT 1 on stderr") },
    { "map: whole call fails, logger NULL", SIMULATED, failure_without_logger, { .dom = NO_DOMAIN, FRAMES(1) },
      "NULL EPERM 1 on stderr", "NULL EPERM 0 on stderr" },
    /* The call fails with ENOENT if the last frame is paged out. For any other frame only err[] shows it. */
    { "map: last frame is paged out, with err[]", PAGING, map, { .err = true, FRAMES(1, AWAY) }, BOTH("mapped 1 64") },
    { "map: last frame is paged out, err NULL", PAGING, map, { FRAMES(1, AWAY) }, BOTH("mapped 1 64") },
    { "map: first frame is paged out, with err[]", PAGING, map, { .err = true, FRAMES(AWAY, 1) },
      "mapped 64 1", "mapped ENOENT 1" },
    { "map: first frame is paged out, err NULL", PAGING, map, { FRAMES(AWAY, 1) }, "mapped 64 1", "NULL ENOENT" },
    { "map: last frame stays paged out, with err[]", PAGING, map, { .err = true, FRAMES(1, GONE) },
      "mapped 1 ENOENT", "no answer in 10 s" },
    { "map: last frame stays paged out, err NULL", PAGING, map, { FRAMES(1, GONE) },
      "NULL ENOENT", "no answer in 10 s" },
    { "map: first frame stays paged out, with err[]", PAGING, map, { .err = true, FRAMES(GONE, 1) },
      BOTH("mapped ENOENT 1") },
    { "map: one frame comes back, one stays paged out", PAGING, map, { .err = true, FRAMES(AWAY, GONE, 1) },
      "mapped 64 ENOENT 1", "mapped ENOENT ENOENT 1" },
    { "map: errno is the first failed frame's (EINVAL)", PAGING, map, { FRAMES(HOLE, GONE, 1) }, BOTH("NULL EINVAL") },
    { "map: errno is the first failed frame's (ENOENT)", PAGING, map, { FRAMES(GONE, HOLE, 1) }, BOTH("NULL ENOENT") },
    { "map2: MAP_FIXED, frame is paged out", PAGING, map_over_reservation,
      { .flags = MAP_FIXED, .err = true, FRAMES(1, 2, AWAY, 3) },
      "mapped 1 2 64 3 around: ---p ---p there: rw-s", "mapped 1 2 ENOENT 3 around: ---p ---p there: rw-s" },
    { "map2: MAP_FIXED, frame stays paged out, err NULL", PAGING, map_over_reservation,
      { .flags = MAP_FIXED, FRAMES(1, 2, GONE, 3) },
      "NULL ENOENT around: ---p ---p there: ---p", "NULL ENOENT around: ---p ---p there: hole" },
    { "map2: MAP_FIXED fails while another thread maps", SIMULATED, map_over_while_another_maps,
      { .flags = MAP_FIXED, FRAMES(1, 2, 3, HOLE) }, "kept", "taken by another thread" },
    { "map: frame stays paged out, and the thread is cancelled", PAGING, cancel_in_a_call, { FRAMES(1, GONE) },
      BOTH("cancelled") },
    { "map_resource: all", SIMULATED, resource_content, { .type = GRANT_TABLE, .nr = 2 }, BOTH("0 1") },
    { "map_resource: a part", SIMULATED, resource_content, { .type = GRANT_TABLE, .first = 1, .nr = 1 }, BOTH("1") },
    { "map_resource: too many frames", SIMULATED, resource_content, { .type = GRANT_TABLE, .first = 1, .nr = 2 },
      BOTH("NULL EINVAL") },
    { "resource_size: bytes", SIMULATED, resource_bytes, { .type = GRANT_TABLE }, BOTH("0 8192") },
    { "resource_size: bytes, after restrict", SIMULATED, resource_bytes_when_restricted, { .type = GRANT_TABLE },
      BOTH("0 0 8192") },
    { "old kernel: map", FAKE_OLD, map, { FRAMES(1, 2) }, BOTH("mapped 1 2") },
    { "old kernel: restrict", FAKE_OLD, restrict_handle, { 0 }, BOTH("-1 ENOTTY") },
    { "old kernel: xentoolcore_restrict_all", FAKE_OLD, restrict_all, { 0 }, BOTH("-1 ENOTTY") },
    { "old kernel: map_resource", FAKE_OLD, resource_content, { .type = GRANT_TABLE, .nr = 1 },
      BOTH("NULL EOPNOTSUPP") },
    { "old kernel: resource_size", FAKE_OLD, resource_bytes, { .type = GRANT_TABLE }, BOTH("-1 EOPNOTSUPP 0") },
    { "old Xen: map_resource", FAKE_OLD_XEN, resource_content, { .type = GRANT_TABLE, .nr = 2 }, BOTH("0 1") },
    { "old Xen: resource_size", FAKE_OLD_XEN, resource_bytes, { .type = GRANT_TABLE },
      "-1 EOPNOTSUPP 0", "0 131072" },
    { "old Xen: resource_size after restrict", FAKE_OLD_XEN, resource_bytes_when_restricted, { .type = GRANT_TABLE },
      "0 -1 EOPNOTSUPP 0", "0 0 131072" },
};
MAIN(rows)
