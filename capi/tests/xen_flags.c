/*
 * Every flag of mmap(2) with xenforeignmemory_map2, on whatever host there is: see table.h. Each is tried where the
 * kernel likes, with MAP_FIXED over memory of our own, and with MAP_FIXED_NOREPLACE where nothing is and where
 * something is.
 */
#include "table.h"

/* Flags that some headers do not have. */
enum {
    ONLY_32BIT = 0x40, /* MAP_32BIT: x86 only */
    ABOVE_4G = 0x80,   /* MAP_ABOVE4G: x86 only, since Linux 6.6 */
    DROPPABLE = 0x08,  /* MAP_DROPPABLE, since Linux 6.11 */
    NO_TYPE = 0x04,
    UNINITIALIZED = 0x4000000,
    HUGE_2MB = 21 << 26, /* says nothing without MAP_HUGETLB */
    UNKNOWN = 1 << 25,
};

/* Maps a frame, and unmaps it; says the frame, or the errno. */
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
        say("and stays");
}

/* A page that nothing is in; what is around it is taken. */
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
    try_at(handle, "not over nothing", hole(), call, MAP_FIXED_NOREPLACE);
    try_at(handle, "not over", taken, call, MAP_FIXED_NOREPLACE);
    try_at(handle, "over", taken, call, MAP_FIXED);
    say_access(taken);
    say_access(NULL);
}

/* At address 0, where root may have memory: what is there afterwards, and what was logged. */
static void nowhere(const struct call *call)
{
    say_map_at(open_handle(), NULL, call);
    say_access(NULL);
    say_logged();
}

/* At the last page that any kernel's pages may have, which is nobody's. */
static void at_the_end(const struct call *call)
{
    say_map_at(open_handle(), (void *)-(uintptr_t)0x10000, call);
}

#define ACCEPTED BOTH("hint 1 not over nothing 1 not over EEXIST over 1 hole hole")
/* The kernel takes no flag that it does not know if it is told to look, and takes MAP_FIXED_NOREPLACE for one. */
#define VALIDATED BOTH("hint 1 not over nothing EOPNOTSUPP not over EEXIST over 1 hole hole")
#define NOT_SUPPORTED BOTH("hint EOPNOTSUPP not over nothing EOPNOTSUPP not over EEXIST over EOPNOTSUPP ---p hole")
#define REFUSED(not_over) BOTH("hint EINVAL not over nothing EINVAL not over " not_over " over EINVAL ---p hole")

static const struct row rows[] = {
    { "map2: MAP_SHARED everywhere", ANY, everywhere, { .flags = MAP_SHARED, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_PRIVATE everywhere", ANY, everywhere, { .flags = MAP_PRIVATE, FRAMES(1) }, VALIDATED },
    { "map2: MAP_SHARED_VALIDATE", ANY, everywhere, { .flags = MAP_SHARED_VALIDATE, FRAMES(1) }, VALIDATED },
    { "map2: MAP_DROPPABLE", ANY, everywhere, { .flags = DROPPABLE, FRAMES(1) }, REFUSED("EEXIST") },
    { "map2: no type of mapping", ANY, everywhere, { .flags = NO_TYPE, FRAMES(1) }, REFUSED("EEXIST") },
    { "map2: MAP_32BIT", ANY, everywhere, { .flags = ONLY_32BIT, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_ABOVE4G", ANY, everywhere, { .flags = ABOVE_4G, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_ANONYMOUS everywhere", ANY, everywhere, { .flags = MAP_ANONYMOUS, FRAMES(1) },
      "hint EINVAL not over nothing EINVAL not over EINVAL over EINVAL ---p hole",
      "hint EINVAL not over nothing EINVAL not over EEXIST over EINVAL hole hole" },
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
    { "map2: a flag that no kernel knows", ANY, everywhere, { .flags = UNKNOWN, FRAMES(1) }, ACCEPTED },
    { "map2: MAP_SHARED_VALIDATE | the same", ANY, everywhere, { .flags = MAP_SHARED_VALIDATE | UNKNOWN, FRAMES(1) },
      NOT_SUPPORTED },
    { "map2: MAP_FIXED at NULL", ANY, nowhere, { .flags = MAP_FIXED, FRAMES(1) }, "NULL EINVAL hole 0", NULL },
    { "map2: MAP_FIXED_NOREPLACE at NULL", ANY, nowhere, { .flags = MAP_FIXED_NOREPLACE, FRAMES(1) },
      "NULL EINVAL hole 0", NULL },
    { "map2: both at NULL", ANY, nowhere, { .flags = MAP_FIXED | MAP_FIXED_NOREPLACE, FRAMES(1) },
      "NULL EINVAL hole 0", NULL },
    { "map2: hint at the end of all addresses", ANY, at_the_end, { .err = true, FRAMES(1, 2) }, BOTH("mapped 1 2") },
    { "map2: MAP_FIXED at the end of all addresses", ANY, at_the_end, { .flags = MAP_FIXED, FRAMES(1, 2) },
      BOTH("NULL ENOMEM") },
    { "map2: MAP_FIXED_NOREPLACE at the end of all addresses", ANY, at_the_end,
      { .flags = MAP_FIXED_NOREPLACE, FRAMES(1, 2) }, BOTH("NULL ENOMEM") },
};
MAIN(rows)
