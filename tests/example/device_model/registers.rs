//! What a guest sees of the configuration space and of the function's memory.

use xenmap::Gfn;
use xenmap::device_model::{IoRange, Sbdf};
use xenmap::mock::{Fault, MockVcpu};

use super::Machine;
use super::program::driver::Driver;
use super::program::image::Image;
use super::program::model::{Model, Options};
use super::program::probe::{self, Found};
use super::program::transport;

const BAR: u8 = 0x10;
const COMMAND: u8 = 0x04;
const NOWHERE: u64 = 0xFFFF_FFFF;

fn disk() -> Sbdf {
    Sbdf::new(0, 0, 1, 0).unwrap()
}

/// Runs a test as the guest's processor, with the disk found.
fn with_disk(test: impl FnOnce(&MockVcpu, &Found) + Send) {
    let machine = Machine::new();
    let model = machine.open(false, None).unwrap();
    machine.serve(&model, || {
        let vcpu = machine.domain.vcpu(0);
        test(&vcpu, &probe::find_disk(&vcpu).unwrap());
    });
}

#[test]
fn memory_is_where_the_guest_has_put_it_while_it_is_decoded() {
    with_disk(|vcpu, found| {
        let read = |address| vcpu.read(address + 0x12, 2).unwrap();
        assert_eq!(read(found.common), 2, "the number of queues");

        vcpu.pci_write(disk(), COMMAND, 2, 4).unwrap();
        assert_eq!(read(found.common), 0xFFFF);
        vcpu.pci_write(disk(), BAR, 4, NOWHERE).unwrap();
        assert_eq!(vcpu.pci_read(disk(), BAR, 4).unwrap(), 0xFFFF_8000, "32 KiB");
        vcpu.pci_write(disk(), BAR, 4, 0xD000_0000).unwrap();
        vcpu.pci_write(disk(), COMMAND, 2, 6).unwrap();
        assert_eq!((read(found.common), read(0xD000_0000)), (0xFFFF, 2));

        vcpu.pci_write(disk(), BAR + 2, 2, 0xC000).unwrap(); // a half, while it is decoded
        assert_eq!((read(0xD000_0000), read(0xC000_0000)), (0xFFFF, 2));
    });
}

#[test]
fn range_that_cannot_be_removed_is_removed_by_the_next_write() {
    let machine = Machine::new();
    let model = machine.open(false, None).unwrap();
    machine.serve(&model, || {
        let vcpu = machine.domain.vcpu(0);
        let common = probe::find_disk(&vcpu).unwrap().common;
        let memory = || IoRange::memory(common, common + u64::from(transport::SIZE) - 1);

        machine.host.inject(Fault::DmOp(libc::EFAULT));
        vcpu.pci_write(disk(), COMMAND, 2, 4).unwrap();
        vcpu.pci_write(disk(), COMMAND, 2, 4).unwrap();

        assert_eq!(model.server.remove_range(memory()).unwrap_err().errno(), libc::ENOENT);
        vcpu.pci_write(disk(), COMMAND, 2, 6).unwrap();
        assert_eq!(vcpu.read(common + 0x12, 2).unwrap(), 2, "the number of queues");
    });
}

#[test]
fn window_in_the_configuration_space_shows_the_memory() {
    with_disk(|vcpu, found| {
        let mut at = u8::try_from(vcpu.pci_read(disk(), 0x34, 1).unwrap()).unwrap();
        while vcpu.pci_read(disk(), at + 3, 1).unwrap() != 5 {
            at = u8::try_from(vcpu.pci_read(disk(), at + 1, 1).unwrap()).unwrap();
        }
        for (register, size, value) in [(8, 4, 0x16), (12, 4, 2), (16, 2, 1)] {
            vcpu.pci_write(disk(), at + register, size, value).unwrap();
        }
        assert_eq!(vcpu.read(found.common + 0x16, 2).unwrap(), 1, "the queue that is selected");
        vcpu.pci_write(disk(), at + 8, 4, 0x12).unwrap();
        assert_eq!(vcpu.pci_read(disk(), at + 16, 2).unwrap(), 2, "the number of queues");
        vcpu.pci_write(disk(), at + 8, 4, 0x7FFF).unwrap();
        assert_eq!(vcpu.pci_read(disk(), at + 16, 2).unwrap(), 0, "not wholly inside");
    });
}

#[test]
fn only_four_bytes_select_a_register() {
    with_disk(|vcpu, _| {
        vcpu.port_out(0xCF8, 4, 0x8000_0800).unwrap();
        vcpu.port_out(0xCFB, 1, 1).unwrap();
        vcpu.port_out(0xCF8, 2, 0x1234).unwrap();
        assert_eq!(vcpu.port_in(0xCF8, 4).unwrap(), 0x8000_0800);
        assert_eq!(vcpu.port_in(0xCFB, 1).unwrap(), 0x80);
    });
}

#[test]
fn masked_message_waits_until_it_is_unmasked() {
    let machine = Machine::new();
    let model = machine.open(false, None).unwrap();
    machine.serve(&model, || {
        let vcpu = machine.domain.vcpu(0);
        let found = probe::find_disk(&vcpu).unwrap();
        found.enable_messages(&vcpu, 0x40, 3).unwrap();
        let (function, msix) = found.msix.unwrap();
        let raise = || {
            model.device.signals.queue(1);
            model.device.signals.queue(9); // does not exist
        };
        let pending = || vcpu.read(found.messages + 0x1000, 8).unwrap();

        raise();
        assert_eq!((machine.domain.wait_for_msi(), pending()), (Some((0xFEE0_0000, 0x41)), 0));

        vcpu.write(found.messages + 16 + 12, 4, 1).unwrap(); // mask the vector
        raise();
        raise();
        assert_eq!(pending(), 0b10);
        vcpu.write(found.messages + 16 + 8, 4, 0x51).unwrap();
        vcpu.write(found.messages + 16 + 12, 4, 0).unwrap();
        assert_eq!((machine.domain.wait_for_msi(), pending()), (Some((0xFEE0_0000, 0x51)), 0));

        vcpu.pci_write(function, msix + 2, 2, 0xC000).unwrap(); // mask all
        raise();
        assert_eq!(pending(), 0b10);
        vcpu.pci_write(function, msix + 2, 2, 0x8000).unwrap();
        assert_eq!((machine.domain.wait_for_msi(), pending()), (Some((0xFEE0_0000, 0x51)), 0));
    });
}

#[test]
fn device_that_is_not_a_bus_master_sends_no_message_and_takes_no_request() {
    let machine = Machine::new();
    let model = machine.open(false, None).unwrap();
    machine.serve(&model, || {
        Driver::start(&machine.domain, machine.content()).unwrap();
        let vcpu = machine.domain.vcpu(0);
        let found = probe::find_disk(&vcpu).unwrap();
        let status = || vcpu.read(found.common + 0x14, 1).unwrap();
        let pending = || vcpu.read(found.messages + 0x1000, 8).unwrap();

        vcpu.pci_write(disk(), COMMAND, 2, 2).unwrap();
        model.device.signals.queue(1);
        make_too_many_requests(&machine);
        vcpu.write(found.notify, 2, 0).unwrap();
        assert_eq!((status(), pending()), (0xF, 0b10));

        vcpu.pci_write(disk(), COMMAND, 2, 6).unwrap();
        let messages = [machine.domain.wait_for_msi(), machine.domain.wait_for_msi()];
        assert_eq!(
            messages,
            [Some((0xFEE0_0000, 0x41)), Some((0xFEE0_0000, 0x40))],
            "of the queue, then of the status"
        );
        assert_eq!((status(), pending()), (0x4F, 0));
    });
}

/// Makes more requests available than the driver's queue 0 has places, for which the device needs a reset.
fn make_too_many_requests(machine: &Machine) {
    machine.domain.write(Gfn::new(0x1FF).unwrap(), 0xFF2, &0x7777_u16.to_le_bytes());
}

/// The bit of a table entry's second half that masks it.
const MASKED: u64 = 1 << 32;

/// Linux in an HVM guest masks the event channel, and leaves the entry of the table masked.
#[test]
fn masked_message_that_xen_turns_into_an_event_is_sent() {
    const PIRQ: (u64, u32) = (0xFEE3_6000, 0x700);
    let machine = Machine::new();
    let model = machine.open(false, None).unwrap();
    machine.serve(&model, || {
        let vcpu = machine.domain.vcpu(0);
        let found = probe::find_disk(&vcpu).unwrap();
        found.enable_messages(&vcpu, 0x40, 3).unwrap();
        let (function, msix) = found.msix.unwrap();
        let pending = || vcpu.read(found.messages + 0x1000, 8).unwrap();

        vcpu.write(found.messages + 16 + 8, 8, MASKED | u64::from(PIRQ.1)).unwrap();
        vcpu.write(found.messages + 16, 8, PIRQ.0).unwrap();
        model.device.signals.queue(1);
        assert_eq!(pending(), 0);
        assert_eq!(machine.domain.wait_for_msi(), Some(PIRQ));

        vcpu.pci_write(function, msix + 2, 2, 0xC000).unwrap(); // mask all
        model.device.signals.queue(1);
        assert_eq!(pending(), 0b10, "the capability masks these messages too");
    });
}

#[test]
fn message_that_waits_is_not_lost_while_the_guest_fills_in_its_entry() {
    let machine = Machine::new();
    let model = machine.open(false, None).unwrap();
    machine.serve(&model, || {
        let vcpu = machine.domain.vcpu(0);
        let found = probe::find_disk(&vcpu).unwrap();
        let (function, msix) = found.msix.unwrap();
        let pending = || vcpu.read(found.messages + 0x1000, 8).unwrap();
        vcpu.pci_write(function, msix + 2, 2, 0x8000).unwrap();
        model.device.signals.queue(1);
        assert_eq!(pending(), 0b10);

        vcpu.write(found.messages + 16, 8, 0xFEE0_0000).unwrap();
        assert_eq!(pending(), 0b10, "its vector is still 0, and it is masked");
        vcpu.write(found.messages + 16 + 8, 8, MASKED | 0x41).unwrap();
        assert_eq!(pending(), 0b10);
        vcpu.write(found.messages + 16 + 8, 8, 0x41).unwrap();
        assert_eq!((machine.domain.wait_for_msi(), pending()), (Some((0xFEE0_0000, 0x41)), 0));
    });
}

#[test]
fn features_that_were_not_offered_are_refused() {
    with_disk(|vcpu, found| {
        let set = |register, size, value| vcpu.write(found.common + register, size, value).unwrap();
        for (low, high, is_accepted) in [(0, 1, 8), (0, 0, 0), (1 << 31, 1, 0), (1 << 9, 1, 8)] {
            set(0x14, 1, 0);
            set(0x14, 1, 3);
            accept(vcpu, found, low, high);
            set(0x14, 1, 11);
            assert_eq!(vcpu.read(found.common + 0x14, 1).unwrap() & 8, is_accepted, "{high:x} {low:x}");
        }
    });
}

#[test]
fn driver_without_accepted_features_cannot_start_the_device() {
    with_disk(|vcpu, found| {
        let set_status = |status| vcpu.write(found.common + 0x14, 1, status).unwrap();
        let status = || vcpu.read(found.common + 0x14, 1).unwrap();
        set_status(3);
        set_status(7);
        assert_eq!(status(), 3, "no features were accepted");
        accept(vcpu, found, 1 << 31, 1);
        set_status(11);
        set_status(15);
        assert_eq!(status(), 3, "a feature was not offered");

        accept(vcpu, found, 0, 1);
        set_status(11);
        set_status(15);
        assert_eq!(status(), 15);
        accept(vcpu, found, 1 << 9, 1);
        vcpu.write(found.common + 0x08, 4, 0).unwrap();
        assert_eq!(vcpu.read(found.common + 0x0C, 4).unwrap(), 0, "features do not change while the device runs");
    });
}

/// `SeaBIOS` before 1.16.1 does this.
#[test]
fn queue_that_is_enabled_before_the_features_works() {
    const DESCRIPTORS: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const EVENT_INDEX: u64 = 1 << 29;
    let machine = Machine::new();
    let model = machine.open(false, None).unwrap();
    machine.serve(&model, || {
        let vcpu = machine.domain.vcpu(0);
        let found = probe::find_disk(&vcpu).unwrap();
        let set = |register, size, value| vcpu.write(found.common + register, size, value).unwrap();
        set(0x14, 1, 3);
        for (register, address) in [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)] {
            set(register, 8, address);
        }
        set(0x1C, 2, 1);
        accept(&vcpu, &found, EVENT_INDEX, 1);
        set(0x14, 1, 11);
        let event = (Gfn::containing(USED).unwrap(), 4 + 8 * 128, 2);
        machine.domain.write(event.0, event.1, &[0xEE; 2]);
        vcpu.write(found.notify, 2, 0).unwrap();
        assert_eq!(vcpu.read(found.common + 0x14, 1).unwrap(), 11);
        assert_eq!(machine.domain.read(event.0, event.1, event.2), [0xEE; 2], "the device does not run yet");

        set(0x14, 1, 15);
        assert_eq!(vcpu.read(found.common + 0x14, 1).unwrap(), 15);
        assert_eq!(machine.domain.read(event.0, event.1, event.2), [0; 2], "asks for the first notification");
    });
}

/// Accepts features as a driver does.
fn accept(vcpu: &MockVcpu, found: &Found, low: u64, high: u64) {
    for (half, features) in [(0, low), (1, high)] {
        vcpu.write(found.common + 0x08, 4, half).unwrap();
        vcpu.write(found.common + 0x0C, 4, features).unwrap();
    }
}

#[test]
fn broken_queue_needs_a_reset_and_works_after_it() {
    let machine = Machine::new();
    let model = machine.open(false, None).unwrap();
    machine.serve(&model, || {
        let mut driver = Driver::start(&machine.domain, machine.content()).unwrap();
        driver.run(30).unwrap();
        let vcpu = machine.domain.vcpu(0);
        let found = probe::find_disk(&vcpu).unwrap();
        make_too_many_requests(&machine);
        vcpu.write(found.notify, 2, 0).unwrap();
        assert_eq!(machine.domain.wait_for_msi(), Some((0xFEE0_0000, 0x40)), "of the configuration");
        assert_eq!(vcpu.read(found.common + 0x14, 1).unwrap(), 0x4F);
        Driver::start(&machine.domain, machine.content()).unwrap().run(30).unwrap();
    });
}

#[test]
fn beside_qemu_only_the_disk_is_served() {
    let machine = Machine::new();
    let image = Image::new(machine.disk.try_clone().unwrap(), false).unwrap();
    let options = Options { image, name: String::new(), queues: 1, cache: 1, is_beside_qemu: true, server: None };
    let model = Model::open(&machine.host.open().unwrap(), machine.domain.domid(), options).unwrap();
    machine.serve(&model, || {
        let vcpu = machine.domain.vcpu(0);
        let ids = (0..32).map(|device| vcpu.pci_read(Sbdf::new(0, 0, device, 0).unwrap(), 0, 4).unwrap());
        let found: Vec<_> = (0..).zip(ids).filter(|(_, id)| *id != NOWHERE).collect();
        assert_eq!(found, [(6, 0x1042_1AF4)]);
        assert_eq!(vcpu.port_in(0xCF8, 4).unwrap(), NOWHERE);
    });
}
