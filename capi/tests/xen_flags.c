/*
 * Every flag of mmap(2) with xenforeignmemory_map2, on any host: see table.h. Each is tried with a hint, with
 * MAP_FIXED_NOREPLACE at free and at taken addresses, and with MAP_FIXED over a reservation.
 */
#include "table.h"

/* Flags that some headers lack. */
enum {
    ONLY_32BIT = 0x40, /* MAP_32BIT: x86 only */
    ABOVE_4G = 0x80,   /* MAP_ABOVE4G: x86 only, since Linux 6.6 */
    DROPPABLE = 0x08,  /* MAP_DROPPABLE, since Linux 6.11 */
    NO_TYPE = 0x04,
    UNINITIALIZED = 0x4000000,
    HUGE_2MB = 21 << 26, /* means nothing without MAP_HUGETLB */
    UNKNOWN = 1 << 25,
};

/* Maps a frame and unmaps it; prints the frame or the errno. */
static void try_at(xenforeignmemory_handle *handle, const char *what, void *place, const struct call *call, int flags)
{
    int err[FRAMES_MOST];
    struct call with = *call;
    with.flags |= flags;
    errno = 0;
    const volatile uint64_t *mapped = map_at(handle, place, &with, err);
    say("%s", what);
    if (!mapped) {
        say_error(errno);
        return;
    }
    say(flags && mapped != place ? "elsewhere" : "%lu", (unsigned long)number_of(*mapped));
    if (xenforeignmemory_unmap(handle, (void *)mapped, 1))
        say("cannot unmap");
}

/* Returns a free page, around which all addresses are taken. */
static void *hole(void)
{
    char *place = reserve() + 4 * FRAME;
    munmap(place, FRAME);
    return place;
}

static void everywhere(const struct call *call)
{
    xenforeignmemory_handle *handle = open_handle();
    char *taken = reserve() + 4 * FRAME;
    try_at(handle, "hint", hole(), call, 0);
    try_at(handle, "noreplace:free", hole(), call, MAP_FIXED_NOREPLACE);
    try_at(handle, "noreplace:taken", taken, call, MAP_FIXED_NOREPLACE);
    try_at(handle, "fixed", taken, call, MAP_FIXED);
    say_access(taken);
    say_access(NULL);
}

/* Maps at address 0, where root may have memory; prints what is there afterwards, and what was logged. */
static void at_null(const struct call *call)
{
    say_map_at(open_handle(), NULL, call);
    say_access(NULL);
    say_logged();
}

/* Maps at the last 64 KiB of the address space, which no process can have. */
static void at_the_end(const struct call *call)
{
    say_map_at(open_handle(), (void *)-(uintptr_t)0x10000, call);
}

#define ACCEPTED BOTH("hint 1 noreplace:free 1 noreplace:taken EEXIST fixed 1 hole hole")
/* If the kernel validates flags, it refuses unknown ones, and MAP_FIXED_NOREPLACE counts as unknown. */
#define VALIDATED BOTH("hint 1 noreplace:free EOPNOTSUPP noreplace:taken EEXIST fixed 1 hole hole")
#define NOT_SUPPORTED \
    BOTH("hint EOPNOTSUPP noreplace:free EOPNOTSUPP noreplace:taken EEXIST fixed EOPNOTSUPP ---p hole")
#define REFUSED(taken) BOTH("hint EINVAL noreplace:free EINVAL noreplace:taken " taken " fixed EINVAL ---p hole")

static const struct row rows[] = {
    { "map2: MAP_SHARED everywhere", ANY, everywhere, { .flags = MAP_SHARED, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_PRIVATE everywhere", ANY, everywhere, { .flags = MAP_PRIVATE, FRAMES(1) }, VALIDATED },
    { "map2: MAP_SHARED_VALIDATE", ANY, everywhere, { .flags = MAP_SHARED_VALIDATE, FRAMES(1) }, VALIDATED },
    { "map2: MAP_DROPPABLE", ANY, everywhere, { .flags = DROPPABLE, FRAMES(1) }, REFUSED("EEXIST") },
    { "map2: neither shared nor private", ANY, everywhere, { .flags = NO_TYPE, FRAMES(1) }, REFUSED("EEXIST") },
    { "map2: MAP_32BIT", ANY, everywhere, { .flags = ONLY_32BIT, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_ABOVE4G", ANY, everywhere, { .flags = ABOVE_4G, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_ANONYMOUS everywhere", ANY, everywhere, { .flags = MAP_ANONYMOUS, FRAMES(1) },
      "hint EINVAL noreplace:free EINVAL noreplace:taken EINVAL fixed EINVAL ---p hole",
      "hint EINVAL noreplace:free EINVAL noreplace:taken EEXIST fixed EINVAL hole hole" },
    { "map2: MAP_GROWSDOWN", ANY, everywhere, { .flags = MAP_GROWSDOWN, FRAMES(1) }, REFUSED("EEXIST") },
    { "map2: MAP_DENYWRITE", ANY, everywhere, { .flags = MAP_DENYWRITE, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_EXECUTABLE", ANY, everywhere, { .flags = MAP_EXECUTABLE, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_LOCKED", ANY, everywhere, { .flags = MAP_LOCKED, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_NORESERVE", ANY, everywhere, { .flags = MAP_NORESERVE, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_POPULATE", ANY, everywhere, { .flags = MAP_POPULATE, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_NONBLOCK", ANY, everywhere, { .flags = MAP_NONBLOCK, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_STACK", ANY, everywhere, { .flags = MAP_STACK, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_HUGETLB", ANY, everywhere, { .flags = MAP_HUGETLB, FRAMES(1) }, REFUSED("EINVAL") },
    { "map2: MAP_HUGETLB | MAP_HUGE_2MB", ANY, everywhere, { .flags = MAP_HUGETLB | HUGE_2MB, FRAMES(1) },
      REFUSED("EINVAL") },
    { "map2: MAP_HUGE_2MB alone", ANY, everywhere, { .flags = HUGE_2MB, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_SYNC", ANY, everywhere, { .flags = MAP_SYNC, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_SHARED_VALIDATE | MAP_SYNC", ANY, everywhere, { .flags = MAP_SHARED_VALIDATE | MAP_SYNC, FRAMES(1) },
      NOT_SUPPORTED },
    { "map2: MAP_UNINITIALIZED", ANY, everywhere, { .flags = UNINITIALIZED, FRAMES(1) }, ACCEPTED },
    { "map2: unknown flag", ANY, everywhere, { .flags = UNKNOWN, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_SHARED_VALIDATE | unknown flag", ANY, everywhere,
      { .flags = MAP_SHARED_VALIDATE | UNKNOWN, FRAMES(1) }, NOT_SUPPORTED },
    { "map2: MAP_FIXED at NULL", ANY, at_null, { .flags = MAP_FIXED, FRAMES(1) }, "NULL EINVAL hole 0", NULL },
    { "map2: MAP_FIXED_NOREPLACE at NULL", ANY, at_null, { .flags = MAP_FIXED_NOREPLACE, FRAMES(1) },
      "NULL EINVAL hole 0", NULL },
    { "map2: MAP_FIXED | MAP_FIXED_NOREPLACE at NULL", ANY, at_null,
      { .flags = MAP_FIXED | MAP_FIXED_NOREPLACE, FRAMES(1) }, "NULL EINVAL hole 0", NULL },
    { "map2: hint at the end of the address space", ANY, at_the_end, { .err = true, FRAMES(1, 2) },
      BOTH("mapped 1 2") },
    { "map2: MAP_FIXED at the end of the address space", ANY, at_the_end, { .flags = MAP_FIXED, FRAMES(1, 2) },
      BOTH("NULL ENOMEM") },
    { "map2: MAP_FIXED_NOREPLACE at the end of the address space", ANY, at_the_end,
      { .flags = MAP_FIXED_NOREPLACE, FRAMES(1, 2) }, BOTH("NULL ENOMEM") },
};
MAIN(rows)
