/*
 * A library for LD_PRELOAD that makes a program believe that it runs with more privileges than its user, as a setuid
 * program does: secure_getenv(3) then finds no variable.
 */
#include <stddef.h>

char *secure_getenv(const char *name)
{
    (void)name;
    return NULL;
}
