//! A device model that is killed and started again.

use xenmap::Gfn;
use xenmap::device_model::Interrupts;

use super::Machine;
use super::program::driver::Driver;
use super::state_file;

#[test]
fn restarted_process_goes_on_where_the_other_one_stopped() {
    let machine = Machine::new();
    let path = state_file("goes_on");
    let mut model = machine.open(false, Some(path.clone())).unwrap();
    let mut driver = machine.serve(&model, || {
        let mut driver = Driver::start(&machine.domain, machine.content()).unwrap();
        driver.run(200).unwrap();
        driver
    });
    for _ in 0..3 {
        let id = model.server.id();
        // A process that is killed leaves its server.
        assert_eq!(model.server.detach(), id);
        drop(model.device);
        model = machine.open(false, Some(path.clone())).unwrap();
        assert_eq!(model.server.id(), id);
        driver = machine.serve(&model, move || {
            driver.run(200).unwrap();
            driver
        });
    }
}

#[test]
fn answers_before_the_restart_are_followed_by_an_interrupt() {
    let machine = Machine::new();
    let path = state_file("interrupt");
    let model = machine.open(false, Some(path.clone())).unwrap();
    machine.serve(&model, || Driver::start(&machine.domain, machine.content()).unwrap().run(50).unwrap());
    // Nothing that was sent before is left.
    let last = (0xFEE0_0000, 0x99);
    Interrupts::new(model.server.cache().guest().clone()).send_msi(last.0, last.1).unwrap();
    while machine.domain.wait_for_msi() != Some(last) {}
    let id = model.server.detach();
    drop(model.device);

    let model = machine.open(false, Some(path)).unwrap();
    assert_eq!(model.server.id(), id);
    machine.serve(&model, || {
        for queue in [0x41, 0x42] {
            assert_eq!(machine.domain.wait_for_msi(), Some((0xFEE0_0000, queue)));
        }
    });
}

#[test]
fn queue_that_the_restarted_process_cannot_use_is_reported_to_the_driver() {
    let machine = Machine::new();
    let path = state_file("unusable");
    let model = machine.open(false, Some(path.clone())).unwrap();
    machine.serve(&model, || {
        Driver::start(&machine.domain, machine.content()).unwrap();
        machine.domain.balloon_out(Gfn::new(0x2FF).unwrap()); // where the answers of queue 0 are
    });
    let id = model.server.detach();
    drop(model.device);

    let model = machine.open(false, Some(path)).unwrap();
    assert_eq!(model.server.id(), id);
    machine.serve(&model, || {
        assert_eq!(machine.domain.wait_for_msi(), Some((0xFEE0_0000, 0x40)), "of the configuration");
    });
}

#[test]
fn state_of_another_guest_or_disk_is_refused_and_the_server_stays() {
    let machine = Machine::new();
    let path = state_file("refused");
    let model = machine.open(false, Some(path.clone())).unwrap();
    machine.serve(&model, || ());
    let id = model.server.detach();
    let state = std::fs::read_to_string(&path).unwrap();
    let domain = format!("domain {}\n", machine.domain.domid());
    for (other, expected) in [
        (state.replace(&domain, "domain 9\n"), "the state is of domain 9"),
        (state.lines().filter(|line| !line.starts_with("queue")).collect::<Vec<_>>().join("\n"), "--queues 0"),
        (state.replace("beside_qemu 0", "beside_qemu 1"), "with --beside-qemu"),
        (state.replace("server", "server x"), "server: "),
    ] {
        std::fs::write(&path, other).unwrap();
        let error = machine.open(false, Some(path.clone())).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    std::fs::write(&path, state).unwrap();
    assert_eq!(machine.open(false, Some(path)).unwrap().server.id(), id);
}

#[test]
fn state_of_a_guest_that_is_gone_is_removed() {
    let machine = Machine::new();
    let path = state_file("gone");
    let model = machine.open(false, Some(path.clone())).unwrap();
    model
        .run(|| {
            assert!(path.exists());
            machine.domain.destroy();
        })
        .unwrap();
    assert!(!path.exists());
    drop(model);
    assert!(machine.host.zombies().is_empty());
}
