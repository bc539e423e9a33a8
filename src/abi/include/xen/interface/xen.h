/* Linux's <xen/privcmd.h> needs domid_t and xen_pfn_t from a header that only the kernel has: use Xen's own. */
#include <xen/xen.h>
