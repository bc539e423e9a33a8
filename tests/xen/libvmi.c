/* Small reads of a running Linux guest by libvmi: what benches/small_reads.rs reads, in the same order. Prints a line
 * for each kind of read: its cost in nanoseconds (in the lab, instructions), and the sum of what was read.
 *
 *     libvmi DOMID pv|pvh CR3 TASKS NAME RAM-START RAM-END
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libvmi/libvmi.h>

#define DIRECT_MAP 0xffff888000000000u
#define MIB (1u << 20)
#define READS 4000
#define ROUNDS 2

static vmi_instance_t vmi;
static uint64_t cr3, tasks, name, ram_start, ram_end;

static void check(status_t status, const char *what, uint64_t address)
{
    if (status != VMI_SUCCESS) {
        fprintf(stderr, "libvmi: %s fails at %#" PRIx64 "\n", what, address);
        exit(1);
    }
}

static uint64_t read_physical(uint64_t address)
{
    uint64_t value;
    check(vmi_read_64_pa(vmi, address, &value), "vmi_read_64_pa", address);
    return value;
}

static uint64_t read_virtual(uint64_t address)
{
    uint64_t value;
    ACCESS_CONTEXT(context, .tm = VMI_TM_PROCESS_DTB, .dtb = cr3, .addr = address);
    check(vmi_read_64(vmi, &context, &value), "vmi_read_64", address);
    return value;
}

/* The sum of the first and the last 8 bytes. */
static uint64_t ends(const char *bytes, size_t len)
{
    uint64_t first, last;
    memcpy(&first, bytes, 8);
    memcpy(&last, bytes + len - 8, 8);
    return first + last;
}

static uint64_t at_random(uint64_t (*read)(uint64_t), uint64_t start, uint64_t len)
{
    uint64_t random = 1, sum = 0;
    for (int i = 0; i < READS; i++) {
        random = random * 6364136223846793005u + 1;
        sum += read(start + (random >> 33) % len / 8 * 8);
    }
    return sum;
}

static uint64_t physical_at_random(uint64_t *count)
{
    *count = READS;
    return at_random(read_physical, 32 * MIB, 64 * MIB);
}

static uint64_t virtual_at_random(uint64_t *count)
{
    *count = READS;
    return at_random(read_virtual, DIRECT_MAP + 32 * MIB, 64 * MIB);
}

static uint64_t virtual_within_1_mib(uint64_t *count)
{
    *count = READS;
    return at_random(read_virtual, DIRECT_MAP + 32 * MIB, MIB);
}

static uint64_t walk_tasks(uint64_t *count)
{
    uint64_t task = tasks, sum = 0;
    *count = 0;
    do {
        char bytes[16];
        uint64_t next = read_virtual(task);
        sum += next + read_virtual(task + 8) + read_virtual(task + name - 8);
        ACCESS_CONTEXT(context, .tm = VMI_TM_PROCESS_DTB, .dtb = cr3, .addr = task + name);
        check(vmi_read(vmi, &context, sizeof bytes, bytes, NULL), "vmi_read", task + name);
        sum += ends(bytes, sizeof bytes);
        ++*count;
        task = next;
    } while (task != tasks);
    return sum;
}

static uint64_t read_all(uint64_t *count)
{
    static char page[4096];
    uint64_t sum = 0;
    *count = (ram_end - ram_start) / sizeof page;
    for (uint64_t address = ram_start; address < ram_end; address += sizeof page) {
        check(vmi_read_pa(vmi, address, sizeof page, page, NULL), "vmi_read_pa", address);
        sum += ends(page, sizeof page);
    }
    return sum;
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * UINT64_C(1000000000) + time.tv_nsec;
}

/* The cheapest of some rounds. Before each round that is cold, libvmi forgets everything. */
static void measure(uint64_t (*read)(uint64_t *), int cold)
{
    uint64_t cost = UINT64_MAX, sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t count, began, each;
        if (cold) {
            vmi_v2pcache_flush(vmi, ~UINT64_C(0));
            vmi_pagecache_flush(vmi);
        }
        began = now();
        sum = read(&count);
        each = (now() - began) / count;
        if (each < cost)
            cost = each;
    }
    printf("%" PRIu64 " %" PRIu64 "\n", cost, sum);
}

int main(int argc, char **argv)
{
    uint64_t domid;
    int pv;
    if (argc != 8) {
        fputs("usage: libvmi DOMID pv|pvh CR3 TASKS NAME RAM-START RAM-END\n", stderr);
        return 2;
    }
    domid = strtoull(argv[1], NULL, 0);
    pv = strcmp(argv[2], "pv") == 0;
    cr3 = strtoull(argv[3], NULL, 0) & ~UINT64_C(0xfff);
    tasks = strtoull(argv[4], NULL, 0);
    name = strtoull(argv[5], NULL, 0);
    ram_start = strtoull(argv[6], NULL, 0);
    ram_end = strtoull(argv[7], NULL, 0);
    check(vmi_init(&vmi, VMI_XEN, &domid, VMI_INIT_DOMAINID, NULL, NULL), "vmi_init", domid);
    if (vmi_init_paging(vmi, 0) == VMI_PM_UNKNOWN)
        check(VMI_FAILURE, "vmi_init_paging", domid);
    if (!pv)
        measure(physical_at_random, 0);
    measure(virtual_at_random, 0);
    measure(virtual_within_1_mib, 0);
    measure(walk_tasks, 0);
    measure(walk_tasks, 1);
    if (!pv)
        measure(read_all, 1);
    vmi_destroy(vmi);
    return 0;
}
