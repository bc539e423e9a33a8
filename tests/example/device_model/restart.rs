//! A device model that is killed and started again.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use xenmap::Gfn;
use xenmap::device_model::Interrupts;
use xenmap::mock::Fault;

use super::program::driver::Driver;
use super::program::probe;
use super::{DISK_SIZE, Machine, state_file};

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

/// Returns why the program does not go on with a state.
fn refusal(machine: &Machine, path: &Path, is_read_only: bool) -> String {
    match machine.open(is_read_only, Some(path.to_owned())) {
        Err(e) => e.to_string(),
        Ok(model) => {
            let error = model.run(|| machine.domain.destroy()).unwrap_err().to_string();
            model.give_up();
            error
        }
    }
}

#[test]
fn state_of_another_guest_or_disk_is_refused_and_the_server_stays() {
    let mut machine = Machine::new();
    let path = state_file("refused");
    let model = machine.open(false, Some(path.clone())).unwrap();
    machine.serve(&model, || ());
    let _ = model.server.detach();
    drop(model.device);
    let state = std::fs::read_to_string(&path).unwrap();
    let domain = format!("domain {}\n", machine.domain.domid());
    for (other, expected) in [
        (state.replace(&domain, "domain 9\n"), "the state is of domain 9"),
        (state.lines().filter(|line| !line.starts_with("queue")).collect::<Vec<_>>().join("\n"), "--queues 0"),
        (state.replace("beside_qemu 0", "beside_qemu 1"), "with --beside-qemu"),
        (state.replace("server", "server x"), "server: "),
    ] {
        std::fs::write(&path, other).unwrap();
        let error = refusal(&machine, &path, false);
        assert!(error.contains(expected), "{error}");
    }
    std::fs::write(&path, state).unwrap();
    assert!(refusal(&machine, &path, true).contains("without --read-only"));
    let disk = std::mem::replace(&mut machine.disk, Machine::new().disk);
    assert!(refusal(&machine, &path, false).contains("another --image"));
    disk.set_len(DISK_SIZE as u64 + 512).unwrap();
    machine.disk = disk;
    assert!(refusal(&machine, &path, false).contains("an image of 1048576 bytes"));
    machine.disk.set_len(DISK_SIZE as u64).unwrap();
    assert!(machine.open(false, Some(path)).unwrap().adopted.is_some());
}

#[test]
fn damaged_state_is_refused_and_the_server_stays() {
    let machine = Machine::new();
    let path = state_file("damaged");
    let model = machine.open(false, Some(path.clone())).unwrap();
    let mut driver = machine.serve(&model, || Driver::start(&machine.domain, machine.content()).unwrap());
    let _ = model.server.detach();
    drop(model.device);
    let state = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = state.lines().collect();
    let with = |line: usize, text: &str| [&lines[..line], &[text], &lines[line + 1..]].concat().join("\n");

    let mut damaged: Vec<String> = (0..state.len() - 1).step_by(151).map(|len| state[..len].to_owned()).collect();
    for (line, text) in lines.iter().enumerate() {
        damaged.push(with(line, ""));
        damaged.push(with(line, &format!("{text} 1")));
        if let Some((numbers, _)) = text.rsplit_once(' ') {
            damaged.push(with(line, &format!("{text}\n{text}")));
            damaged.push(with(line, numbers));
            damaged.push(with(line, &format!("{numbers} 1{:016x}", 0)));
        }
    }
    let queue = lines.iter().position(|line| line.starts_with("queue")).unwrap();
    damaged.push(with(queue, &lines[queue].replacen("queue 40", "queue 3", 1)));
    damaged.push(state.replace("status f", "status 100"));
    for other in damaged {
        std::fs::write(&path, &other).unwrap();
        let error = refusal(&machine, &path, false);
        assert!(error.starts_with("cannot read ") || error.starts_with("the state is "), "{error}: {other}");
    }

    std::fs::write(&path, state).unwrap();
    let model = machine.open(false, Some(path)).unwrap();
    assert!(model.adopted.is_some());
    machine.serve(&model, || driver.run(50).unwrap());
}

#[test]
fn server_stays_if_the_host_fails() {
    let machine = Machine::new();
    let path = state_file("fails");
    let model = machine.open(false, Some(path.clone())).unwrap();
    model.run(|| machine.host.inject(Fault::DmOp(libc::EFAULT))).unwrap_err();
    model.give_up();
    assert!(machine.open(false, Some(path)).unwrap().adopted.is_some());
}

#[test]
fn server_that_is_gone_is_replaced() {
    let machine = Machine::new();
    let path = state_file("replaced");
    let model = machine.open(false, Some(path.clone())).unwrap();
    machine.serve(&model, || Driver::start(&machine.domain, machine.content()).unwrap());
    drop(model); // and destroys the server
    let model = machine.open(false, Some(path.clone())).unwrap();
    assert!(model.adopted.is_none());
    machine.serve(&model, || Driver::start(&machine.domain, machine.content()).unwrap().run(50).unwrap());
    let _ = model.server.detach();
    drop(model.device);
    assert!(machine.open(false, Some(path)).unwrap().adopted.is_some());
}

#[test]
fn state_that_cannot_be_written_is_an_error_that_names_the_file() {
    let machine = Machine::new();
    let path = state_file("missing").join("state");
    let error = refusal(&machine, &path, false);
    assert!(error.starts_with(&format!("cannot write {}: No such file", path.display())), "{error}");
}

/// Writes a register of the disk that is part of its state.
fn select_queue(machine: &Machine, queue: u64) {
    let vcpu = machine.domain.vcpu(0);
    vcpu.write(probe::find_disk(&vcpu).unwrap().common + 0x16, 2, queue).unwrap();
}

/// Prevents that a file with a state is replaced.
struct Blocked(PathBuf);

impl Blocked {
    fn new(path: &Path) -> Blocked {
        let folder = path.with_extension("new");
        std::fs::create_dir(&folder).unwrap();
        Blocked(folder)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn old_state_is_removed_if_the_new_one_cannot_be_written() {
    let machine = Machine::new();
    let path = state_file("full");
    let model = machine.open(false, Some(path.clone())).unwrap();
    machine.serve(&model, || {
        select_queue(&machine, 0);
        let blocked = Blocked::new(&path);
        select_queue(&machine, 1);
        assert!(!path.exists());

        drop(blocked);
        select_queue(&machine, 1); // the state is the one that could not be written
        assert!(path.exists());
    });
    let id = model.server.detach();
    drop(model.device);
    let model = machine.open(false, Some(path)).unwrap();
    assert_eq!(model.server.id(), id);
}

#[test]
fn state_is_written_once_for_all_values_of_an_instruction() {
    let machine = Machine::new();
    let path = state_file("once");
    let model = machine.open(false, Some(path.clone())).unwrap();
    machine.serve(&model, || {
        let vcpu = machine.domain.vcpu(0);
        let messages = probe::find_disk(&vcpu).unwrap().messages;
        let next = File::create(path.with_extension("new")).unwrap(); // which the next state replaces the file with

        vcpu.rep_store(messages, 4, 12, 0x42).unwrap(); // a table of three messages

        let inode = |metadata: Metadata| metadata.ino();
        assert_eq!(inode(path.metadata().unwrap()), inode(next.metadata().unwrap()));
        let state = std::fs::read_to_string(&path).unwrap();
        assert!(state.contains(&format!("messages{}\n", " 40 0 0 0 42 0 0 0 42 0 0 0 0 0 0 0".repeat(3))), "{state}");
    });
}

#[test]
fn server_does_not_stay_if_its_state_is_in_no_file() {
    let machine = Machine::new();
    let path = state_file("unwritten");
    let model = machine.open(false, Some(path.clone())).unwrap();
    let id = model.server.id();
    machine.serve(&model, || {
        let _blocked = Blocked::new(&path);
        select_queue(&machine, 1);
    });

    model.give_up();

    let model = machine.open(false, Some(path)).unwrap();
    assert_eq!((model.server.id(), model.adopted.is_some()), (id, false), "the number is free again");
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
