//! Interrupts to the guest.

use xenmap::device_model::{Interrupts, Sbdf};
use xenmap::{Error, GuestKind, Result};

use crate::common::Host;
use crate::common::program::Step;
use crate::requests::on_each_x86_host;

/// Runs a test with a guest of a kind, by a restricted handle.
fn with_guest(host: &Host, kind: GuestKind, test: impl Fn(&Interrupts)) {
    let running = host.create_running(kind, &[&[Step::In { port: 0x500, size: 4 }]]);
    test(&Interrupts::new(running.open(host).0.guest().clone()));
}

fn device(bus: u8, device: u8) -> Sbdf {
    Sbdf::new(0, bus, device, 0).unwrap()
}

fn errno<T>(result: Result<T>) -> i32 {
    match result {
        Err(Error::DmOp { source, .. }) => source.raw_os_error().unwrap(),
        Err(e) => panic!("{e}"),
        Ok(_) => 0,
    }
}

#[test]
fn message_is_sent_or_refused() {
    on_each_x86_host(|host| {
        for kind in [GuestKind::Pvh, GuestKind::Hvm] {
            with_guest(host, kind, |interrupts| {
                for (address, data, expected) in [
                    (0xFEE0_0000, 0x30, 0),
                    (0xFEE0_0000, 0, libc::ERANGE),
                    (0xFEE0_0000, 0x230, libc::EINVAL), // an SMI
                ] {
                    assert_eq!(errno(interrupts.send_msi(address, data)), expected, "{kind:?} {data:#x}");
                }
            });
        }
    });
}

#[test]
fn lines_of_an_hvm_guest_are_raised_and_lowered() {
    on_each_x86_host(|host| {
        with_guest(host, GuestKind::Hvm, |interrupts| {
            for line in
                [interrupts.pci_line(device(0, 6), 0), interrupts.pci_line(device(0, 31), 3), interrupts.isa_line(7)]
            {
                let line = line.unwrap();
                for _ in 0..2 {
                    line.raise().unwrap();
                    line.raise().unwrap();
                    line.lower().unwrap();
                    line.lower().unwrap();
                }
                line.raise().unwrap();
            }
        });
    });
}

#[test]
fn line_that_does_not_exist_is_refused() {
    on_each_x86_host(|host| {
        with_guest(host, GuestKind::Hvm, |interrupts| {
            assert_eq!(errno(interrupts.pci_line(device(1, 6), 0)), libc::EINVAL);
            assert_eq!(errno(interrupts.pci_line(Sbdf::new(1, 0, 6, 0).unwrap(), 0)), libc::EINVAL);
            assert_eq!(errno(interrupts.pci_line(device(0, 6), 4)), libc::EINVAL);
            assert_eq!(errno(interrupts.isa_line(16)), libc::EINVAL);
        });
    });
}

/// Xen must never get these operations: it would use an interrupt controller that does not exist. (The mock aborts.)
#[test]
fn pvh_guest_has_no_lines() {
    on_each_x86_host(|host| {
        with_guest(host, GuestKind::Pvh, |interrupts| {
            for line in [interrupts.pci_line(device(0, 6), 0), interrupts.isa_line(7), interrupts.isa_line(16)] {
                assert!(matches!(line, Err(Error::NoInterruptLine { kind: GuestKind::Pvh, .. })), "{line:?}");
            }
        });
    });
}

#[test]
fn interrupts_of_a_guest_that_is_gone_are_refused() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Hvm, &[&[Step::In { port: 0x500, size: 4 }]]);
        let interrupts = Interrupts::new(running.open(host).0.guest().clone());
        let line = interrupts.isa_line(7).unwrap();
        running.guest.destroy();
        assert_eq!(errno(line.raise()), libc::ESRCH);
        assert_eq!(errno(interrupts.send_msi(0xFEE0_0000, 0x30)), libc::ESRCH);
    });
}
