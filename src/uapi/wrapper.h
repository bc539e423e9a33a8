/*
 * What bindgen reads. The headers are the installed ones: <xen/privcmd.h> of linux-libc-dev, the rest of libxen-dev.
 * Constants that the headers spell with casts or token pasting, which bindgen cannot evaluate, are given a name here.
 */
#include <stddef.h>
#include <stdint.h>
#include <linux/ioctl.h>

/* Shows the parts that toolstacks use, the resource types among them. */
#define __XEN_TOOLS__ 1
#include <xen/xen.h>
#include <xen/features.h>
#include <xen/memory.h>
#include <xen/version.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/params.h>
#include <xen/privcmd.h>

enum privcmd_ioctl {
	NR_HYPERCALL = IOCTL_PRIVCMD_HYPERCALL,
	NR_MMAPBATCH_V2 = IOCTL_PRIVCMD_MMAPBATCH_V2,
	NR_RESTRICT = IOCTL_PRIVCMD_RESTRICT,
	NR_MMAP_RESOURCE = IOCTL_PRIVCMD_MMAP_RESOURCE,
};

static const domid_t FIRST_RESERVED_DOMID = DOMID_FIRST_RESERVED;
static const domid_t XEN_DOMID = DOMID_XEN;
