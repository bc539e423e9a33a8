// frames DOMID FIRST COUNT: writes consecutive frames of a guest to stdout. It maps them with Xen's own library
// (libxenforeignmemory), so that the result can be compared with ours.

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <xenforeignmemory.h>

enum { FRAME = 4096, WINDOW = 256 };

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: frames DOMID FIRST COUNT\n");
        return 2;
    }
    uint32_t domid = strtoul(argv[1], NULL, 0);
    uint64_t next = strtoull(argv[2], NULL, 0), end = next + strtoull(argv[3], NULL, 0);
    xenforeignmemory_handle *handle = xenforeignmemory_open(NULL, 0);
    if (!handle) {
        perror("xenforeignmemory_open");
        return 1;
    }
    while (next < end) {
        uint64_t gfns[WINDOW];
        size_t frames = 0;
        while (frames < WINDOW && next < end) gfns[frames++] = next++;
        // Without an array for errors, it maps all frames or none. A frame that failed must not be touched.
        void *mapping = xenforeignmemory_map(handle, domid, PROT_READ, frames, gfns, NULL);
        if (!mapping) {
            perror("xenforeignmemory_map");
            return 1;
        }
        if (fwrite(mapping, FRAME, frames, stdout) != frames) {
            perror("write");
            return 1;
        }
        xenforeignmemory_unmap(handle, mapping, frames);
    }
    return fflush(stdout) != 0;
}
