/*
 * A library for LD_PRELOAD that simulates /dev/xen/privcmd on a Linux without Xen, as far as the tables in this
 * directory need it. So they can run any library that maps foreign memory through libc's open, mmap and ioctl.
 *
 * It simulates the kernel of a PV dom0, Linux 6.1 (drivers/xen/privcmd.c). There is one domain, HVM guest number 1:
 *   frames 0..63   RAM; each begins with its own number, in 8 bytes
 *   frame 64       paged out; it is back at attempt number ATTEMPTS
 *   frame 65       paged out, and never comes back
 *   grant table    2 frames (resource type 1, id 0); frame i begins with GRANT + i
 * With FAKE_PRIVCMD=old in the environment, the kernel has neither RESTRICT nor MMAP_RESOURCE. With old-xen it runs on
 * Xen 4.14, otherwise on 4.17 (acquire_resource in xen/common/memory.c).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xen/memory.h>
#include <xen/xen.h>
/* After xen.h, which defines its types. */
#include <xen/sys/privcmd.h>

enum { FRAME = 4096, BLOCK = FRAME / sizeof(xen_pfn_t), GUEST = 1, ATTEMPTS = 3, FDS = 1024, VMAS = 256 };
enum { RAM = 64, COMES_BACK = 64, NEVER_COMES = 65, GRANTS = 2 };
/* The pages of the file that holds the guest's memory: its RAM, the frame that comes back, its grant table. */
enum { GRANT_PAGE = RAM + 1, PAGES = GRANT_PAGE + GRANTS };
#define GRANT 0x6772616e74000000ull
/* An offset past the end of the file: touching memory mapped from there raises SIGBUS, as does touching a device
   mapping before it is populated. */
#define NOTHING (1l << 30)
#define UNRESTRICTED DOMID_INVALID

/* A mapping of the device. `mapped` is NULL until it is populated; then it shows which pages have a frame. */
struct vma {
    uintptr_t start, end;
    int prot;
    bool *mapped;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct vma vmas[VMAS];
static bool is_device[FDS];
static domid_t restricted[FDS];
static int memory = -1;
static bool old, old_xen;

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static int (*real_ioctl)(int, unsigned long, ...);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);
static int (*real_munmap)(void *, size_t);

static void init(void)
{
    real_open = dlsym(RTLD_NEXT, "open");
    real_openat = dlsym(RTLD_NEXT, "openat");
    real_close = dlsym(RTLD_NEXT, "close");
    real_ioctl = dlsym(RTLD_NEXT, "ioctl");
    real_mmap = dlsym(RTLD_NEXT, "mmap");
    real_munmap = dlsym(RTLD_NEXT, "munmap");
    const char *kernel = getenv("FAKE_PRIVCMD");
    old = kernel && !strcmp(kernel, "old");
    old_xen = kernel && !strcmp(kernel, "old-xen");
    memory = memfd_create("guest", MFD_CLOEXEC);
    for (uint64_t page = 0; page < PAGES; page++) {
        uint64_t content = page < GRANT_PAGE ? page : GRANT + page - GRANT_PAGE;
        if (ftruncate(memory, (page + 1) * FRAME) || pwrite(memory, &content, 8, page * FRAME) != 8)
            abort();
    }
}

/* ---- open and close ---- */

/* Opens a file in place of one that only a Xen host has. Returns -1 for all other paths. */
static int fake_open(const char *path)
{
    pthread_once(&once, init);
    if (!strcmp(path, "/sys/hypervisor/properties/features")) {
        /* The features that Xen 4.17 reports to a PV dom0. */
        int fd = memfd_create("features", MFD_CLOEXEC);
        if (write(fd, "00002f13\n", 9) != 9 || lseek(fd, 0, SEEK_SET))
            abort();
        return fd;
    }
    if (strcmp(path, "/dev/xen/privcmd"))
        return -1;
    int fd = fcntl(memory, F_DUPFD_CLOEXEC, 0);
    if (fd < 0 || fd >= FDS)
        abort();
    is_device[fd] = true;
    restricted[fd] = UNRESTRICTED;
    return fd;
}

static bool is_fake(int fd)
{
    pthread_once(&once, init);
    return fd >= 0 && fd < FDS && is_device[fd];
}

static int open_any(int dirfd, const char *path, int flags, va_list more)
{
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    int fd = fake_open(path);
    if (fd >= 0)
        return fd;
    return dirfd == AT_FDCWD ? real_open(path, flags, mode) : real_openat(dirfd, path, flags, mode);
}

#define OPEN(name, parameters, dirfd)                  \
    int name parameters                          \
    {                                                   \
        va_list more;                                   \
        va_start(more, flags);                          \
        int fd = open_any(dirfd, path, flags, more);   \
        va_end(more);                                   \
        return fd;                                      \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD)
OPEN(openat, (int dirfd, const char *path, int flags, ...), dirfd)
OPEN(openat64, (int dirfd, const char *path, int flags, ...), dirfd)

int close(int fd)
{
    if (is_fake(fd))
        is_device[fd] = false;
    pthread_once(&once, init);
    return real_close(fd);
}

/* ---- mappings of the device ---- */

/* Forgets the device mappings in a range. Returns false if the range has only a part of one: the kernel does not split
   device mappings (since XSA-487). */
static bool forget(uintptr_t start, uintptr_t end)
{
    for (struct vma *vma = vmas; vma < vmas + VMAS; vma++)
        if (vma->start < end && start < vma->end && (vma->start < start || end < vma->end))
            return false;
    for (struct vma *vma = vmas; vma < vmas + VMAS; vma++)
        if (vma->start < end && start < vma->end) {
            free(vma->mapped);
            *vma = (struct vma){ 0 };
        }
    return true;
}

static void *map_device(void *addr, size_t len, int prot, int flags)
{
    void *mapped = real_mmap(addr, len, prot, flags, memory, NOTHING);
    struct vma *vma = vmas;
    while (vma < vmas + VMAS && vma->end)
        vma++;
    if (mapped == MAP_FAILED)
        return mapped;
    /* A child does not inherit such a mapping. */
    if (vma == vmas + VMAS || madvise(mapped, len, MADV_DONTFORK))
        abort();
    uintptr_t start = (uintptr_t)mapped;
    *vma = (struct vma){ start, start + (len + FRAME - 1) / FRAME * FRAME, prot, NULL };
    return mapped;
}

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    bool device = is_fake(fd) && !(flags & MAP_ANONYMOUS);
    void *mapped = MAP_FAILED;
    pthread_mutex_lock(&lock);
    if ((flags & MAP_FIXED) && !forget((uintptr_t)addr, (uintptr_t)addr + len))
        errno = EINVAL;
    else
        mapped = device ? map_device(addr, len, prot, flags) : real_mmap(addr, len, prot, flags, fd, offset);
    pthread_mutex_unlock(&lock);
    return mapped;
}

void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    return mmap(addr, len, prot, flags, fd, offset);
}

int munmap(void *addr, size_t len)
{
    int result = -1;
    pthread_once(&once, init);
    pthread_mutex_lock(&lock);
    uintptr_t start = (uintptr_t)addr, end = start + (len + FRAME - 1) / FRAME * FRAME;
    if (!forget(start, end))
        errno = EINVAL;
    else
        result = real_munmap(addr, len);
    pthread_mutex_unlock(&lock);
    return result;
}

/* Returns the device mapping that contains a range, or NULL. */
static struct vma *find(uintptr_t start, uintptr_t end)
{
    for (struct vma *vma = vmas; vma < vmas + VMAS; vma++)
        if (vma->start <= start && start < end && end <= vma->end)
            return vma;
    return NULL;
}

/* Puts a page of the guest's memory into a mapping. */
static void put(struct vma *vma, uintptr_t addr, size_t page)
{
    if (real_mmap((void *)addr, FRAME, vma->prot, MAP_SHARED | MAP_FIXED, memory, page * FRAME) == MAP_FAILED ||
        madvise((void *)addr, FRAME, MADV_DONTFORK))
        abort();
    vma->mapped[(addr - vma->start) / FRAME] = true;
}

/* ---- the ioctls, which return 0 or a negative errno ---- */

/* Returns the page of a frame, or a negative errno. */
static long page_of(domid_t dom, xen_pfn_t gfn)
{
    static int attempts;
    if (dom != GUEST)
        return -ESRCH;
    /* A page-table entry of a PV dom0 has no room for the upper bits. */
    gfn &= (1ull << 40) - 1;
    if (gfn == COMES_BACK)
        return ++attempts >= ATTEMPTS ? COMES_BACK : -ENOENT;
    if (gfn == NEVER_COMES)
        return -ENOENT;
    return gfn < RAM ? (long)gfn : -EINVAL;
}

static int map_batch(domid_t confined_to, const privcmd_mmapbatch_v2_t *batch)
{
    if (confined_to != UNRESTRICTED && confined_to != batch->dom)
        return -EPERM;
    if (batch->num == 0)
        return -EINVAL;
    if (!batch->arr || !batch->err)
        return -EFAULT;
    memset(batch->err, 0, batch->num * sizeof(int));
    uintptr_t start = batch->addr, end = start + batch->num * (uintptr_t)FRAME;
    struct vma *vma = find(start, end);
    if (!vma)
        return -EINVAL;
    if (!vma->mapped) {
        /* The first call must cover the whole mapping. */
        if (start != vma->start || end != vma->end)
            return -EINVAL;
        vma->mapped = calloc(batch->num, sizeof(bool));
    }
    for (size_t i = 0; i < batch->num; i++)
        if (vma->mapped[(start - vma->start) / FRAME + i])
            return -EINVAL;
    int result = 0;
    for (size_t i = 0; i < batch->num; i++) {
        long page = page_of(batch->dom, batch->arr[i]);
        if (page >= 0) {
            put(vma, start + i * FRAME, page);
            continue;
        }
        batch->err[i] = page;
        /* A paged-out frame fails the call only if it is the last of a block (since Linux 4.1). */
        if (page == -ENOENT && (i + 1 == batch->num || (i + 1) % BLOCK == 0))
            result = -ENOENT;
    }
    return result;
}

static int map_resource(domid_t confined_to, privcmd_mmap_resource_t *resource)
{
    if (old)
        return -ENOTTY;
    if (confined_to != UNRESTRICTED && confined_to != resource->dom)
        return -EPERM;
    bool query = !resource->addr && !resource->num;
    if (!query && (!resource->addr || !resource->num))
        return -EINVAL;
    uintptr_t start = resource->addr, end = start + resource->num * FRAME;
    struct vma *vma = query ? NULL : find(start, end);
    if (!query && !vma)
        return -EINVAL;
    if (query && old_xen) {
        /* For any resource: the length of an array in Xen. */
        resource->num = 32;
        return 0;
    }
    if (resource->dom != GUEST)
        return -ESRCH;
    if (resource->type != XENMEM_resource_grant_table) {
        if (!query)
            return -EOPNOTSUPP;
        /* Xen 4.15 to 4.19 return the errno as a number of frames. */
        resource->num = (uint32_t)-EOPNOTSUPP;
        return 0;
    }
    if (resource->id != XENMEM_resource_grant_table_id_shared)
        return -EINVAL;
    if (query) {
        resource->num = GRANTS;
        return 0;
    }
    if (resource->num > GRANTS || resource->idx > GRANTS - resource->num)
        return -EINVAL;
    vma->mapped = calloc(resource->num, sizeof(bool));
    for (size_t i = 0; i < resource->num; i++)
        put(vma, start + i * FRAME, GRANT_PAGE + resource->idx + i);
    return 0;
}

static int restrict_to(domid_t *confined_to, domid_t dom)
{
    if (old)
        return -ENOTTY;
    if (*confined_to != UNRESTRICTED && *confined_to != dom)
        return -EINVAL;
    *confined_to = dom;
    return 0;
}

static int fake_ioctl(int fd, unsigned long request, void *argument)
{
    switch (request) {
    case IOCTL_PRIVCMD_MMAPBATCH_V2:
        return map_batch(restricted[fd], argument);
    case IOCTL_PRIVCMD_MMAPBATCH:
        /* Only called after the call above has failed, and fails for the same reasons. */
        return -EINVAL;
    case IOCTL_PRIVCMD_MMAP_RESOURCE:
        return map_resource(restricted[fd], argument);
    case IOCTL_PRIVCMD_RESTRICT:
        return restrict_to(&restricted[fd], *(domid_t *)argument);
    default:
        /* Also the library's first call, which finds out the errno of an unknown ioctl. */
        return -ENOTTY;
    }
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list more;
    va_start(more, request);
    void *argument = va_arg(more, void *);
    va_end(more);
    if (!is_fake(fd)) {
        pthread_once(&once, init);
        return real_ioctl(fd, request, argument);
    }
    pthread_mutex_lock(&lock);
    int result = fake_ioctl(fd, request, argument);
    pthread_mutex_unlock(&lock);
    if (result == 0)
        return 0;
    errno = -result;
    return -1;
}
