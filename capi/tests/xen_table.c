/*
 * Every function of libxenforeignmemory with good and bad arguments, on any host: see table.h. Rows with two results
 * show where our library differs from Xen's own (4.17).
 */
#include "table.h"
#include <pthread.h>

/* ---- map and map2 ---- */

static void *map_frames(xenforeignmemory_handle *handle, size_t n, uint64_t first)
{
    int err[FRAMES_MOST];
    struct call call = { .n = n, .frames = { first, first + 1, first + 2, first + 3 } };
    void *mapped = map_at(handle, NULL, &call, err);
    if (!mapped)
        say("cannot map the frames that the row needs:");
    return mapped;
}

static void map_with_no_handle(const struct call *call)
{
    say_map_at(NULL, NULL, call);
}

static void map_no_array(const struct call *call)
{
    say_mapped(xenforeignmemory_map(open_handle(), dom_of(call), PROT_READ, 1, NULL, NULL), 0, NULL);
}

static void map_access(const struct call *call)
{
    int err[FRAMES_MOST];
    say_access(map_at(open_handle(), NULL, call, err));
}

static void write_and_read(const struct call *call)
{
    int err[FRAMES_MOST];
    xenforeignmemory_handle *handle = open_handle();
    volatile uint64_t *written = map_at(handle, NULL, call, err), *read = map_frames(handle, 1, call->frames[0]);
    uint64_t before = read[1];
    written[1] = before + 1;
    say(read[1] == before + 1 ? "written" : "lost");
    written[1] = before;
}

static void map_at_hint(const struct call *call)
{
    int err[FRAMES_MOST];
    xenforeignmemory_handle *handle = open_handle();
    char *free = reserve(), *hint = free + 4 * FRAME;
    munmap(free, 12 * FRAME);
    char *mapped = map_at(handle, hint, call, err);
    say(mapped == hint ? "there" : "elsewhere");
    say_mapped(mapped, call->n, NULL);
}

/* Maps over four mapped frames in the middle of a reservation, as QEMU's map cache does. */
static void map_over_mapping(const struct call *call)
{
    int err[FRAMES_MOST];
    xenforeignmemory_handle *handle = open_handle();
    struct call own = { .flags = MAP_FIXED, FRAMES(20, 21, 22, 23) };
    char *place = reserve() + 4 * FRAME;
    say_mapped(map_at(handle, place, &own, err), 4, NULL);
    say("then");
    say_map_at(handle, place, call);
    say("around:");
    say_access(place - 1);
    say_access(place + 4 * FRAME);
    say("there:");
    say_access(place);
    say_access(place + 3 * FRAME);
}

static void map_over_unaligned(const struct call *call)
{
    say_map_at(open_handle(), reserve() + 1, call);
}

static void map_over_reservation_restricted(const struct call *call)
{
    xenforeignmemory_handle *handle = open_handle();
    char *place = reserve() + 4 * FRAME;
    xenforeignmemory_restrict(handle, guest);
    say_map_at(handle, place, call);
    say_access(place);
}

/* Maps more than 64 MiB. With err[], the last of every 64 frames is a hole; without it, the caller unmaps by munmap. */
static void map_many(const struct call *call)
{
    enum { MANY = 17000, EVERY = 64 };
    static xen_pfn_t gfns[MANY];
    static int err[MANY];
    xenforeignmemory_handle *handle = open_handle();
    size_t good = 0, holes = 0;
    for (size_t i = 0; i < MANY; i++)
        gfns[i] = i % EVERY == EVERY - 1 && call->err ? HOLE : base + i % EVERY;
    char *mapped = xenforeignmemory_map(handle, guest, PROT_READ, MANY, gfns, call->err ? err : NULL);
    for (size_t i = 0; mapped && i < MANY; i++) {
        holes += err[i] == -EINVAL;
        good += !err[i] && number_of(*(uint64_t *)(mapped + i * FRAME)) == i % EVERY;
    }
    say("%zu good, %zu holes", good, holes);
    say_result(call->err ? xenforeignmemory_unmap(handle, mapped, MANY) : munmap(mapped, (size_t)MANY * FRAME));
    say_access(mapped);
    say_access(mapped + (MANY - 1) * (size_t)FRAME);
}

static void whole_failure_is_logged(const struct call *call)
{
    xenforeignmemory_handle *handle = open_handle();
    xenforeignmemory_restrict(handle, guest);
    say_map_at(handle, NULL, call);
    say_logged();
}

/* ---- unmap ---- */

static void unmap(const struct call *call)
{
    xenforeignmemory_handle *handle = open_handle();
    char *mapped = map_frames(handle, 2, 1);
    say_result(xenforeignmemory_unmap(handle, mapped, call->pages));
    say_access(mapped);
}

static void unmap_nothing(const struct call *call)
{
    (void)call;
    xenforeignmemory_handle *handle = open_handle();
    say_result(xenforeignmemory_unmap(handle, map_frames(handle, 2, 1), 0));
}

static void unmap_unaligned(const struct call *call)
{
    xenforeignmemory_handle *handle = open_handle();
    say_result(xenforeignmemory_unmap(handle, (char *)map_frames(handle, 2, 1) + 1, call->pages));
}

static void munmap_by_the_caller(const struct call *call)
{
    xenforeignmemory_handle *handle = open_handle();
    say_result(munmap(map_frames(handle, 2, 1), 2 * FRAME));
    say_map_at(handle, NULL, call);
    say_result(xenforeignmemory_close(handle));
}

/* ---- close ---- */

static void close_nothing(const struct call *call)
{
    (void)call;
    say_result(xenforeignmemory_close(NULL));
}

static void close_before_use(const struct call *call)
{
    (void)call;
    xenforeignmemory_handle *handle = open_handle();
    void *mapped = map_frames(handle, 2, 1);
    say_result(xenforeignmemory_close(handle));
    say_mapped(mapped, 2, NULL);
    say_result(munmap(mapped, 2 * FRAME));
}

static void close_in_child(const struct call *call)
{
    int status;
    xenforeignmemory_handle *handle = open_handle();
    void *mapped = map_frames(handle, 2, 1);
    say("child:");
    if (fork() == 0) {
        say_result(xenforeignmemory_close(handle));
        _exit(0);
    }
    wait(&status);
    say(WIFEXITED(status) ? "parent:" : "child died, parent:");
    say_mapped(mapped, 2, NULL);
    say_map_at(handle, NULL, call);
    say_result(xenforeignmemory_close(handle));
}

/* ---- restrict ---- */

static void say_confined(xenforeignmemory_handle *handle)
{
    struct call own = { FRAMES(1) }, other = { .dom = NO_DOMAIN, FRAMES(1) };
    size_t size;
    say_map_at(handle, NULL, &own);
    say_map_at(handle, NULL, &other);
    say_result(xenforeignmemory_resource_size(handle, NO_DOMAIN, GRANT_TABLE, 0, &size));
}

static void restrict_handle(const struct call *call)
{
    (void)call;
    xenforeignmemory_handle *handle = open_handle(), *other = open_handle();
    say_result(xenforeignmemory_restrict(handle, guest));
    say_result(xenforeignmemory_restrict(handle, guest));
    say_result(xenforeignmemory_restrict(handle, guest + 1));
    say_confined(handle);
    say("but");
    say_confined(other);
}

static void restrict_no_handle(const struct call *call)
{
    (void)call;
    say_result(xenforeignmemory_restrict(NULL, guest));
}

static void restrict_all(const struct call *call)
{
    (void)call;
    xenforeignmemory_handle *handle = open_handle(), *closed = open_handle();
    xenforeignmemory_close(closed);
    say_result(xentoolcore_restrict_all(guest));
    say_confined(handle);
}

/* ---- resources ---- */

static xenforeignmemory_resource_handle *map_res(xenforeignmemory_handle *handle, const struct call *call, void **addr)
{
    return xenforeignmemory_map_resource(handle, dom_of(call), call->type, 0, call->first, call->nr, addr,
        PROT_READ | PROT_WRITE, call->flags);
}

/* Maps a part of a resource, and prints which frame it is. It recognises the frame by a mark at its end, where a grant
   table that is hardly used is empty. (A grant whose low 16 bits are 0 grants nothing.) */
static void resource(const struct call *call)
{
    xenforeignmemory_handle *handle = open_handle();
    struct call both = { .type = GRANT_TABLE, .nr = 1 };
    uint64_t *mapped = NULL, *first = NULL;
    xenforeignmemory_resource_handle *res = map_res(handle, call, (void **)&mapped);
    if (!res) {
        say_mapped(NULL, 0, NULL);
        return;
    }
    if (!mapped) {
        say("a handle without a mapping");
        return;
    }
    xenforeignmemory_resource_handle *again = map_res(handle, &both, (void **)&first);
    volatile uint64_t *here = mapped + 511, *there = first + 511;
    uint64_t before = *here;
    *here = 0x7e57ull << 32;
    say(*there == 0x7e57ull << 32 ? "frame 0" : "another frame");
    *here = before;
    say_result(xenforeignmemory_unmap_resource(handle, res));
    say_access(mapped);
    say_result(xenforeignmemory_unmap_resource(handle, again));
}

/* Maps a resource over the four pages in the middle of a reservation, or uses them as a hint. */
static void resource_at(const struct call *call)
{
    xenforeignmemory_handle *handle = open_handle();
    void *place = reserve() + 4 * FRAME, *mapped = place;
    if (!call->flags)
        munmap((char *)place - 4 * FRAME, 12 * FRAME);
    if (map_res(handle, call, &mapped))
        say(mapped == place ? "there" : "elsewhere");
    else
        say_mapped(NULL, 0, NULL);
    say_access(place);
}

static void resource_no_paddr(const struct call *call)
{
    if (!map_res(open_handle(), call, NULL))
        say_mapped(NULL, 0, NULL);
}

static void resource_no_handle(const struct call *call)
{
    void *addr = NULL;
    if (!map_res(NULL, call, &addr))
        say_mapped(NULL, 0, NULL);
}

static void size(const struct call *call)
{
    size_t bytes = 1;
    say_result(xenforeignmemory_resource_size(open_handle(), dom_of(call), call->type, 0, &bytes));
    say(bytes == 1 ? "untouched" : bytes && bytes % FRAME == 0 ? "whole frames" : "parts");
}

/* The following calls fail, and print how many messages they logged. */
static void map_resource_is_logged(const struct call *call)
{
    void *addr = NULL;
    if (!map_res(open_handle(), call, &addr))
        say_mapped(NULL, 0, NULL);
    say_logged();
}

static void size_is_logged(const struct call *call)
{
    size(call);
    say_logged();
}

static void restrict_is_logged(const struct call *call)
{
    xenforeignmemory_handle *handle = open_handle();
    xenforeignmemory_restrict(handle, guest);
    say_result(xenforeignmemory_restrict(handle, dom_of(call)));
    say_logged();
}

static void unmap_is_logged(const struct call *call)
{
    unmap_unaligned(call);
    say_logged();
}

static void size_no_handle(const struct call *call)
{
    size_t bytes;
    say_result(xenforeignmemory_resource_size(NULL, guest, call->type, 0, &bytes));
}

static void size_no_result(const struct call *call)
{
    say_result(xenforeignmemory_resource_size(open_handle(), guest, call->type, 0, NULL));
}

static void unmap_no_resource(const struct call *call)
{
    (void)call;
    say_result(xenforeignmemory_unmap_resource(open_handle(), NULL));
}

/* ---- threads ---- */

enum { THREADS = 4, ROUNDS = 50 };

static void *map_often(void *handle)
{
    uintptr_t good = 0;
    for (uint64_t i = 0; i < ROUNDS; i++) {
        int err[FRAMES_MOST];
        struct call call = { .err = true, FRAMES(i % 32, HOLE) };
        const volatile uint64_t *mapped = map_at(handle, NULL, &call, err);
        if (mapped && !err[0] && err[1] == -EINVAL && number_of(*mapped) == i % 32)
            good += !xenforeignmemory_unmap(handle, (void *)mapped, 2);
    }
    return (void *)good;
}

static void threads(const struct call *call)
{
    (void)call;
    pthread_t ids[THREADS];
    uintptr_t all = 0;
    xenforeignmemory_handle *handle = open_handle();
    for (int i = 0; i < THREADS; i++)
        pthread_create(&ids[i], NULL, map_often, handle);
    for (int i = 0; i < THREADS; i++) {
        void *good;
        pthread_join(ids[i], &good);
        all += (uintptr_t)good;
    }
    say("%lu good", (unsigned long)all);
}

/* ---- the table ---- */

#define GRANTS .type = GRANT_TABLE, .nr = 1

static const struct row rows[] = {
    { "map: frames in any order, one twice", ANY, map, { FRAMES(5, 3, 5) }, BOTH("mapped 5 3 5") },
    { "map: with err[]", ANY, map, { .err = true, FRAMES(1, 2) }, BOTH("mapped 1 2") },
    { "map: hole, with err[]", ANY, map, { .err = true, FRAMES(1, HOLE, 2) }, BOTH("mapped 1 EINVAL 2") },
    { "map: holes only, with err[]", ANY, map, { .err = true, FRAMES(HOLE, HOLE) }, BOTH("mapped EINVAL EINVAL") },
    { "map: hole, err NULL", ANY, map, { FRAMES(1, HOLE, 2) }, BOTH("NULL EINVAL") },
    { "map: highest frame number", ANY, map, { .err = true, FRAMES(~0ull) }, BOTH("mapped EINVAL") },
    { "map: frame 2^40 + 5", MOCK_PV | FAKE | XEN_PV, map, { .err = true, FRAMES(ALIAS + 5) },
      "mapped EINVAL", "mapped 5" },
    { "map: frame 2^40 + 5", MOCK_AUTO | XEN_AUTO, map, { .err = true, FRAMES(ALIAS + 5) }, BOTH("mapped EINVAL") },
    { "map: no such domain, with err[]", ANY, map, { .dom = NO_DOMAIN, .err = true, FRAMES(1, 2) },
      BOTH("mapped ESRCH ESRCH") },
    { "map: no such domain, err NULL", ANY, map, { .dom = NO_DOMAIN, FRAMES(1, 2) }, BOTH("NULL ESRCH") },
    { "map: domain 65536 + d", ANY, map, { .dom_plus = 65536, FRAMES(1, 2) }, "NULL EINVAL", "mapped 1 2" },
    { "map: no frames", ANY, map, { .n = 0 }, BOTH("NULL EINVAL") },
    { "map: 2^52 + 1 frames", ANY, map, { .err = true, .pages = (1ul << 52) + 1, FRAMES(1) },
      "NULL EINVAL", "mapped 1" },
    { "map: 2^32 frames", ANY, map, { .err = true, .pages = 1ul << 32, FRAMES(1) }, BOTH("NULL EINVAL") },
    { "map: 2^32 + 1 frames", ANY, map, { .err = true, .pages = (1ul << 32) + 1, FRAMES(1) }, "NULL EINVAL", NULL },
    { "map: handle NULL", ANY, map_with_no_handle, { FRAMES(1) }, "NULL EINVAL", "SIGSEGV" },
    { "map: arr NULL", ANY, map_no_array, { 0 }, "NULL EINVAL", "NULL EFAULT" },
    { "map: PROT_NONE", ANY, map, { .prot = NO_ACCESS, FRAMES(1) }, "NULL EINVAL", NULL },
    { "map: PROT_READ | PROT_EXEC", ANY, map, { .prot = PROT_READ | PROT_EXEC, FRAMES(1) }, "NULL EINVAL", NULL },
    { "map: PROT_READ", ANY, map_access, { .prot = PROT_READ, FRAMES(1) }, BOTH("r--s") },
    { "map: PROT_READ | PROT_WRITE", ANY, map_access, { FRAMES(1) }, BOTH("rw-s") },
    { "map: PROT_WRITE alone", ANY, map_access, { .prot = PROT_WRITE, FRAMES(1) }, "rw-s", "-w-s" },
    { "map: PROT_WRITE alone, written", ANY, write_and_read, { .prot = PROT_WRITE, FRAMES(7) }, BOTH("written") },
    { "map2: MAP_SHARED", ANY, map, { .flags = MAP_SHARED, FRAMES(1, 2) }, BOTH("mapped 1 2") },
    { "map2: MAP_PRIVATE", ANY, map, { .flags = MAP_PRIVATE, FRAMES(1, 2) }, BOTH("mapped 1 2") },
    { "map2: MAP_ANONYMOUS", ANY, map, { .flags = MAP_ANONYMOUS, FRAMES(1) }, BOTH("NULL EINVAL") },
    { "map2: hint", ANY, map_at_hint, { FRAMES(1, 2) }, BOTH("there mapped 1 2") },
    { "map2: MAP_FIXED over a mapping", ANY, map_over_mapping, { .flags = MAP_FIXED, FRAMES(11, 12, 13, 14) },
      BOTH("mapped 20 21 22 23 then mapped 11 12 13 14 around: ---p ---p there: rw-s rw-s") },
    { "map2: MAP_FIXED over a mapping, hole, with err[]", ANY, map_over_mapping,
      { .flags = MAP_FIXED, .err = true, FRAMES(11, HOLE, 13, 14) },
      BOTH("mapped 20 21 22 23 then mapped 11 EINVAL 13 14 around: ---p ---p there: rw-s rw-s") },
    { "map2: MAP_FIXED over a mapping, hole, err NULL", ANY, map_over_mapping,
      { .flags = MAP_FIXED, FRAMES(11, HOLE, 13, 14) },
      "mapped 20 21 22 23 then NULL EINVAL around: ---p ---p there: ---p ---p",
      "mapped 20 21 22 23 then NULL EINVAL around: ---p ---p there: hole hole" },
    { "map2: MAP_FIXED over a reservation", ANY, map_over_reservation, { .flags = MAP_FIXED, FRAMES(1, 2, 3, 4) },
      BOTH("mapped 1 2 3 4 around: ---p ---p there: rw-s") },
    { "map2: MAP_FIXED over a reservation, hole, err NULL", ANY, map_over_reservation,
      { .flags = MAP_FIXED, FRAMES(1, 2, 3, HOLE) },
      "NULL EINVAL around: ---p ---p there: ---p", "NULL EINVAL around: ---p ---p there: hole" },
    { "map2: MAP_FIXED, not page-aligned", ANY, map_over_unaligned, { .flags = MAP_FIXED, FRAMES(1) },
      BOTH("NULL EINVAL") },
    { "map2: MAP_FIXED, whole call fails", ANY, map_over_reservation_restricted,
      { .dom = NO_DOMAIN, .flags = MAP_FIXED, .err = true, FRAMES(1, 2) }, "NULL EPERM ---p", "NULL EPERM hole" },
    { "map: many frames, with err[]", ANY, map_many, { .err = true }, BOTH("16735 good, 265 holes 0 hole hole") },
    { "map: many frames, err NULL, released by munmap", ANY, map_many, { 0 },
      BOTH("17000 good, 0 holes 0 hole hole") },
    { "map: whole call fails, logged", ANY, whole_failure_is_logged, { .dom = NO_DOMAIN, .err = true, FRAMES(1) },
      "NULL EPERM 1 error xenforeignmemory text", "NULL EPERM 0" },
    { "unmap", ANY, unmap, { .pages = 2 }, BOTH("0 hole") },
    { "unmap: no frames", ANY, unmap_nothing, { 0 }, BOTH("-1 EINVAL") },
    { "unmap: not page-aligned", ANY, unmap_unaligned, { .pages = 2 }, BOTH("-1 EINVAL") },
    { "unmap: 2^52 + 2 frames", ANY, unmap, { .pages = (1ul << 52) + 2 }, "-1 EINVAL rw-s", "0 hole" },
    { "unmap: by munmap", ANY, munmap_by_the_caller, { FRAMES(3) }, BOTH("0 mapped 3 0") },
    { "close: handle NULL", ANY, close_nothing, { 0 }, BOTH("0") },
    { "close: before the mapping is used", ANY, close_before_use, { 0 }, BOTH("0 mapped 1 2 0") },
    { "close: in a forked child", ANY, close_in_child, { FRAMES(3) }, BOTH("child: 0 parent: mapped 1 2 mapped 3 0") },
    { "restrict", ANY, restrict_handle, { 0 },
      BOTH("0 0 -1 EINVAL mapped 1 NULL EPERM -1 EPERM but mapped 1 NULL ESRCH -1 ESRCH") },
    { "restrict: handle NULL", ANY, restrict_no_handle, { 0 }, "-1 EINVAL", "SIGSEGV" },
    { "xentoolcore_restrict_all", ANY, restrict_all, { 0 }, BOTH("0 mapped 1 NULL EPERM -1 EPERM") },
    { "map_resource", ANY, resource, { GRANTS }, BOTH("frame 0 0 hole 0") },
    { "map_resource: frame 2^32", ANY, resource, { GRANTS, .first = 1ul << 32 }, "NULL EINVAL", "frame 0 0 hole 0" },
    { "map_resource: past the end", ANY, resource, { GRANTS, .first = 1ul << 31 }, BOTH("NULL EINVAL") },
    { "map_resource: no frames", ANY, resource, { .type = GRANT_TABLE },
      "NULL EINVAL", "a handle without a mapping" },
    { "map_resource: 2^52 + 1 frames", ANY, resource, { .type = GRANT_TABLE, .nr = (1ul << 52) + 1 },
      "NULL EINVAL", NULL },
    { "map_resource: no such type", ANY, resource, { .type = 77, .nr = 1 }, BOTH("NULL EOPNOTSUPP") },
    { "map_resource: no such domain", ANY, resource, { .dom = NO_DOMAIN, GRANTS }, BOTH("NULL ESRCH") },
    { "map_resource: MAP_ANONYMOUS", ANY, resource, { GRANTS, .flags = MAP_ANONYMOUS }, BOTH("NULL EINVAL") },
    { "map_resource: hint", ANY, resource_at, { GRANTS }, BOTH("there rw-s") },
    { "map_resource: MAP_FIXED", ANY, resource_at, { GRANTS, .flags = MAP_FIXED }, BOTH("NULL EINVAL ---p") },
    { "map_resource: handle NULL", ANY, resource_no_handle, { GRANTS }, "NULL EINVAL", "SIGSEGV" },
    { "map_resource: paddr NULL", ANY, resource_no_paddr, { GRANTS }, "NULL EINVAL", "SIGSEGV" },
    { "unmap_resource: NULL", ANY, unmap_no_resource, { 0 }, BOTH("0") },
    { "resource_size", ANY, size, { GRANTS }, BOTH("0 whole frames") },
    { "resource_size: no such type", ANY, size, { .type = 77 }, "-1 EOPNOTSUPP untouched", "0 whole frames" },
    { "resource_size: no such domain", ANY, size, { .dom = NO_DOMAIN, GRANTS }, BOTH("-1 ESRCH untouched") },
    { "resource_size: handle NULL", ANY, size_no_handle, { GRANTS }, "-1 EINVAL", "SIGSEGV" },
    { "resource_size: size NULL", ANY, size_no_result, { GRANTS }, "-1 EINVAL", "SIGSEGV" },
    { "map_resource: failure, logged", ANY, map_resource_is_logged, { .dom = NO_DOMAIN, GRANTS },
      "NULL ESRCH 1 error xenforeignmemory text", "NULL ESRCH 0" },
    { "map_resource: no such type, logged", ANY, map_resource_is_logged, { .type = 77, .nr = 1 },
      BOTH("NULL EOPNOTSUPP 0") },
    { "resource_size: failure, logged", ANY, size_is_logged, { .dom = NO_DOMAIN, GRANTS },
      BOTH("-1 ESRCH untouched 0") },
    { "restrict: failure, logged", ANY, restrict_is_logged, { .dom = NO_DOMAIN },
      "-1 EINVAL 1 error xenforeignmemory text", "-1 EINVAL 0" },
    { "unmap: failure, logged", ANY, unmap_is_logged, { .pages = 2 }, BOTH("-1 EINVAL 0") },
    { "several threads", ANY, threads, { 0 }, BOTH("200 good") },
};
MAIN(rows)
