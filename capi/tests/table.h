/*
 * Runs a table of calls on the library and host at hand, each row in a process of its own, and compares the result, a
 * line of text, with the table.
 *
 *     PROGRAM ours|original DOMID
 *
 * Prints a line for each row: `PASS name => result` or `FAIL name => result, expected ...`. The exit status is 0 if no
 * row failed.
 *
 * DOMID is a guest whose frames hold their own number at offset 0 (on a real Xen: their own address). A row is skipped
 * on hosts that it is not for, and with the original library where it would do harm (NULL in its column).
 */
#include "calls.h"
#include <dlfcn.h>

/* Seconds that a row may take. Our library waits for at most 5; a real Xen in an emulator is slow. */
enum { LIMIT = 10, LIMIT_ON_XEN = 120 };

struct row {
    const char *name;
    unsigned hosts;
    void (*run)(const struct call *);
    struct call call;
    const char *ours, *original;
};
#define BOTH(text) text, text

static unsigned find_host(void)
{
    const char *mock = getenv("XENMAP_MOCK"), *fake = getenv("FAKE_PRIVCMD");
    FILE *features;
    unsigned long mask;
    if (mock)
        return strcmp(mock, "pv") ? MOCK_AUTO : MOCK_PV;
    if (fake)
        return !strcmp(fake, "old") ? FAKE_OLD : !strcmp(fake, "old-xen") ? FAKE_OLD_XEN : FAKE;
    features = fopen("/sys/hypervisor/properties/features", "r");
    if (!features)
        return NO_XEN;
    if (fscanf(features, "%lx", &mask) != 1)
        exit(2);
    fclose(features);
    /* XENFEAT_auto_translated_physmap */
    return mask & 1 << 2 ? XEN_AUTO : XEN_PV;
}

enum { TEXT = 4096, ENDING = 64 };

/* Runs a row in a process of its own, and stores in `text` what it printed and how it ended. */
static void run_row(char *const argv[], size_t row, char text[TEXT + ENDING])
{
    char number[24];
    int ends[2], status;
    size_t len = 0;
    ssize_t got;
    snprintf(number, sizeof(number), "%zu", row);
    if (pipe(ends))
        exit(2);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        execl("/proc/self/exe", argv[0], argv[1], argv[2], number, NULL);
        _exit(127);
    }
    close(ends[1]);
    while ((got = read(ends[0], text + len, TEXT - len)) > 0)
        len += got;
    close(ends[0]);
    waitpid(child, &status, 0);
    text[len] = 0;
    const char *gap = len ? " " : "";
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        snprintf(text + len, ENDING, "%sno answer in %d s", gap, LIMIT);
    else if (WIFSIGNALED(status))
        snprintf(text + len, ENDING, "%sSIG%s", gap, sigabbrev_np(WTERMSIG(status)));
    else if (WEXITSTATUS(status))
        snprintf(text + len, ENDING, "%sexit %d", gap, WEXITSTATUS(status));
}

static int run_table(const struct row *rows, size_t n, int argc, char *const argv[])
{
    if (argc < 3 || (strcmp(argv[1], "ours") && strcmp(argv[1], "original"))) {
        fprintf(stderr, "usage: %s ours|original DOMID\n", argv[0]);
        return 2;
    }
    bool original = !strcmp(argv[1], "original");
    int run = 0, failed = 0;
    guest = atoi(argv[2]);
    host = find_host();
    base = host & (XEN_PV | XEN_AUTO) ? RAM + 2048 : 0;
    if (argc == 4) {
        const struct row *row = &rows[atoi(argv[3])];
        alarm(host & (XEN_PV | XEN_AUTO) ? LIMIT_ON_XEN : LIMIT);
        row->run(&row->call);
        return 0;
    }
    Dl_info library;
    if (dladdr(xenforeignmemory_open, &library))
        printf("# %s\n", library.dli_fname);
    for (size_t i = 0; i < n; i++) {
        const char *expected = original ? rows[i].original : rows[i].ours;
        char text[TEXT + ENDING];
        if (!(rows[i].hosts & host) || !expected)
            continue;
        run++;
        run_row(argv, i, text);
        if (!strcmp(text, expected)) {
            printf("PASS %s => %s\n", rows[i].name, text);
        } else {
            printf("FAIL %s => %s, expected %s\n", rows[i].name, text, expected);
            failed++;
        }
        fflush(stdout);
    }
    if (!run)
        printf("FAIL: the table has no row for this host\n");
    return failed || !run;
}
#define MAIN(rows)                                                                  \
    int main(int argc, char *argv[])                                                \
    {                                                                               \
        return run_table(rows, sizeof(rows) / sizeof(*rows), argc, argv);           \
    }
