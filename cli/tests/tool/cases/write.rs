//! `xenmap write`, on simulated guests whose memory is checked afterwards.

use xenmap::mock::{MockDomain, MockHost};
use xenmap::{FRAME_SIZE, Gfn, Guest, GuestKind};

use crate::args::{BytesArgs, SpaceArgs};
use crate::kernel::Kernel;
use crate::pattern::exact_bytes;
use crate::ram::Ram;
use crate::space::Space;
use crate::write;

/// Writes as the command does, and returns what it prints or its error.
fn write(host: &MockHost, domain: &MockDomain, cr3: Option<u64>, place: (u64, &[u8])) -> Result<String, String> {
    let memory = host.open().unwrap();
    let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
    let args = SpaceArgs { r#virtual: cr3.is_some(), cr3, ..SpaceArgs::default() };
    let space = Space::new(&ram, &args, &Kernel::new(&ram)).unwrap();
    let mut out = Vec::new();
    write::write(&ram, &space, place, false, &mut out).map_err(|e| e.to_string())?;
    Ok(String::from_utf8(out).unwrap())
}

fn gfn(pfn: u64) -> Gfn {
    Gfn::new(pfn).unwrap()
}

#[test]
fn bytes_are_written_across_a_frame_border_and_nowhere_else() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Pvh, 3);
    let shown = write(&host, &domain, None, (0xFFE, b"canary"));
    assert_eq!(shown, Ok("6 bytes written, 0xffe to 0x1003\n".to_owned()));
    let ram: Vec<u8> = domain.frames().iter().flat_map(|&gfn| domain.read(gfn, 0, FRAME_SIZE)).collect();
    let expected = [&[0; 0xFFE], b"canary".as_slice(), &[0; 3 * FRAME_SIZE - 0x1004]].concat();
    assert!(ram == expected);
}

#[test]
fn bytes_are_written_through_the_page_tables_up_to_the_last_address() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Pvh, 10);
    // Four levels in frames 1 to 4, whose last entries lead to frame 7 for the last page but one, and to 9 for the last.
    for (table, entry, to) in [(1, 511, 2), (2, 511, 3), (3, 511, 4), (4, 510, 7), (4, 511, 9)] {
        domain.write(gfn(table), entry * 8, &(to << 12 | 3_u64).to_le_bytes());
    }
    let shown = write(&host, &domain, Some(0x1000), (0xFFFF_FFFF_FFFF_EFFE, b"canary"));
    assert_eq!(shown, Ok("6 bytes written, 0xffffffffffffeffe to 0xfffffffffffff003\n".to_owned()));
    assert_eq!((domain.read(gfn(7), 0xFFE, 2), domain.read(gfn(9), 0, 4)), (b"ca".to_vec(), b"nary".to_vec()));

    let shown = write(&host, &domain, Some(0x1000), (u64::MAX, b"z"));
    assert_eq!(shown, Ok("1 byte written, 0xffffffffffffffff to 0xffffffffffffffff\n".to_owned()));
    assert_eq!(domain.read(gfn(9), FRAME_SIZE - 1, 1), b"z");
}

#[test]
fn nothing_is_written_if_a_part_cannot_be() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Pvh, 3);
    domain.balloon_out(gfn(1));
    let error = write(&host, &domain, None, (0xFFF, b"xy")).unwrap_err();
    assert_eq!(error, "cannot write at 0x1000: no RAM there; nothing was written");
    assert_eq!(domain.read(gfn(0), 0xFFF, 1), [0]);
    let error = write(&host, &domain, None, (u64::MAX, b"xy")).unwrap_err();
    assert_eq!(error, "ADDRESS and LEN reach past the last address");
    let error = write(&host, &domain, None, ((1 << 52) - 1, b"xy")).unwrap_err();
    assert!(error.contains("the highest is 0xffffffffff") || error.contains("no RAM there"), "{error}");
}

#[test]
fn bytes_to_write_are_given_in_any_form() {
    let none = BytesArgs { text: None, hex: None, utf16: None };
    let of = |args: BytesArgs| exact_bytes(&args).map_err(|e| e.to_string());
    assert_eq!(of(BytesArgs { text: Some("\u{e9}".to_owned()), ..none.clone() }), Ok(vec![0xC3, 0xA9]));
    assert_eq!(of(BytesArgs { hex: Some("c3 A9".to_owned()), ..none.clone() }), Ok(vec![0xC3, 0xA9]));
    assert_eq!(of(BytesArgs { utf16: Some("\u{e9}".to_owned()), ..none.clone() }), Ok(vec![0xE9, 0]));
    assert_eq!(of(BytesArgs { utf16: Some(String::new()), ..none }), Err("there is nothing to write".to_owned()));
}
