/*
 * A library for LD_PRELOAD that has a program believe that it runs with more rights than its user, as a setuid program
 * does: secure_getenv(3) knows no variable then.
 */
#include <stddef.h>

char *secure_getenv(const char *name)
{
    (void)name;
    return NULL;
}
