/* <xen/privcmd.h> of Linux wants domid_t and xen_pfn_t from a header that only the kernel has: take Xen's own. */
#include <xen/xen.h>
