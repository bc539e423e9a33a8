//! The last addresses: virtual ones of 64 bits, and physical ones of the last frame.

use xenmap::mock::{MockDomain, MockHost};
use xenmap::{FRAME_SIZE, Gfn, Guest, GuestKind};

use crate::args::{PatternArgs, SearchArgs};
use crate::canvas::{Canvas, Shade};
use crate::harness::*;
use crate::pattern::Pattern;
use crate::ram::Ram;
use crate::sheet::Sheet;
use crate::{map, said, search};

/// Makes four levels of page tables in frames 1 to 4, which map the last page to frame 9 and the one before to frame 7.
fn ram_with_the_last_pages(test: &str, last_page: &[u8]) -> std::path::PathBuf {
    let folder = folder(test);
    let present = |pfn| (frame(pfn) | 3).to_le_bytes();
    let (second, third, fourth, pages) = (present(2), present(3), present(4), [present(7), present(9)].concat());
    let last = frame(1) - 8;
    ram(
        &folder,
        &[
            (frame(1) + last, &second),
            (frame(2) + last, &third),
            (frame(3) + last, &fourth),
            (frame(4) + last - 8, &pages),
            (frame(7), &pattern(FRAME_SIZE)),
            (frame(9), last_page),
        ],
    );
    folder
}

fn read(folder: &std::path::Path, args: &str) -> String {
    let output = run_in(folder, &format!("--mock ram read --virtual --cr3 0x1000 {args}"));
    assert_eq!(text(&output.stderr), "", "{args}");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn read_shows_the_last_virtual_bytes() {
    let folder = ram_with_the_last_pages("last-virtual", &[b'z'; FRAME_SIZE]);
    let end = "10000000000000000\n";
    for (args, last_row) in [
        ("0xffffffffffffffff 1", "ffffffffffffffff  7a                                                |z|\n"),
        (
            "0xfffffffffffffff0 16",
            "fffffffffffffff0  7a 7a 7a 7a 7a 7a 7a 7a  7a 7a 7a 7a 7a 7a 7a 7a  |zzzzzzzzzzzzzzzz|\n",
        ),
        ("0xffffffffffffffef 17", "ffffffffffffffff  7a                                                |z|\n"),
        ("0xffffffffffffeff8 4104", "fffffffffffffff8  7a 7a 7a 7a 7a 7a 7a 7a                           |zzzzzzzz|\n"),
    ] {
        let shown = read(&folder, args);
        assert!(shown.ends_with(&[last_row, end].concat()), "{args}: {shown}");
    }
    assert_eq!(read(&folder, "0xffffffffffffffff 1 --binary"), "z");
    // Before the last byte, the end has 16 digits.
    assert!(read(&folder, "0xfffffffffffffffe 1").ends_with("\nffffffffffffffff\n"));
}

#[test]
fn bytes_past_the_last_virtual_address_are_refused() {
    let folder = ram_with_the_last_pages("past-virtual", &[b'z'; FRAME_SIZE]);
    for args in
        ["read 0xffffffffffffffff 2", "read 1 0xffffffffffffffff --binary", "write 0xffffffffffffffff --hex aabb"]
    {
        let output = run_in(&folder, &format!("--mock ram {args} --virtual --cr3 0x1000"));
        assert!(!text(&output.stderr).contains("panicked"), "{args}: {}", text(&output.stderr));
        refusal(&output);
    }
}

/// Makes a guest with one frame, the last possible one, which ends with this text.
fn guest_at_the_top(host: &MockHost, text: &[u8]) -> MockDomain {
    let domain = host.create_domain(GuestKind::Hvm, 0);
    domain.populate(&[Gfn::MAX]);
    domain.write(Gfn::MAX, FRAME_SIZE - text.len(), text);
    domain
}

#[test]
fn last_frame_is_mapped_and_searched() {
    let host = MockHost::new();
    let domain = guest_at_the_top(&host, b"canary");
    let memory = host.open().unwrap();
    let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
    let args = SearchArgs::default();

    let mut out = Vec::new();
    map::map(&ram, args, true, &mut out).unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(shown["extents"][0]["last"], (1_u64 << 52) - 1);

    let patterns = Pattern::all(&PatternArgs { text: vec!["canary".to_owned()], ..PatternArgs::default() }).unwrap();
    let mut out = Vec::new();
    let outcome = search::search(&ram, &patterns, args, search::Format::default(), &mut out).unwrap();
    assert!(matches!(outcome, search::Outcome::Found));
    assert_eq!(text(&out), "0xffffffffffffa\n");
    assert_eq!(said(), [""; 0]);
}

#[test]
fn last_frame_is_drawn() {
    let (first, last, all) = (0..1, Gfn::MAX.get()..1 << 40, 0..1 << 40);
    for ranges in [std::slice::from_ref(&last), &[first, last.clone()], &[all]] {
        let mut canvas = Canvas::new(ranges).unwrap();
        canvas.draw(last.clone(), Shade::Data);
        let sheet = Sheet::new(&canvas).unwrap();
        sheet.png().unwrap();
        let mut out = Vec::new();
        canvas.legend(sheet.top, &mut out).unwrap();
        assert!(text(&out).contains(" to 0xfffffffffffff\n"), "{}", text(&out));
    }
}
