//! Guests whose page tables are arbitrary.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use xenmap::{AddressSpace, GuestKind, PageTables, PagingMode};

use crate::common::{FRAME, Host, ReadOnly, on_each_host};

/// The guest's frames. Entries may also refer to the frames after these, which do not exist.
const FRAMES: u64 = 12;

/// Far more than all that is done with one guest takes.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn any_page_tables_are_at_most_an_error() {
    on_each_host(|host| {
        let entry = (0..FRAMES, any::<prop::sample::Index>(), 0..FRAMES + 2, any::<u64>(), 0..8_u32);
        let tables = (any::<u64>(), any::<u64>(), any::<u64>(), 0..4_usize);
        let strategy = (prop::collection::vec(entry, 0..200), tables, prop::collection::vec(any::<u64>(), 1..20));
        let cases = if matches!(host, Host::Mock(_)) { 48 } else { 8 };
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        let guest = host.create(GuestKind::Hvm, usize::try_from(FRAMES).unwrap());
        let memory = host.open();
        runner
            .run(&strategy, |(entries, (first, second, tcr, kind), addresses)| {
                for (frame, index, to, flags, whole) in entries {
                    // Most entries are present and refer to a frame that exists.
                    let entry = if whole == 0 { flags } else { flags & 0x80_0000_0000_0FFF | to << 12 | 1 };
                    let entry =
                        if whole == 1 { entry.to_ne_bytes().repeat(FRAME / 8) } else { entry.to_ne_bytes().into() };
                    let offset = if entry.len() == FRAME { 0 } else { index.index(FRAME / 8) * 8 };
                    guest.write(guest.gfns()[usize::try_from(frame).unwrap()], offset, &entry);
                }
                let top = |register: u64| (register % FRAMES) << 12;
                let tables = match kind {
                    0 => PageTables::X86 { cr3: top(first), mode: PagingMode::Pae },
                    1 => PageTables::X86 { cr3: top(first), mode: PagingMode::FourLevels },
                    2 => PageTables::X86 { cr3: top(first), mode: PagingMode::FiveLevels },
                    _ => PageTables::Arm64 { ttbr0: top(first), ttbr1: top(second), tcr },
                };
                let began = Instant::now();
                let space = AddressSpace::new(xenmap::Guest::open(&memory, guest.domid()).unwrap(), tables);
                for address in addresses {
                    for address in [address, address >> 32, address.cast_signed().wrapping_shr(17).cast_unsigned()] {
                        let translated = space.translate(address);
                        let mut bytes = [0; 5000];
                        let read = space.read_some(address, &mut bytes);
                        prop_assert!(translated.is_ok() || read.is_err(), "{address:#x}: {read:?}");
                        let _ = space.read_c_string(address, 100);
                        let _ = space.follow(address, &[8, 16, 24]);
                        let _ = space.map(ReadOnly, address, 10_000);
                        if let (Ok(first), Ok(again)) = (translated, space.translate(address)) {
                            prop_assert_eq!(first, again);
                        }
                    }
                }
                let mut end = 0;
                for extent in space.extents(..).take(300).flatten() {
                    prop_assert!(extent.address >= end && extent.len % extent.page_size == 0, "{extent:x?}");
                    end = extent.address.saturating_add(extent.len - 1);
                }
                prop_assert!(began.elapsed() < LONG);
                Ok(())
            })
            .unwrap();
    });
}
