//! The errors of device model operations, without the library.

use xenmap::{Domid, ForeignMemory, GuestKind, Protection, Resource};

use crate::common::Host;
use crate::common::bytes::Bytes;
use crate::common::program::Step;
use crate::raw::{
    CREATE_SERVER, DESTROY_SERVER, MAP_RANGE, SERVER_INFO, SERVER_STATE, UNMAP_RANGE, destroy_fields, dm_op,
    dm_op_with, range_fields, state_fields,
};
use crate::requests::on_each_x86_host;

const SET_PCI_INTX_LEVEL: u32 = 8;
const SET_ISA_IRQ_LEVEL: u32 = 9;
const SET_PCI_LINK_ROUTE: u32 = 10;
const MODIFIED_MEMORY: u32 = 11;
const SET_MEM_TYPE: u32 = 12;
const INJECT_EVENT: u32 = 13;
const INJECT_MSI: u32 = 14;
const SET_IRQ_LEVEL: u32 = 19;
const NR_VCPUS: u32 = 20;

const PROGRAM: [Step; 1] = [Step::In { port: 0x500, size: 4 }];

/// What is right or wrong with an operation, its number, its structure, and the errno.
type Row = (&'static str, u32, Bytes, i32);

fn fields() -> Bytes {
    Bytes::default()
}

/// Makes operations one after the other, and compares their errnos.
fn check(memory: &ForeignMemory, domid: Domid, rows: &[Row]) {
    for (what, op, fields, errno) in rows {
        let answer = dm_op(memory, domid, *op, fields);
        assert_eq!(answer.map_or_else(|errno| errno, |_| 0), *errno, "operation {op}: {what}");
    }
}

/// Runs a test with an HVM guest and a PVH guest, which have a vcpu that has never run.
fn with_each_target(test: impl Fn(&Host, GuestKind, &ForeignMemory, Domid)) {
    on_each_x86_host(|host| {
        for kind in [GuestKind::Pvh, GuestKind::Hvm] {
            let running = host.create_running(kind, &[&PROGRAM]);
            test(host, kind, &host.open(), running.guest.domid());
        }
    });
}

#[test]
fn domain_that_can_have_no_device_model_is_refused() {
    on_each_x86_host(|host| {
        let memory = host.open();
        let pv = host.create(GuestKind::Pv, 4);
        for (domid, errno) in [
            (host.unused_domid(), libc::ESRCH),
            (Domid::new(0).unwrap(), libc::EPERM),
            (xenmap::raw::domid(0x7FF0), libc::ESRCH), // DOMID_SELF
            (pv.domid(), libc::EINVAL),
        ] {
            check(&memory, domid, &[("wrong domain", CREATE_SERVER, fields().u32(0).u16(0), errno)]);
        }
    });
}

#[test]
fn operation_that_does_not_exist_is_refused() {
    with_each_target(|_, _, memory, domid| {
        for op in [0, SET_IRQ_LEVEL, 21, 99] {
            check(memory, domid, &[("no such operation", op, fields().up_to(64), libc::EOPNOTSUPP)]);
        }
    });
}

#[test]
fn buffers_are_checked() {
    with_each_target(|_, _, memory, domid| {
        let create = fields().u32(CREATE_SERVER).u32(0).u32(0).u16(0).0;
        let with_buffers = |count: usize| {
            let mut buffers = vec![create.clone(); count];
            let mut buffers: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
            dm_op_with(memory, domid, &mut buffers)
        };
        assert_eq!([0, 3, 16, 17].map(with_buffers), [Ok(()), Err(libc::E2BIG), Err(libc::E2BIG), Err(libc::E2BIG)]);
        let with_length = |len: usize| {
            let mut buffer = create.clone();
            buffer.resize(len, 0);
            dm_op_with(memory, domid, &mut [&mut buffer])
        };
        assert_eq!([7, 8, 13].map(with_length), [Err(libc::EFAULT); 3]);
        assert_eq!([14, 15, 4096, 4097].map(with_length), [Ok(()), Ok(()), Ok(()), Err(libc::E2BIG)]);
        let mut padded = fields().u32(CREATE_SERVER).u32(1).u32(0).u16(0).0;
        assert_eq!(dm_op_with(memory, domid, &mut [&mut padded]), Err(libc::EINVAL));
    });
}

#[test]
fn servers_are_created_enabled_and_destroyed_by_number() {
    with_each_target(|_, _, memory, domid| {
        let create = |buffer: u8| fields().u8(buffer).up_to(6);
        let mut rows = vec![
            ("no such kind of buffer", CREATE_SERVER, create(3), libc::EINVAL),
            ("padding", CREATE_SERVER, fields().u8(0).u8(1).up_to(6), libc::EINVAL),
        ];
        rows.extend((0..8).map(|id| ("a server", CREATE_SERVER, create(id % 3), 0)));
        rows.extend([
            ("the ninth", CREATE_SERVER, create(0), libc::ENOSPC),
            ("enable", SERVER_STATE, state_fields(7, 1), 0),
            ("enable twice", SERVER_STATE, state_fields(7, 1), 0),
            ("enable with another number", SERVER_STATE, state_fields(7, 2), 0),
            ("disable", SERVER_STATE, state_fields(7, 0), 0),
            ("disable twice", SERVER_STATE, state_fields(7, 0), 0),
            ("padding", SERVER_STATE, fields().u16(7).u8(0).u8(1), libc::EINVAL),
            ("padding", DESTROY_SERVER, fields().u16(7).u16(1), libc::EINVAL),
            ("destroy", DESTROY_SERVER, destroy_fields(7), 0),
            ("destroy twice", DESTROY_SERVER, destroy_fields(7), libc::ENOENT),
            ("no such server", SERVER_STATE, state_fields(7, 1), libc::ENOENT),
            ("no such server", SERVER_INFO, fields().u16(7).u16(1).up_to(24), libc::ENOENT),
            ("no such server", MAP_RANGE, range_fields(7, 0, 1, 2), libc::ENOENT),
            ("no such server", UNMAP_RANGE, range_fields(7, 0, 1, 2), libc::ENOENT),
            ("no such number", DESTROY_SERVER, destroy_fields(8), libc::ENOENT),
            ("no such number", DESTROY_SERVER, destroy_fields(0xFFFF), libc::ENOENT),
        ]);
        check(memory, domid, &rows);
    });
}

#[test]
fn information_about_a_server_has_the_port_of_its_buffer() {
    with_each_target(|_, _, memory, domid| {
        let info = |id: u16, flags: u16| fields().u16(id).u16(flags).u32(0x1234).up_to(24);
        check(
            memory,
            domid,
            &[
                ("a server without a buffer", CREATE_SERVER, fields().up_to(6), 0),
                ("a server with one", CREATE_SERVER, fields().u8(2).up_to(6), 0),
                ("no such flag", SERVER_INFO, info(0, 2), libc::EINVAL),
            ],
        );
        let port = |id| dm_op(memory, domid, SERVER_INFO, &info(id, 1)).unwrap()[4..8].to_vec();
        assert_eq!(port(0), 0x1234_u32.to_ne_bytes(), "without a buffer there is no port");
        assert!(![0, 0x1234_u32].contains(&u32::from_ne_bytes(port(1).try_into().unwrap())));
        let page = Resource::IoreqServer { id: 0 };
        let _mapping = memory.map_resource(domid, Protection::ReadWrite, page, 1, 1).unwrap();
        check(memory, domid, &[("the page is mapped as a resource", SERVER_INFO, info(0, 0), libc::EPERM)]);
    });
}

#[test]
fn frames_of_a_server_are_its_buffer_and_its_requests() {
    with_each_target(|_, _, memory, domid| {
        check(
            memory,
            domid,
            &[
                ("a server without a buffer", CREATE_SERVER, fields().up_to(6), 0),
                ("a server with one", CREATE_SERVER, fields().u8(2).up_to(6), 0),
            ],
        );
        for (id, first, count, expected) in [
            (0, 1, 1, 0),
            (0, 0, 1, libc::ENOENT),
            (0, 0, 2, libc::ENOENT),
            (0, 2, 1, libc::EINVAL),
            (0, 0, 3, libc::ENOENT), // it fails at the first
            (1, 0, 3, libc::EINVAL),
            (1, 0, 2, 0),
            (2, 1, 1, libc::ENOENT),
        ] {
            let mapped = memory.map_resource(domid, Protection::ReadWrite, Resource::IoreqServer { id }, first, count);
            assert_eq!(mapped.map_or_else(|e| e.errno(), |_| 0), expected, "server {id}, {count} from {first}");
        }
        for id in [0, 7] {
            assert_eq!(memory.resource_size(domid, Resource::IoreqServer { id }).unwrap(), 2, "Xen does not look");
        }
    });
}

#[test]
fn ranges_are_checked_within_a_server() {
    with_each_target(|_, _, memory, domid| {
        let range = |id, type_, first, last| range_fields(id, type_, first, last);
        let mut rows = vec![
            ("a server", CREATE_SERVER, fields().up_to(6), 0),
            ("another server", CREATE_SERVER, fields().up_to(6), 0),
            ("the end is before the start", MAP_RANGE, range(0, 0, 2, 1), libc::EINVAL),
            ("the end is before the start", UNMAP_RANGE, range(0, 0, 2, 1), libc::EINVAL),
            ("no such type", MAP_RANGE, range(0, 3, 1, 2), libc::EINVAL),
            ("no such type", UNMAP_RANGE, range(0, 3, 1, 2), libc::EINVAL),
            ("padding", MAP_RANGE, fields().u16(0).u16(1).u32(0).u64(1).u64(2), libc::EINVAL),
            ("not mapped", UNMAP_RANGE, range(0, 0, 1, 2), libc::ENOENT),
            ("a range", MAP_RANGE, range(0, 0, 0x10, 0x1F), 0),
            ("the same", MAP_RANGE, range(0, 0, 0x10, 0x1F), libc::EEXIST),
            ("overlap", MAP_RANGE, range(0, 0, 0x1F, 0x20), libc::EEXIST),
            ("the same numbers of another type", MAP_RANGE, range(0, 1, 0x10, 0x1F), 0),
            ("the same in another server", MAP_RANGE, range(1, 0, 0x10, 0x1F), 0),
            ("more than what is mapped", UNMAP_RANGE, range(0, 0, 0x1F, 0x20), libc::ENOENT),
            ("a part", UNMAP_RANGE, range(0, 0, 0x18, 0x18), 0),
            ("over the hole", UNMAP_RANGE, range(0, 0, 0x10, 0x1F), libc::ENOENT),
            ("the rest", UNMAP_RANGE, range(0, 0, 0x10, 0x17), 0),
            ("the rest", UNMAP_RANGE, range(0, 0, 0x19, 0x1F), 0),
            ("the guest's RAM", MAP_RANGE, range(0, 1, 0x2000, 0x2FFF), 0),
            ("no port", MAP_RANGE, range(0, 0, 70_000, 70_000), 0),
            ("all of it", MAP_RANGE, range(0, 2, 0, 0xFFFF_FFFF), 0),
            ("the last address", MAP_RANGE, range(0, 1, u64::MAX, u64::MAX), 0),
        ];
        // Adjacent ranges are one, so these leave gaps.
        rows.extend((0..256).map(|n| ("one of 256", MAP_RANGE, range(1, 1, 2 * n, 2 * n), 0)));
        rows.push(("the 257th", MAP_RANGE, range(1, 1, 0x1000, 0x1000), libc::ENOMEM));
        check(memory, domid, &rows);
    });
}

#[test]
fn messages_are_checked() {
    with_each_target(|host, _, memory, domid| {
        let message = |data, address| fields().u32(data).u32(0).u64(address);
        // The guests of the mock have their interrupt controllers on.
        let not_started = if matches!(host, Host::Mock(_)) { 0 } else { libc::ESRCH };
        check(
            memory,
            domid,
            &[
                ("neither vector nor destination", INJECT_MSI, message(0, 0xFEE0_0000), libc::ERANGE),
                ("low vector", INJECT_MSI, message(0x10, 0xFEE0_0000), 0),
                ("no such vcpu", INJECT_MSI, message(0x30, 0xFEE0_5000), 0),
                ("other address", INJECT_MSI, message(0x30, 0x1000_0000), 0),
                ("SMI", INJECT_MSI, message(0x230, 0xFEE0_0000), libc::EINVAL),
                ("ExtINT", INJECT_MSI, message(0x730, 0xFEE0_0000), libc::EINVAL),
                ("lowest priority, and no vcpu's APIC is on", INJECT_MSI, message(0x130, 0xFEE0_0000), not_started),
                ("padding", INJECT_MSI, fields().u32(0x30).u32(1).u64(0xFEE0_0000), libc::EINVAL),
            ],
        );
    });
}

#[test]
fn lines_that_do_not_exist_are_refused() {
    with_each_target(|_, kind, memory, domid| {
        let line = |segment, bus, device, pin, level| fields().u16(segment).u8(bus).u8(device).u8(pin).u8(level);
        check(
            memory,
            domid,
            &[
                ("segment", SET_PCI_INTX_LEVEL, line(1, 0, 6, 0, 0), libc::EINVAL),
                ("bus", SET_PCI_INTX_LEVEL, line(0, 1, 6, 0, 0), libc::EINVAL),
                ("device", SET_PCI_INTX_LEVEL, line(0, 0, 32, 0, 0), libc::EINVAL),
                ("pin", SET_PCI_INTX_LEVEL, line(0, 0, 6, 4, 0), libc::EINVAL),
                ("level", SET_PCI_INTX_LEVEL, line(0, 0, 6, 0, 2), libc::EINVAL),
            ],
        );
        // Never to a PVH guest, which has no legacy interrupt controller: Xen does not check that.
        if kind == GuestKind::Hvm {
            check(
                memory,
                domid,
                &[
                    ("irq", SET_ISA_IRQ_LEVEL, fields().u8(16).u8(0), libc::EINVAL),
                    ("level", SET_ISA_IRQ_LEVEL, fields().u8(7).u8(2), libc::EINVAL),
                ],
            );
        }
    });
}

#[test]
fn modified_memory_is_checked_only_while_it_is_logged() {
    on_each_x86_host(|host| {
        let running = host.create_running(GuestKind::Pvh, &[&PROGRAM]);
        let (memory, domid) = (host.open(), running.guest.domid());
        let modified = |extents: u32, opaque: u32, list: &[(u32, u64)]| {
            let mut argument = fields().u32(MODIFIED_MEMORY).u32(0).u32(extents).u32(opaque).0;
            let list = list.iter().fold(fields(), |list, &(count, first)| list.u32(count).u32(0).u64(first));
            dm_op_with(&memory, domid, &mut [&mut argument, &mut list.0.clone()])
        };
        let beyond_the_end = (1, 0x10_0000);
        assert_eq!(modified(1, 0, &[beyond_the_end]), Ok(()));
        assert_eq!(modified(1, 0, &[(0, 0)]), Ok(()));
        let mut alone = fields().u32(MODIFIED_MEMORY).u32(0).u32(1).u32(0).0;
        assert_eq!(dm_op_with(&memory, domid, &mut [&mut alone]), Err(libc::EINVAL));

        running.guest.log_dirty();
        assert_eq!(modified(1, 0, &[beyond_the_end]), Err(libc::EINVAL));
        assert_eq!(modified(1, 0, &[(0, 0)]), Err(libc::EINVAL));
        assert_eq!(modified(1, 1, &[(1, 0)]), Err(libc::EINVAL));
        assert_eq!(modified(2, 0, &[(1, 0)]), Err(libc::EINVAL), "the list is shorter");
        assert_eq!(dm_op_with(&memory, domid, &mut [&mut alone]), Err(libc::EINVAL));
        assert_eq!(modified(2, 0, &[(1, 3), (2, 7)]), Ok(()));
        let dirty: Vec<u64> = running.guest.take_dirty().iter().map(|gfn| gfn.get()).collect();
        assert_eq!(dirty, [3, 7, 8]);
    });
}

#[test]
fn vcpus_are_counted() {
    on_each_x86_host(|host| {
        for count in [1, 3] {
            let running = host.create_running(GuestKind::Pvh, &[&PROGRAM[..]].repeat(count));
            let answer = dm_op(&host.open(), running.guest.domid(), NR_VCPUS, &fields().u32(0)).unwrap();
            assert_eq!(answer, u32::try_from(count).unwrap().to_ne_bytes());
        }
    });
}

/// Operations that the library does not use. The mock does not have them.
#[test]
fn operations_that_the_mock_lacks_are_refused_by_it() {
    with_each_target(|host, kind, memory, domid| {
        let on_xen = |errno| if matches!(host, Host::Mock(_)) { libc::EOPNOTSUPP } else { errno };
        // nr, type, padding, first_pfn
        let type_of_ram = |type_| fields().u32(1).u16(type_).u16(0).u64(50);
        // vcpu; vector, type (software interrupt), length of the instruction; error; padding; cr2.
        let event = |vcpu| fields().u32(vcpu).u8(0x30).u8(4).u8(2).u8(0).u32(0).u32(0).u64(0);
        check(
            memory,
            domid,
            &[
                ("no such vcpu", INJECT_EVENT, event(1), on_xen(libc::EINVAL)),
                ("an event", INJECT_EVENT, event(0), on_xen(0)),
                ("another before the vcpu has taken it", INJECT_EVENT, event(0), on_xen(libc::EBUSY)),
                ("RAM becomes a device's memory", SET_MEM_TYPE, type_of_ram(2), on_xen(0)),
                ("and never RAM again", SET_MEM_TYPE, type_of_ram(0), on_xen(libc::EINVAL)),
            ],
        );
        // As for lines: never to a PVH guest.
        if kind == GuestKind::Hvm {
            check(
                memory,
                domid,
                &[
                    ("link", SET_PCI_LINK_ROUTE, fields().u8(4).u8(5), on_xen(libc::EINVAL)),
                    ("irq of a link", SET_PCI_LINK_ROUTE, fields().u8(0).u8(16), on_xen(libc::EINVAL)),
                ],
            );
        }
    });
}

#[test]
fn destroyed_guest_that_is_a_zombie_has_no_servers() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&PROGRAM]);
        let (memory, domid) = (host.open(), running.guest.domid());
        check(&memory, domid, &[("a server", CREATE_SERVER, fields().up_to(6), 0)]);
        let page = Resource::IoreqServer { id: 0 };
        let mapping = memory.map_resource(domid, Protection::ReadWrite, page, 1, 1).unwrap();
        running.guest.destroy();
        check(
            &memory,
            domid,
            &[
                ("gone", SERVER_STATE, state_fields(0, 1), libc::ENOENT),
                ("gone", DESTROY_SERVER, fields().u16(0).u16(0), libc::ENOENT),
            ],
        );
        assert_eq!(host.owned(domid), Some(0), "the page keeps a zombie");
        drop(mapping);
        check(&memory, domid, &[("no domain", DESTROY_SERVER, fields().u16(0).u16(0), libc::ESRCH)]);
    });
}
