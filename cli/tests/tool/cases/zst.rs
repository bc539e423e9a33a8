//! `xenmap diff` and `picture --since` on dumps that are compressed with zstd.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use xenmap::FRAME_SIZE;

use crate::dumps::*;
use crate::harness::*;

const SAME: &str = "3 the same, 0 different, 0 only in OLD, 0 only in NEW\n";

fn pages() -> Pages {
    [(0, page(b'a')), (1, page(0)), (2, page(b'b'))].into()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 0).unwrap()
}

fn zst_with_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 0).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns a frame that readers of zstd skip.
fn skippable(content: &[u8]) -> Vec<u8> {
    [&0x184D_2A53_u32.to_le_bytes(), &u32::try_from(content.len()).unwrap().to_le_bytes(), content].concat()
}

/// Returns the refusal of a file with this content.
#[track_caller]
fn refused(folder: &Path, content: &[u8]) -> String {
    fs::write(folder.join("zst"), content).unwrap();
    fs::write(folder.join("raw"), raw(&pages())).unwrap();
    let line = refusal(&run_in(folder, "diff zst raw")).to_owned();
    line.strip_prefix("cannot use zst as a dump: ").unwrap().to_owned()
}

#[test]
fn compressed_dump_of_each_format_is_read() {
    let folder = folder("zst-formats");
    fs::write(folder.join("raw"), raw(&pages())).unwrap();
    for (name, make) in FORMATS {
        let mut changed = pages();
        changed.insert(2, page(b'c'));
        fs::write(folder.join("zst"), zst(&make(&pages()))).unwrap();
        fs::write(folder.join("changed"), zst(&make(&changed))).unwrap();
        assert_eq!(text(&run_in(&folder, "diff zst raw").stdout), SAME, "{name}");
        assert_eq!(text(&run_in(&folder, "diff raw zst").stdout), SAME, "{name}");
        let output = run_in(&folder, "diff zst changed");
        let expected = "0x2000 to 0x2fff: 1 page different\n";
        assert!(text(&output.stdout).starts_with(expected), "{name}: {}", text(&output.stdout));
        assert_eq!(output.status.code(), Some(1));
        let picture = run_in(&folder, &format!("--mock raw picture {name}.png --since changed"));
        assert!(text(&picture.stdout).contains("\norange          1  changed since the dump\n"), "{name}");
    }
}

#[test]
fn dump_that_the_tool_has_compressed_is_read() {
    let folder = folder("zst-own");
    ram(&folder, &[(0, &pattern(5 * FRAME_SIZE)), (frame(9), &page(0)), (frame(9000), b"x")]);
    for format in ["raw", "elf", "lime", "xen"] {
        let args = format!("--mock ram dump {format} --format {format} --compress zstd");
        assert!(run_in(&folder, &args).status.success());
        let output = run_in(&folder, &format!("--mock ram diff {format}"));
        assert!(text(&output.stdout).ends_with(" the same, 0 different, 0 only in OLD, 0 only in NEW\n"), "{format}");
        assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)), "{format}");
    }
}

#[test]
fn damage_to_a_dump_that_the_tool_has_compressed_is_noticed() {
    let folder = folder("zst-damaged");
    ram(&folder, &[(0, &pattern(FRAME_SIZE))]);
    assert!(run_in(&folder, "--mock ram dump --compress zstd --format lime out").status.success());
    let mut dump = fs::read(folder.join("out")).unwrap();
    let middle = dump.len() / 2;
    dump[middle] ^= 1;
    assert!(refused(&folder, &dump).contains("cannot be decompressed"));
}

#[test]
fn frames_of_zstd_are_read_one_after_the_other_and_skippable_ones_are_skipped() {
    let folder = folder("zst-frames");
    fs::write(folder.join("raw"), raw(&pages())).unwrap();
    let dump = lime(&pages());
    let (first, second) = dump.split_at(5000);
    for content in [
        [zst(first), zst(second)].concat(),
        [skippable(b"size"), zst(first), skippable(b""), zst(second), skippable(b"index")].concat(),
        [zst(b""), zst(&dump)].concat(),
    ] {
        fs::write(folder.join("zst"), content).unwrap();
        assert_eq!(text(&run_in(&folder, "diff zst raw").stdout), SAME);
    }
}

#[test]
fn compressed_file_that_does_not_hold_a_dump_is_refused() {
    let folder = folder("zst-bad");
    let good = zst(&lime(&pages()));
    let mut damaged = zst_with_checksum(&lime(&[(0, *pattern(FRAME_SIZE).first_chunk().unwrap())].into()));
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xFF;
    let kdump = [b"DISKDUMP".to_vec(), vec![0; 4088]].concat();
    for (content, expected) in [
        (good[..good.len() - 1].to_vec(), "it is compressed with zstd, and cut off"),
        (b"\x28\xb5\x2f\xfd".to_vec(), "it is compressed with zstd, and cut off"),
        (b"\x28\xb5\x2f\xfd and so on".to_vec(), "it is compressed with zstd, and cannot be decompressed: "),
        ([skippable(b""), b"\x04\x22\x4D\x18lz4 ".to_vec()].concat(), "it is compressed with zstd, and cannot be"),
        (damaged, "it is compressed with zstd, and cannot be decompressed: "),
        (zst(b""), "it is compressed with zstd, and there is nothing in it"),
        (skippable(b"nothing"), "it is compressed with zstd, and there is nothing in it"),
        (zst(&good), "once decompressed, it is still compressed with zstd: decompress it first (zstd -d)"),
        (zst(&kdump), "once decompressed, it is a diskdump"),
        (zst(b"some text"), "once decompressed, it is of no known kind, and not raw RAM: its length"),
    ] {
        let line = refused(&folder, &content);
        assert!(line.starts_with(expected), "{expected}: {line}");
    }
    let line = refused(&folder, &zst(&kdump));
    assert!(
        line.ends_with("if it is raw RAM all the same, decompress it first (zstd -d) and give --raw old"),
        "{line}"
    );
}

#[test]
fn bytes_after_a_compressed_dump_are_told_from_a_damaged_one() {
    let folder = folder("zst-more");
    let good = zst_with_checksum(&lime(&pages()));
    let two = [skippable(b"size"), good.clone(), good.clone()].concat();
    for (whole, more) in [(&good, &b"x"[..]), (&good, b"and more"), (&good, &[0; 5000]), (&two, b"\x28\xb5\x2f\xfe")] {
        let expected = format!("it is compressed with zstd, and other bytes follow it at byte {}", whole.len());
        let line = refused(&folder, &[whole, more].concat());
        assert!(line.starts_with(&expected), "{expected}: {line}");
    }
    // These may begin the next part of the dump, which is cut off.
    for more in [&b"\x28"[..], b"\x28\xb5\x2f\xfd", b"\x53\x2a\x4d\x18\x01\0\0\0"] {
        let line = refused(&folder, &[&good, more].concat());
        assert_eq!(line, "it is compressed with zstd, and cut off", "{more:?}");
    }
}

#[test]
fn dump_that_takes_much_memory_to_decompress_is_refused() {
    let folder = folder("zst-window");
    for (window, is_read) in [(27, true), (28, false), (31, false)] {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.window_log(window).unwrap();
        encoder.write_all(&lime(&pages())).unwrap();
        fs::write(folder.join("zst"), encoder.finish().unwrap()).unwrap();
        let output = run_in(&folder, "diff zst zst");
        if is_read {
            assert_eq!(text(&output.stdout), SAME);
        } else {
            let expected = "cannot use zst as a dump: it is compressed with zstd, and takes more than 128 MiB of memory \
                            to decompress: decompress it first (zstd -d --long=31)";
            assert_eq!(refusal(&output), expected);
        }
    }
}

#[test]
fn folder_without_room_for_what_is_decompressed_is_named() {
    let folder = folder("zst-room");
    fs::write(folder.join("zst"), zst(&lime(&[(0, *pattern(FRAME_SIZE).first_chunk().unwrap())].into()))).unwrap();
    let output = tool().current_dir(&folder).env("TMPDIR", "nowhere").args(["diff", "zst", "zst"]).output().unwrap();
    let expected = "cannot use zst as a dump: cannot decompress it into nowhere: No such file or directory (os error 2); \
                    set TMPDIR to a folder with room for it, or decompress it first";
    assert_eq!(refusal(&output), expected);

    // Files may have 1 or 2 KiB, depending on the shell. /tmp may be in memory, which is scarce in dom0.
    let limited = "trap '' XFSZ; ulimit -f 2; exec \"$0\" diff zst zst";
    for (temporary, named) in [(Some("."), "."), (None, "/var/tmp"), (Some(""), "/var/tmp")] {
        let mut command = shell(&folder, limited);
        match temporary {
            Some(temporary) => command.env("TMPDIR", temporary),
            None => command.env_remove("TMPDIR"),
        };
        let line = refusal(&command.output().unwrap()).to_owned();
        let expected = format!("cannot use zst as a dump: cannot decompress it into {named}: File too large");
        assert!(line.starts_with(&expected), "{expected}: {line}");
    }
}

#[test]
fn decompression_leaves_nothing_and_takes_no_room_for_zeros() {
    let folder = folder("zst-sparse");
    let temporary = folder.join("tmp");
    fs::create_dir(&temporary).unwrap();
    // 1 GiB, nearly all of it zeros.
    ram(&folder, &[(0, b"x"), (1 << 30, &page(b'y'))]);
    let dump = run_in(&folder, "--mock ram dump zst --compress zstd");
    assert!(dump.status.success());
    let limited = "trap '' XFSZ; ulimit -f 2097160; exec \"$0\" --mock ram diff zst";
    let mut command = std::process::Command::new("sh");
    command.current_dir(&folder).env("TMPDIR", &temporary).args(["-c", limited]).arg(tool().get_program());
    let output = command.output().unwrap();
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("2 the same, 0 different, 0 only in OLD, 0 only in NEW\n", "")
    );
    assert!(names(&temporary).is_empty());
    assert!(folder.join("zst").metadata().unwrap().size() < 1 << 20);
}
