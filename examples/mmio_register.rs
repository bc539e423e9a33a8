//! The smallest device: a register at an address. It counts how often the guest reads it, and the guest can set it.
//!
//!     cargo run --example mmio_register
//!     mmio_register DOMID
//!
//! With a domain number, it serves that guest (HVM or PVH) on the local Xen host, as root in dom0. In a Linux guest, try
//! `busybox devmem 0xe0000000`. Without one, it serves a guest of a simulated host.

#![expect(clippy::print_stdout, reason = "prints its results")]

use std::error::Error;
use std::sync::Arc;

use xenmap::device_model::{EventChannels, IoRange, IoreqServer, Registers, Target};
use xenmap::mock::{MockDomain, MockHost, VcpuStopped};
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

fn main() -> Result<(), Box<dyn Error>> {
    let server = if let Some(domid) = std::env::args().nth(1) {
        create_server(&ForeignMemory::open()?, Domid::new(domid.parse()?)?)?
    } else {
        let host = MockHost::new();
        let domain = host.create_domain(GuestKind::Pvh, 16);
        let server = create_server(&host.open()?, domain.domid())?;
        std::thread::spawn(move || use_register(&domain));
        server
    };
    Ok(server.run(&mut Counter(0))?) // until the guest is gone
}

/// Creates a server that receives what a guest does with the register.
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

/// The simulated guest: its processor uses the register, then it powers off.
fn use_register(domain: &MockDomain) -> Result<(), VcpuStopped> {
    let vcpu = domain.vcpu(0);
    println!("the guest reads {}, then {}", vcpu.read(ADDRESS, 4)?, vcpu.read(ADDRESS, 4)?);
    vcpu.write(ADDRESS, 4, 40)?;
    println!("it writes 40, and reads {}", vcpu.read(ADDRESS, 4)?);
    domain.destroy();
    Ok(())
}
