//! Known kinds of files that are not raw RAM: how they begin, and what to do with them.
//!
//! RAM can begin with any bytes. On a PC it begins with interrupt vectors, or with zeros.

use xenmap::FRAME_SIZE;

/// Bytes of a file that are needed to identify it: the magic number of ISO 9660 is far from the beginning.
pub(crate) const HEAD: usize = 9 * FRAME_SIZE;

/// A kind of file.
pub(crate) struct Kind {
    marks: Marks,
    pub(crate) name: &'static str,
    advice: &'static str,
}

/// The marks of a kind of file.
enum Marks {
    /// The place of a magic number in the file, and the number.
    Magic(usize, &'static [u8]),
    Check(fn(&[u8]) -> bool),
}

const fn kind(magic: &'static [u8], name: &'static str, advice: &'static str) -> Kind {
    kind_at(0, magic, name, advice)
}

const fn kind_at(at: usize, magic: &'static [u8], name: &'static str, advice: &'static str) -> Kind {
    Kind { marks: Marks::Magic(at, magic), name, advice }
}

const fn kind_if(check: fn(&[u8]) -> bool, name: &'static str, advice: &'static str) -> Kind {
    Kind { marks: Marks::Check(check), name, advice }
}

const UNPACK: &str = "unpack it first";
const DECRYPT: &str = "decrypt it first";
const DUMP_AS_ELF: &str = "read it with crash or drgn, or dump the guest as an elf core";
const RESTORE: &str = "restore the guest, and dump that";
const DISK: &str = "for RAM, dump the guest";
const NO_DUMP: &str = "give a dump";
const WINDOWS: &str = "read it with windbg or volatility3, or dump the guest as an elf core";
const VMWARE: &str = "use the .vmem file that belongs to it";

pub(crate) static KINDS: &[Kind] = &[
    // Compressed.
    kind(b"\x1F\x8B\x08", "compressed with gzip", "decompress it first (gunzip)"),
    kind(b"\x1F\x9D", "compressed with compress", "decompress it first (uncompress)"),
    kind(b"\xFD7zXZ\0", "compressed with xz", "decompress it first (unxz)"),
    kind(b"LZIP\x01", "compressed with lzip", "decompress it first (lzip -d)"),
    kind(b"\x04\x22\x4D\x18", "compressed with lz4", "decompress it first (lz4 -d)"),
    kind(b"\x02\x21\x4C\x18", "compressed with lz4", "decompress it first (lz4 -d)"),
    kind(b"\x89LZO\0\x0D\x0A\x1A\x0A", "compressed with lzop", "decompress it first (lzop -d)"),
    kind(b"\xFF\x06\0\0sNaPpY", "compressed with snappy", "decompress it first (snzip -d)"),
    kind(b"LRZI", "compressed with lrzip", "decompress it first (lrunzip)"),
    // Archives.
    kind(b"PK\x03\x04", "a zip archive, or an AFF4 image", UNPACK),
    kind(b"PK\x05\x06", "an empty zip archive", UNPACK),
    kind(b"PK\x07\x08", "a zip archive", UNPACK),
    kind(b"7z\xBC\xAF\x27\x1C", "a 7z archive", UNPACK),
    kind(b"Rar!\x1A\x07", "a rar archive", UNPACK),
    kind(b"xar!", "a xar archive", UNPACK),
    kind(b"MSCF\0\0\0\0", "a cabinet archive", UNPACK),
    kind(b"MSWIM\0\0\0", "a wim archive", UNPACK),
    kind(b"!<arch>\n", "an ar archive", UNPACK),
    kind(b"070701", "a cpio archive", UNPACK),
    kind(b"070702", "a cpio archive", UNPACK),
    kind(b"070707", "a cpio archive", UNPACK),
    kind(b"\xC7\x71", "a cpio archive", UNPACK),
    kind(b"\x71\xC7", "a cpio archive", UNPACK),
    kind_at(257, b"ustar", "a tar archive", "unpack it first (tar -xf)"),
    kind(b"hsqs", "a squashfs archive", UNPACK),
    // Encrypted.
    kind(b"Salted__", "encrypted with openssl", DECRYPT),
    kind(b"age-encryption.org/", "encrypted with age", DECRYPT),
    kind(b"-----BEGIN ", "encrypted or signed text", DECRYPT),
    // Dumps of kernels.
    kind(b"DISKDUMP", "a diskdump", DUMP_AS_ELF),
    kind(b"sadump\0\0", "a dump of sadump", DUMP_AS_ELF),
    kind(b"\xED\x23\x8F\x61\x73\x01\x19\xA8", "a dump of lkcd", DUMP_AS_ELF),
    kind(b"\xCD\x23\x8F\x61\x73\x01\x19\xA8", "a dump of lkcd", DUMP_AS_ELF),
    kind(b"\xA8\x19\x01\x73\x61\x8F\x23\xFD", "a dump of a Linux on s390", DUMP_AS_ELF),
    kind(b"minidump FreeBSD/", "a minidump of FreeBSD", "read it with kgdb, or dump the guest as an elf core"),
    kind(b"PAGEDUMP", "a crash dump of Windows", WINDOWS),
    kind(b"PAGEDU64", "a crash dump of Windows", WINDOWS),
    kind(b"MDMP\x93\xA7", "a minidump of Windows", WINDOWS),
    kind(b"hibr", "a hibernation file of Windows", WINDOWS),
    kind(b"HIBR", "a hibernation file of Windows", WINDOWS),
    kind(b"wake", "a hibernation file of Windows", WINDOWS),
    kind(b"WAKE", "a hibernation file of Windows", WINDOWS),
    kind(b"RSTR", "a hibernation file of Windows", WINDOWS),
    kind(b"\x81\x81xpress", "a hibernation file of Windows", WINDOWS),
    kind(b"\xCE\xFA\xED\xFE", "a Mach-O file", "read it with lldb, or dump the guest as an elf core"),
    kind(b"\xCF\xFA\xED\xFE", "a Mach-O file", "read it with lldb, or dump the guest as an elf core"),
    kind(b"\xFE\xED\xFA\xCE", "a Mach-O file", "read it with lldb, or dump the guest as an elf core"),
    kind(b"\xFE\xED\xFA\xCF", "a Mach-O file", "read it with lldb, or dump the guest as an elf core"),
    // Images of memory.
    kind(b"HPAK", "a dump of fdpro", "extract the RAM first"),
    kind(b"EVF\x09\x0D\x0A\xFF\0", "an image of EnCase or ewfacquire", "export it as raw first (ewfexport)"),
    kind(b"LVF\x09\x0D\x0A\xFF\0", "an image of EnCase or ewfacquire", "export it as raw first (ewfexport)"),
    kind(b"EVF2\x0D\x0A\x81\0", "an image of EnCase", "export it as raw first (ewfexport)"),
    kind(b"LEF2\x0D\x0A\x81\0", "an image of EnCase", "export it as raw first (ewfexport)"),
    kind(b"AFF10\x0D\x0A\0", "an AFF image", "export it as raw first (affcat)"),
    // Saved guests.
    kind(b"Xen saved domain", "a guest saved by xl", RESTORE),
    kind(b"LinuxGuestRecord", "a guest saved by xm", RESTORE),
    kind(b"LibxlFmt", "a guest saved by libxl", RESTORE),
    kind(b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFXENF", "a guest saved by libxc", RESTORE),
    kind(b"\xED\xEB\x0F\xF0", "a core of an old xm dump-core", "read it with crash, or dump the guest again"),
    kind(b"\xEE\xEB\x0F\xF0", "a core of an old xm dump-core", "read it with crash, or dump the guest again"),
    kind(b"QEVM", "a guest saved by QEMU", RESTORE),
    kind(
        b"LibvirtQemudSave",
        "a guest saved by libvirt",
        "restore the guest, and dump its memory (virsh dump --memory-only)",
    ),
    kind(b"LibvirtQemudPart", "a guest that libvirt has not saved completely", RESTORE),
    kind(b"\x7FVirtualBox SavedState V", "a guest saved by VirtualBox", RESTORE),
    kind(b"\xD0\xBE\xD0\xBE", "a guest saved by VMware", VMWARE),
    kind(b"\xD0\xBE\xD2\xBE", "a guest saved by VMware", VMWARE),
    kind(b"\xD2\xBE\xD2\xBE", "a guest saved by VMware", VMWARE),
    kind(b"\xD3\xBE\xD3\xBE", "a guest saved by VMware", VMWARE),
    kind(b"\xD0\xBA\xD0\xBA", "a guest saved by VMware", VMWARE),
    kind(b"\xD1\xBA\xD1\xBA", "a guest saved by VMware", VMWARE),
    kind(b"\xD2\xBA\xD2\xBA", "a guest saved by VMware", VMWARE),
    // Disks; QEMU may save a guest's RAM in one.
    kind(b"QFI\xFB", "a qcow2 disk image", DISK),
    kind(b"QED\0", "a qed disk image", DISK),
    kind(b"conectix", "a vhd disk image", DISK),
    kind(b"vhdxfile", "a vhdx disk image", DISK),
    kind_at(64, b"\x7F\x10\xDA\xBE", "a vdi disk image", DISK),
    kind(b"KDMV", "a vmdk disk image", DISK),
    kind(b"COWD", "a vmdk disk image", DISK),
    kind(b"# Disk DescriptorFile", "a vmdk disk image", DISK),
    kind(b"WithoutFreeSpace", "a disk image of Parallels", DISK),
    kind(b"WithouFreSpacExt", "a disk image of Parallels", DISK),
    kind_at(4086, b"SWAPSPACE2", "a swap area", DISK),
    kind_at(4086, b"S1SUSPEND\0", "a swap area with a hibernated Linux", DISK),
    kind_at(4086, b"LINHIB0001", "a swap area with a hibernated Linux", DISK),
    kind(b"LUKS\xBA\xBE", "an encrypted disk image (luks)", DISK),
    // The magic number of a BIOS partition table is not reliable: RAM may have the same two bytes there.
    kind_at(512, b"EFI PART", "a disk image with a GPT", DISK),
    kind(b"XFSB", "an image of an xfs file system", DISK),
    kind_if(is_ext, "an image of an ext2, ext3 or ext4 file system", DISK),
    kind_at(32_768, b"\x01CD001\x01", "an ISO 9660 image", DISK),
    kind(b"\x3A\xFF\x26\xED", "a sparse image of Android", DISK),
    // Files that are likely to be given by mistake; `picture` makes the first.
    kind(b"\x89PNG\x0D\x0A\x1A\x0A", "a png picture", NO_DUMP),
    kind(b"%PDF-", "a pdf document", NO_DUMP),
    kind(b"SQLite format 3\0", "a SQLite database", NO_DUMP),
    kind(b"\x37\xA4\x30\xEC", "a dictionary of zstd", NO_DUMP),
    // Kinds without a magic number, or with a short one.
    kind_if(is_bzip2, "compressed with bzip2", "decompress it first (bunzip2)"),
    kind_if(is_lzma, "compressed with lzma", "decompress it first (unlzma)"),
    kind_if(is_zlib, "compressed with zlib", "decompress it first (zlib-flate -uncompress)"),
    kind_if(is_old_zstd, "compressed with an old zstd", "decompress it first, with a zstd before 0.8"),
];

/// Says what a file is, and what to do; `None` if it may be raw RAM. `head` is its first [`HEAD`] bytes or more, or all of
/// a shorter file.
pub(crate) fn identify(head: &[u8]) -> Option<String> {
    find(head).map(|Kind { name, advice, .. }| format!("it is {name}: {advice}"))
}

pub(crate) fn find(head: &[u8]) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| match kind.marks {
        Marks::Magic(at, magic) => head.get(at..).is_some_and(|there| there.starts_with(magic)),
        Marks::Check(check) => check(head),
    })
}

fn is_bzip2(head: &[u8]) -> bool {
    matches!(head, [b'B', b'Z', b'h', b'1'..=b'9', ..])
}

/// `lzma` has no magic number, but its properties (0x5D) and dictionary sizes are nearly always the same.
fn is_lzma(head: &[u8]) -> bool {
    let Some(&[0x5D, a, b, c, d]) = head.first_chunk() else { return false };
    let dictionary = u32::from_le_bytes([a, b, c, d]);
    let is_power = dictionary.is_power_of_two();
    let is_one_and_a_half = dictionary.is_multiple_of(3) && (dictionary / 3).is_power_of_two();
    dictionary >= 1 << 12 && (is_power || is_one_and_a_half)
}

/// zlib, as lime.ko can write it: windows of 32 KiB, any level, no dictionary.
fn is_zlib(head: &[u8]) -> bool {
    matches!(head, [0x78, 0x01 | 0x5E | 0x9C | 0xDA, ..])
}

/// zstd before 0.8.
fn is_old_zstd(head: &[u8]) -> bool {
    matches!(head, [0x1E | 0x22..=0x27, 0xB5, 0x2F, 0xFD, ..])
}

/// A superblock of ext2, ext3 or ext4. Its magic number has only two bytes, which RAM may have, too.
fn is_ext(head: &[u8]) -> bool {
    let field = |at: usize, len: usize| -> Option<u32> {
        let bytes = head.get(1024 + at..1024 + at + len)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    };
    let is = |at, len, is_right: fn(u32) -> bool| field(at, len).is_some_and(is_right);
    is(56, 2, |magic| magic == 0xEF53)
        && is(0, 4, |inodes| inodes > 0)
        && is(20, 4, |first_block| first_block <= 1)
        && is(24, 4, |log_of_block_size| log_of_block_size <= 6)
        && is(76, 4, |revision| revision <= 1)
}
