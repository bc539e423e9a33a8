//! Instructions of the simulated guest's processors that move several values.

use super::access::{Access, Values, in_frame, step};
use super::vcpu::{MockVcpu, Outcome, check_size};
use crate::abi;
use crate::types::FRAME_SIZE;

/// Several values that an instruction with a `rep` prefix moves between a device and the guest's RAM.
///
/// ```
/// use std::sync::Arc;
/// use std::thread;
///
/// use xenmap::device_model::{EventChannels, IoRange, IoreqServer, Registers, Target};
/// use xenmap::mock::{MockHost, MockRep};
/// use xenmap::{Gfn, Guest, GuestKind, MapCache};
///
/// /// A port with the letters from 'a' on.
/// struct Letters(u8);
///
/// impl Registers for Letters {
///     fn read(&mut self, _: Target, _size: usize) -> u64 {
///         self.0 += 1;
///         u64::from(self.0 - 1)
///     }
///
///     fn write(&mut self, _: Target, _size: usize, _value: u64) {}
/// }
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Pvh, 16);
/// let memory = host.open()?;
/// let cache = Arc::new(MapCache::new(Guest::open(&memory, domain.domid())?));
/// let server = IoreqServer::create(cache, EventChannels::open(&memory)?)?;
/// server.add_range(IoRange::ports(0x1F0, 0x1F0))?;
/// let device = thread::spawn(move || server.run(&mut Letters(b'a')));
///
/// let rep = MockRep { ram: 0x3000, size: 1, count: 5, backwards: false };
/// domain.vcpu(0).rep_port_in(0x1F0, rep)?; // one request with five values
/// assert_eq!(domain.read(Gfn::new(3)?, 0, 5), b"abcde");
/// domain.destroy();
/// device.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MockRep {
    /// The guest-physical address of the first value in RAM, in bytes.
    pub ram: u64,
    /// The size of a value in bytes: 1, 2, 4 or 8; at a port 1, 2 or 4.
    pub size: usize,
    /// The number of values.
    pub count: u32,
    /// Whether addresses go down from one value to the next (the direction flag).
    pub backwards: bool,
}

/// All methods panic if no instruction accesses so many bytes.
impl MockVcpu {
    /// Reads values of a port into RAM (`rep ins`).
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    pub fn rep_port_in(&self, port: u16, rep: MockRep) -> Outcome<()> {
        check_size(rep.size, 4);
        self.repeat(Access::read(abi::IOREQ_TYPE_PIO, port.into(), rep.size), rep)
    }

    /// Writes values from RAM to a port (`rep outs`).
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    pub fn rep_port_out(&self, port: u16, rep: MockRep) -> Outcome<()> {
        check_size(rep.size, 4);
        self.repeat(Access::write(abi::IOREQ_TYPE_PIO, port.into(), rep.size, 0), rep)
    }

    /// Reads values from a device's address on into RAM (`rep movs`).
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    ///
    /// # Panics
    ///
    /// Also if the guest has RAM at the address.
    pub fn rep_read(&self, address: u64, rep: MockRep) -> Outcome<()> {
        check_size(rep.size, 8);
        self.repeat(Access::read(abi::IOREQ_TYPE_COPY, address, rep.size), rep)
    }

    /// Writes values from RAM to a device's address on (`rep movs`).
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    ///
    /// # Panics
    ///
    /// Also if the guest has RAM at the address.
    pub fn rep_write(&self, address: u64, rep: MockRep) -> Outcome<()> {
        check_size(rep.size, 8);
        self.repeat(Access::write(abi::IOREQ_TYPE_COPY, address, rep.size, 0), rep)
    }

    /// Writes a value `count` times, from a device's address on (`rep stos`).
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    pub fn rep_store(&self, address: u64, size: usize, count: u32, value: u64) -> Outcome<()> {
        check_size(size, 8);
        let mut done = 0;
        while done < count {
            let address = step(address, done, size, false);
            let in_page = u32::try_from(fit(in_frame(address), size, false)).unwrap_or(u32::MAX);
            let count = (count - done).min(in_page).max(1);
            if count == 1 {
                self.write(address, size, value)?;
            } else {
                let rep = Some(Values { count, backwards: false, in_ram: false });
                self.access(Access { rep, ..Access::write(abi::IOREQ_TYPE_COPY, address, size, value) })?;
            }
            done += count;
        }
        Ok(())
    }

    /// Moves values in as many requests as Xen does: it cuts them at the pages of the device's addresses and of RAM. A
    /// single value that is left is moved by an ordinary access.
    fn repeat(&self, access: Access, rep: MockRep) -> Outcome<()> {
        let MockRep { ram, size, count, backwards } = rep;
        let is_port = access.type_ == abi::IOREQ_TYPE_PIO;
        let mut done = 0;
        while done < count {
            let address = if is_port { access.address } else { step(access.address, done, size, backwards) };
            let data = step(ram, done, size, backwards);
            if count - done == 1 {
                return self.move_one(Access { address, ..access }, data);
            }
            let device = if is_port { usize::MAX } else { fit(in_frame(address), size, backwards) };
            // Backwards, Xen does not count the value at the start of a page of RAM.
            let memory = if backwards { in_frame(data) / size } else { fit(in_frame(data), size, false) };
            let most = u32::try_from(device.min(memory)).unwrap_or(u32::MAX);
            let count = (count - done).min(most).max(1);
            self.access(Access { address, data, rep: Some(Values { count, backwards, in_ram: true }), ..access })?;
            done += count;
        }
        Ok(())
    }

    /// Moves a value between a device and RAM, as two instructions would.
    fn move_one(&self, access: Access, ram: u64) -> Outcome<()> {
        let Access { address, size, is_read, .. } = access;
        let port = u16::try_from(address).ok().filter(|_| access.type_ == abi::IOREQ_TYPE_PIO);
        if is_read {
            let value = match port {
                Some(port) => self.port_in(port, size)?,
                None => self.read(address, size)?,
            };
            self.move_ram(ram, &mut value.to_le_bytes()[..size], false);
            return Ok(());
        }
        let mut bytes = [0; 8];
        self.move_ram(ram, &mut bytes[..size], true);
        let value = u64::from_le_bytes(bytes);
        match port {
            Some(port) => self.port_out(port, size, value),
            None => self.write(address, size, value),
        }
    }
}

/// Returns how many values are in the page of the first one, at this offset: at least that one, even if not all of it
/// is.
fn fit(at: usize, size: usize, backwards: bool) -> usize {
    match (backwards, FRAME_SIZE - at) {
        (false, left) => left / size,
        (true, left) if left < size => 1,
        (true, _) => at / size + 1,
    }
}
