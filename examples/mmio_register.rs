//! The smallest device: a register that counts how often the guest reads it. The guest can also set it.
//!
//! `cargo run --example mmio_register` simulates a host and a guest. As root in dom0, `mmio_register DOMID` serves an
//! HVM or PVH guest: in Linux there, try `busybox devmem 0xe0000000`.

#![expect(clippy::print_stdout, reason = "prints its results")]

use std::error::Error;
use std::sync::Arc;
use std::thread;

use xenmap::device_model::{EventChannels, IoRange, IoreqServer, Registers, Target};
use xenmap::mock::MockHost;
use xenmap::{Domid, ForeignMemory, Guest, GuestKind, MapCache};

const ADDRESS: u64 = 0xE000_0000; // where the guest has no RAM

struct Counter(u64);

/// While these run, the guest's processor waits.
impl Registers for Counter {
    fn read(&mut self, _: Target, _size: usize) -> u64 {
        self.0 += 1;
        self.0
    }

    fn write(&mut self, _: Target, _size: usize, value: u64) {
        self.0 = value;
    }
}

/// Creates a server, which receives the guest's accesses to the register.
fn create_server(memory: &ForeignMemory, domid: Domid) -> xenmap::Result<IoreqServer> {
    let guest = Guest::open(memory, domid)?;
    let events = EventChannels::open(memory)?;
    memory.restrict(domid)?; // from now on, both handles can only be used for this guest
    events.restrict(domid)?;
    let server = IoreqServer::create(Arc::new(MapCache::new(guest)), events)?;
    server.add_range(IoRange::memory(ADDRESS, ADDRESS + 3))?;
    println!("serving domain {domid} at {ADDRESS:#x}");
    Ok(server)
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(domid) = std::env::args().nth(1) {
        let server = create_server(&ForeignMemory::open()?, Domid::new(domid.parse()?)?)?;
        return Ok(server.run(&mut Counter(0))?); // until the guest is gone
    }
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Pvh, 16);
    let server = create_server(&host.open()?, domain.domid())?;
    let device = thread::spawn(move || server.run(&mut Counter(0)));

    let vcpu = domain.vcpu(0); // the simulated guest's processor
    println!("the guest reads {}, then {}", vcpu.read(ADDRESS, 4)?, vcpu.read(ADDRESS, 4)?);
    vcpu.write(ADDRESS, 4, 40)?;
    println!("it writes 40, and reads {}", vcpu.read(ADDRESS, 4)?);
    domain.destroy();
    Ok(device.join().map_err(|_| "the device has panicked")??)
}
