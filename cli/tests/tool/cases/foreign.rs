//! Files that are not raw RAM, although they consist of whole frames: the tool must not take them for RAM.

use std::fs;

use xenmap::FRAME_SIZE;

use crate::dumps::*;
use crate::harness::*;
use crate::image::foreign;

/// For each kind of file, the place of its magic number, the number, and what a refusal must say.
const FOREIGN: [(usize, &[u8], &str); 102] = [
    (0, b"\x1F\x8B\x08\0", "compressed with gzip: decompress it first (gunzip)"),
    (0, b"\x1F\x9D\x90", "compressed with compress: decompress it first (uncompress)"),
    (0, b"\xFD7zXZ\0", "compressed with xz: decompress it first (unxz)"),
    (0, b"BZh91AY&SY", "compressed with bzip2: decompress it first (bunzip2)"),
    (0, b"LZIP\x01", "compressed with lzip"),
    (0, b"\x5D\0\0\x80\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\0", "compressed with lzma: decompress it first (unlzma)"),
    (0, b"\x5D\0\0\x04\0\0\0\x10\0\0\0\0\0\0", "compressed with lzma"),
    (0, b"\x04\x22\x4D\x18", "compressed with lz4: decompress it first (lz4 -d)"),
    (0, b"\x02\x21\x4C\x18", "compressed with lz4"),
    (0, b"\x89LZO\0\r\n\x1A\n", "compressed with lzop"),
    (0, b"\xFF\x06\0\0sNaPpY", "compressed with snappy"),
    (0, b"LRZI", "compressed with lrzip"),
    (0, b"\x78\x01", "compressed with zlib"),
    (0, b"\x78\x5E", "compressed with zlib"),
    (0, b"\x78\x9C", "compressed with zlib"),
    (0, b"\x78\xDA", "compressed with zlib"),
    (0, b"\x27\xB5\x2F\xFD", "compressed with an old zstd"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"PK\x07\x08", "a zip archive"),
    (0, b"7z\xBC\xAF\x27\x1C", "a 7z archive: unpack it first"),
    (0, b"Rar!\x1A\x07\0", "a rar archive"),
    (0, b"xar!", "a xar archive"),
    (0, b"MSCF\0\0\0\0", "a cabinet archive"),
    (0, b"MSWIM\0\0\0", "a wim archive"),
    (0, b"!<arch>\n", "an ar archive"),
    (0, b"070701", "a cpio archive"),
    (0, b"070702", "a cpio archive"),
    (0, b"070707", "a cpio archive"),
    (0, b"\xC7\x71", "a cpio archive"),
    (0, b"\x71\xC7", "a cpio archive"),
    (257, b"ustar\0", "a tar archive: unpack it first (tar -xf)"),
    (257, b"ustar  \0", "a tar archive"),
    (0, b"hsqs", "a squashfs archive"),
    (0, b"Salted__", "encrypted with openssl: decrypt it first"),
    (0, b"age-encryption.org/v1\n", "encrypted with age"),
    (0, b"-----BEGIN PGP MESSAGE-----\n", "encrypted or signed text"),
    (0, b"LUKS\xBA\xBE", "an encrypted disk image (luks)"),
    (0, b"DISKDUMP", "a diskdump"),
    (0, b"sadump\0\0", "a dump of sadump"),
    (0, &0xA819_0173_618F_23ED_u64.to_le_bytes(), "a dump of lkcd"),
    (0, &0xA819_0173_618F_23CD_u64.to_le_bytes(), "a dump of lkcd"),
    (0, &0xA819_0173_618F_23FD_u64.to_be_bytes(), "a dump of a Linux on s390"),
    (0, b"minidump FreeBSD/amd64", "a minidump of FreeBSD"),
    (0, b"PAGEDUMP", "a crash dump of Windows: read it with windbg or volatility3"),
    (0, b"PAGEDU64", "a crash dump of Windows"),
    (0, b"MDMP\x93\xA7", "a minidump of Windows"),
    (0, b"hibr", "a hibernation file of Windows"),
    (0, b"HIBR", "a hibernation file of Windows"),
    (0, b"wake", "a hibernation file of Windows"),
    (0, b"WAKE", "a hibernation file of Windows"),
    (0, b"RSTR", "a hibernation file of Windows"),
    (0, b"\x81\x81xpress", "a hibernation file of Windows"),
    (0, &0xFEED_FACE_u32.to_le_bytes(), "a Mach-O file"),
    (0, &0xFEED_FACF_u32.to_le_bytes(), "a Mach-O file"),
    (0, &0xFEED_FACE_u32.to_be_bytes(), "a Mach-O file"),
    (0, &0xFEED_FACF_u32.to_be_bytes(), "a Mach-O file"),
    (0, b"HPAK", "a dump of fdpro"),
    (0, b"EVF\x09\r\n\xFF\0", "an image of EnCase or ewfacquire: export it as raw first (ewfexport)"),
    (0, b"LVF\x09\r\n\xFF\0", "an image of EnCase or ewfacquire"),
    (0, b"EVF2\r\n\x81\0", "an image of EnCase"),
    (0, b"LEF2\r\n\x81\0", "an image of EnCase"),
    (0, b"AFF10\r\n\0", "an AFF image"),
    (0, b"Xen saved domain, xl format\n \0 \r", "a guest saved by xl: restore the guest, and dump that"),
    (0, b"LinuxGuestRecord", "a guest saved by xm"),
    (0, b"LibxlFmt\0\0\0\x02", "a guest saved by libxl"),
    (0, b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFXENF\0\0\0\x02", "a guest saved by libxc"),
    (0, &0xF00F_EBED_u32.to_le_bytes(), "a core of an old xm dump-core: read it with crash, or dump the guest again"),
    (0, &0xF00F_EBEE_u32.to_le_bytes(), "a core of an old xm dump-core"),
    (0, b"QEVM\0\0\0\x03", "a guest saved by QEMU"),
    (
        0,
        b"LibvirtQemudSave",
        "a guest saved by libvirt: restore the guest, and dump its memory (virsh dump --memory-only)",
    ),
    (0, b"LibvirtQemudPart", "a guest that libvirt has not saved completely"),
    (0, b"\x7FVirtualBox SavedState V2.0\n", "a guest saved by VirtualBox"),
    (0, &0xBED0_BED0_u32.to_le_bytes(), "a guest saved by VMware"),
    (0, &0xBED2_BED0_u32.to_le_bytes(), "a guest saved by VMware: use the .vmem file that belongs to it"),
    (0, &0xBED2_BED2_u32.to_le_bytes(), "a guest saved by VMware"),
    (0, &0xBED3_BED3_u32.to_le_bytes(), "a guest saved by VMware"),
    (0, &0xBAD0_BAD0_u32.to_le_bytes(), "a guest saved by VMware"),
    (0, &0xBAD2_BAD2_u32.to_le_bytes(), "a guest saved by VMware"),
    (0, &0xBAD1_BAD1_u32.to_le_bytes(), "a guest saved by VMware"),
    (0, b"QFI\xFB\0\0\0\x03", "a qcow2 disk image: for RAM, dump the guest"),
    (0, b"QED\0", "a qed disk image"),
    (0, b"conectix", "a vhd disk image"),
    (0, b"vhdxfile", "a vhdx disk image"),
    (64, b"\x7F\x10\xDA\xBE", "a vdi disk image"),
    (0, b"KDMV", "a vmdk disk image"),
    (0, b"COWD", "a vmdk disk image"),
    (0, b"# Disk DescriptorFile\n", "a vmdk disk image"),
    (0, b"WithoutFreeSpace", "a disk image of Parallels"),
    (0, b"WithouFreSpacExt", "a disk image of Parallels"),
    (4086, b"SWAPSPACE2", "a swap area"),
    (4086, b"S1SUSPEND\0", "a swap area with a hibernated Linux"),
    (4086, b"LINHIB0001", "a swap area with a hibernated Linux"),
    (512, b"EFI PART\0\0\x01\0", "a disk image with a GPT"),
    (0, b"XFSB\0\0\x10\0", "an image of an xfs file system"),
    (1024, &EXT4, "an image of an ext2, ext3 or ext4 file system"),
    (32_768, b"\x01CD001\x01\0", "an ISO 9660 image: for RAM, dump the guest"),
    (0, &0xED26_FF3A_u32.to_le_bytes(), "a sparse image of Android"),
    (0, b"\x89PNG\r\n\x1A\n", "a png picture: give a dump"),
    (0, b"%PDF-1.7\n", "a pdf document"),
    (0, b"SQLite format 3\0", "a SQLite database"),
    (0, &0xEC30_A437_u32.to_le_bytes(), "a dictionary of zstd"),
];

/// The checked fields of a superblock of ext4: numbers of inodes and blocks, block size, magic number, revision.
const EXT4: [u8; 80] = {
    let mut block = [0; 80];
    block[0] = 16;
    block[4] = 64;
    block[24] = 2;
    block[56] = 0x53;
    block[57] = 0xEF;
    block[76] = 1;
    block
};

/// Returns whole frames that begin as a kind of file does.
fn whole_frames(at: usize, magic: &[u8]) -> Vec<u8> {
    let mut file = vec![7; (at + magic.len()).next_multiple_of(FRAME_SIZE).max(4 * FRAME_SIZE)];
    file[at..at + magic.len()].copy_from_slice(magic);
    file
}

#[test]
fn foreign_file_is_refused_by_name() {
    let folder = folder("foreign");
    fs::write(folder.join("ram"), vec![7; 4 * FRAME_SIZE]).unwrap();
    for (at, magic, what) in FOREIGN {
        fs::write(folder.join("file"), whole_frames(at, magic)).unwrap();
        for (args, option) in [
            ("diff file ram", "--raw old"),
            ("diff ram file", "--raw new"),
            ("--mock ram diff file", "--raw old"),
            ("--mock ram picture out --since file", "--raw"),
        ] {
            let output = run_in(&folder, args);
            assert_eq!(output.status.code(), Some(2), "{magic:?}");
            let line = refusal(&output);
            assert!(line.starts_with(&format!("cannot use file as a dump: it is {what}")), "{magic:?}: {line}");
            assert!(line.ends_with(&format!("; if it is raw RAM all the same, give {option}")), "{line}");
            assert_eq!(text(&output.stdout), "");
        }
        let line = refusal(&run_in(&folder, "--mock file info")).to_owned();
        assert!(line.starts_with(&format!("cannot use file: it is {what}")), "{magic:?}: {line}");
        assert!(line.ends_with("; if it is raw RAM all the same, give --mock-raw"), "{line}");
    }
    assert_eq!(names(&folder), ["file", "ram"]);
}

#[test]
fn every_known_kind_has_a_case() {
    let met = |kind: &foreign::Kind| {
        FOREIGN.iter().any(|(at, magic, what)| {
            let file = whole_frames(*at, magic);
            // As much as --mock reads of a file.
            let head = &file[..file.len().min(foreign::HEAD)];
            foreign::identify(head).is_some_and(|line| line.starts_with(&format!("it is {what}")))
                && foreign::find(head).is_some_and(|found| std::ptr::eq(found, kind))
        })
    };
    let missing: Vec<&str> = foreign::KINDS.iter().filter(|kind| !met(kind)).map(|kind| kind.name).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn raw_ram_that_looks_foreign_is_read_with_the_option() {
    let folder = folder("foreign-raw");
    let [elf, lime] = [elf, lime].map(|make| make(&[(0, page(7))].into()));
    let whole = |mut bytes: Vec<u8>| {
        bytes.resize(4 * FRAME_SIZE, 7);
        bytes
    };
    let compressed = whole(zstd::encode_all(&elf[..], 0).unwrap());
    for ram in [whole_frames(0, b"DISKDUMP"), whole(elf), whole(lime), compressed] {
        fs::write(folder.join("ram"), &ram).unwrap();
        fs::write(folder.join("changed"), [&ram[..FRAME_SIZE], &[8; FRAME_SIZE], &ram[2 * FRAME_SIZE..]].concat())
            .unwrap();
        let same = "4 the same, 0 different, 0 only in OLD, 0 only in NEW\n";
        let differ = "0x1000 to 0x1fff: 1 page different\n3 the same, 1 different, 0 only in OLD, 0 only in NEW\n";
        assert_eq!(text(&run_in(&folder, "diff --raw both ram ram").stdout), same);
        assert_eq!(text(&run_in(&folder, "diff ram changed --raw both").stdout), differ);
        let mock = "--mock ram --mock-raw";
        assert_eq!(text(&run_in(&folder, &format!("{mock} diff --raw old changed")).stdout), differ);
        assert_eq!(run_in(&folder, &format!("{mock} read 0 16384 --binary")).stdout, ram);
        let picture = run_in(&folder, &format!("{mock} picture out --since changed --raw"));
        assert!(text(&picture.stdout).contains("\norange          1  changed since the dump\n"));
        fs::remove_file(folder.join("out")).unwrap();
    }
}

#[test]
fn each_of_two_dumps_is_raw_only_with_the_option() {
    let folder = folder("foreign-which");
    let ram = whole_frames(0, b"DISKDUMP");
    fs::write(folder.join("odd"), &ram).unwrap();
    let pages: Pages = (0..).zip(ram.as_chunks().0.iter().copied()).collect();
    let dump = elf(&pages);
    fs::write(folder.join("elf"), &dump).unwrap();
    fs::write(folder.join("zst"), zstd::encode_all(&dump[..], 0).unwrap()).unwrap();
    let same = "4 the same, 0 different, 0 only in OLD, 0 only in NEW\n";
    for args in ["--raw old odd elf", "--raw new elf odd", "--raw old odd zst", "--raw new zst odd"] {
        let output = run_in(&folder, &format!("diff {args}"));
        assert_eq!((text(&output.stdout), text(&output.stderr)), (same, ""), "{args}");
    }
    for (args, option) in [("--raw old odd odd", "--raw both"), ("--raw new odd odd", "--raw both")] {
        let line = refusal(&run_in(&folder, &format!("diff {args}"))).to_owned();
        assert!(line.ends_with(&format!("if it is raw RAM all the same, give {option}")), "{line}");
    }
    for which in ["new", "both"] {
        let output = run_in(&folder, &format!("--mock odd --mock-raw diff --raw {which} elf"));
        assert_eq!(refusal(&output), "there is only one dump: give --raw old, or another dump");
    }
    // The option needs a value.
    let line = usage_error(&run_in(&folder, "diff --raw odd elf")).to_owned();
    assert!(line.contains("--raw <WHICH>") && line.contains("old, new, both"), "{line}");
}

#[test]
fn raw_dump_that_is_cut_off_is_refused_whatever_it_begins_with() {
    let folder = folder("foreign-cut");
    for start in [&b"\x7fELF"[..], b"EMiL", b"KDUMP   ", b"AVML", b"\x28\xB5\x2F\xFD", b"text"] {
        let mut file = whole_frames(0, start);
        file.pop();
        fs::write(folder.join("file"), file).unwrap();
        let expected = "cannot use file as a dump: it is not raw RAM: its length is not a multiple of 4096";
        assert_eq!(refusal(&run_in(&folder, "diff --raw old file file")), expected);
    }
}

#[test]
fn dump_of_another_format_is_not_a_guests_ram() {
    let folder = folder("foreign-own");
    for (name, make) in FORMATS.into_iter().filter(|(name, _)| *name != "raw") {
        fs::write(folder.join(name), make(&[(0, page(7))].into())).unwrap();
        let line = refusal(&run_in(&folder, &format!("--mock {name} info"))).to_owned();
        let what = if name == "lime" { "a lime dump" } else { "an elf file" };
        assert!(line.starts_with(&format!("cannot use {name}: it is {what}; --mock takes raw RAM")), "{line}");
    }
    fs::write(folder.join("zst"), zstd::encode_all(&page(7)[..], 0).unwrap()).unwrap();
    let line = refusal(&run_in(&folder, "--mock zst info")).to_owned();
    assert!(line.starts_with("cannot use zst: it is compressed with zstd: decompress it first (zstd -d)"), "{line}");
}

#[test]
fn usual_beginnings_of_ram_are_not_foreign() {
    let folder = folder("foreign-not");
    // Zeros; the first interrupt vectors that SeaBIOS and other BIOSes leave; a kernel; text.
    for start in [&[0_u8; 16][..], b"\x53\xFF\0\xF0\x53\xFF\0\xF0", b"\xF3\xEE\0\xF0", b"MZ\xEA\x07", b"Lorem ipsum"] {
        fs::write(folder.join("ram"), whole_frames(0, start)).unwrap();
        assert!(run_in(&folder, "--mock ram diff ram").status.success(), "{start:?}");
    }
    // The end of a boot sector, and the magic number of ext4 without the rest of a superblock.
    for (at, bytes) in [(510, b"\x55\xAA"), (1080, b"\x53\xEF")] {
        fs::write(folder.join("ram"), whole_frames(at, bytes)).unwrap();
        assert!(run_in(&folder, "--mock ram diff ram").status.success(), "{bytes:?}");
    }
}
