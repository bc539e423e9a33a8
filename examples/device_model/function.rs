//! The PCI function: its configuration space, and its memory where the guest has put it.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use vm_memory::GuestAddressSpace;
use xenmap::device_model::{IoRange, IoreqServer, Registers, Request, Sbdf, Target};

use super::bus::Bus;
use super::config_space::{ConfigSpace, Identity};
use super::device::{DRIVER_OK, FEATURES_OK, NEEDS_RESET};
use super::state::{State, StateFile, damaged};
use super::transport::{self, Transport};
use super::{Result, lock, msix};

/// A disk (virtio 1.x: 0x1040 + 2), whose class is that of a SCSI controller, like QEMU's.
const DISK: Identity =
    Identity { vendor: 0x1AF4, device: 0x1042, revision: 1, class: [1, 0], subsystem: [0x1AF4, 0x1100] };

/// The capability by which virtio says where its registers are, and the kinds of it.
const VENDOR_SPECIFIC: u8 = 0x09;
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const CONFIGURATION: u8 = 4;
const WINDOW: u8 = 5;

/// The function, served by one thread. Nothing that a guest does is an error: it reads zeros or ones, and its writes
/// vanish.
pub(crate) struct Function<'a> {
    server: &'a IoreqServer,
    at: Sbdf,
    config: ConfigSpace,
    /// Where these capabilities are.
    msix: u16,
    window: u16,
    transport: Transport<'a>,
    /// The address at which the server answers for the function's memory.
    memory: Option<u64>,
    /// What else is on the bus, if nobody else serves it.
    bus: Option<Bus>,
    file: Option<&'a Mutex<StateFile>>,
    /// How many values the guest's request has yet to write, and whether those written so far may have changed the state.
    values_left: u32,
    is_changed: bool,
}

impl<'a> Function<'a> {
    /// Creates the function, which does not answer yet.
    pub(crate) fn new(
        server: &'a IoreqServer,
        at: Sbdf,
        transport: Transport<'a>,
        bus: Option<Bus>,
        file: Option<&'a Mutex<StateFile>>,
    ) -> Result<Function<'a>> {
        let mut config = ConfigSpace::new(&DISK);
        config.add_memory(transport::SIZE);
        for (kind, offset, len) in
            [(COMMON, transport::COMMON, 56), (ISR, transport::ISR, 1), (CONFIGURATION, transport::CONFIGURATION, 60)]
        {
            config.add_capability(VENDOR_SPECIFIC, &virtio(16, kind, offset, len), &[]);
        }
        let queues = u32::try_from(transport.device().queues.len())?;
        let notify = virtio(20, NOTIFY, transport::NOTIFY, queues * transport::NOTIFY_STEP);
        config.add_capability(VENDOR_SPECIFIC, &[&notify[..], &transport::NOTIFY_STEP.to_le_bytes()].concat(), &[]);
        // The driver sets the place (the BAR, the offset, the length) that the last 4 bytes show.
        let window = [&virtio(20, WINDOW, 0, 0)[..], &[0; 4]].concat();
        let writable = [&[0, 0, 0xFF, 0, 0, 0][..], &[0xFF; 12]].concat();
        let window = config.add_capability(VENDOR_SPECIFIC, &window, &writable);
        // One vector for the configuration, and one for each queue. The table is in BAR 0.
        let table = [&u16::try_from(queues)?.to_le_bytes()[..], &transport::MESSAGES.to_le_bytes()];
        let body = [&table.concat()[..], &transport::PENDING.to_le_bytes()].concat();
        let control = (msix::ENABLED | msix::ALL_MASKED).to_le_bytes();
        let msix = config.add_capability(msix::CAPABILITY, &body, &control);
        let (memory, values_left, is_changed) = (None, 0, false);
        Ok(Function { server, at, config, msix, window, transport, memory, bus, file, values_left, is_changed })
    }

    /// Answers at the function's address on its bus, and for the rest of the bus, from now on.
    pub(crate) fn answer(&self) -> xenmap::Result<()> {
        add(self.server, IoRange::pci(self.at, self.at))?;
        self.bus.iter().flat_map(Bus::ranges).try_for_each(|range| add(self.server, range))
    }

    fn read_config(&self, register: u16, size: usize) -> u64 {
        match self.window(register, size) {
            Some(at) => self.transport.read(at, size),
            None => self.config.read(register, size),
        }
    }

    fn write_config(&mut self, register: u16, size: usize, value: u64) {
        if let Some(at) = self.window(register, size) {
            return self.transport.write(at, size, value);
        }
        self.config.write(register, size, value);
        self.apply();
    }

    /// Does what the configuration space says.
    fn apply(&mut self) {
        let control = u16::try_from(self.config.read(self.msix + 2, 2)).unwrap_or(0);
        let is_bus_master = self.config.is_bus_master();
        self.transport.device().signals.msix().set_control(control, is_bus_master);
        if self.transport.device().set_bus_master(is_bus_master) {
            self.transport.ring_all();
        }
        if let Err(e) = self.follow() {
            log::warn!("the function does not answer where the guest has put it: {e}");
        }
    }

    /// Returns which part of the function's memory a register of the configuration space shows, if it does.
    fn window(&self, register: u16, size: usize) -> Option<u32> {
        let [bar, offset, len] = [(4, 1), (8, 4), (12, 4)].map(|(at, size)| self.config.read(self.window + at, size));
        let is_window = register == self.window + 16 && bar == 0 && len == size as u64;
        is_window.then(|| in_memory(offset, size)).flatten()
    }

    /// Answers for the function's memory where it is now.
    fn follow(&mut self) -> xenmap::Result<()> {
        let now = self.config.memory();
        if now == self.memory {
            return Ok(());
        }
        if let Some(before) = self.memory {
            // A process that was killed in between may have removed it.
            let removed = self.server.remove_range(memory_at(before));
            removed.or_else(|e| if e.errno() == libc::ENOENT { Ok(()) } else { Err(e) })?;
            self.memory = None;
        }
        if let Some(now) = now {
            add(self.server, memory_at(now))?;
        }
        self.memory = now;
        Ok(())
    }

    /// Writes the state to its file, if there is one.
    pub(crate) fn save(&self) -> Result<()> {
        self.file.map_or(Ok(()), |file| lock(file).write(self.state()))
    }

    fn save_or_warn(&self) {
        if let Err(e) = self.save() {
            log::warn!("a restarted process cannot go on from here: {e}");
        }
    }

    fn state(&self) -> State {
        let (device, mut state) = (self.transport.device(), State::default());
        let numbers = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).collect::<Vec<_>>();
        let image = device.disk.image();
        state.add("domain", [u64::from(self.server.cache().guest().domid().get())]);
        state.add("server", [u64::from(self.server.id().0)]);
        state.add("image", image.identity());
        state.add("size", [image.len()]);
        state.add("read_only", [image.is_read_only().into()]);
        state.add("beside_qemu", [self.bus.is_none().into()]);
        state.add("config", numbers(self.config.registers().bytes()));
        state.add("messages", numbers(device.signals.msix().table().bytes()));
        state.add("selects", self.transport.selects());
        state.add("accepted", [device.accepted.load(Ordering::SeqCst)]);
        // A broken queue shows itself again.
        state.add("status", [u64::from(device.status.load(Ordering::SeqCst) & !NEEDS_RESET)]);
        state.add("vector", [device.signals.config_vector().into()]);
        for queue in self.transport.queues() {
            state.add("queue", queue);
        }
        state
    }

    /// Goes on from the state of another process.
    pub(crate) fn restore(&mut self, state: &State) -> Result<()> {
        let device = self.transport.device();
        let status = state.number::<u8>("status")?.into();
        if status & DRIVER_OK != 0 && status & FEATURES_OK == 0 {
            return Err(damaged("status"));
        }
        device.accepted.store(state.number("accepted")?, Ordering::SeqCst);
        if status & FEATURES_OK != 0 && !device.can_accept() {
            return Err(damaged("accepted"));
        }
        device.signals.set_config_vector(state.number("vector")?);
        self.transport.restore_selects(state.get("selects")?).ok_or_else(|| damaged("selects"))?;
        let messages = state.bytes("messages", device.signals.msix().table().bytes().len())?;
        device.signals.msix().table_mut().restore(&messages);
        let config = state.bytes("config", self.config.registers().bytes().len())?;
        self.config.registers_mut().restore(&config);
        let are_ready = self.transport.restore_queues(state.all("queue")).ok_or_else(|| damaged("queue"))?;

        // From here on, nothing fails. First the messages, so that the guest can be interrupted.
        self.apply();
        let memory = device.memory.memory();
        for (index, (queue, is_ready)) in device.queues.iter().zip(are_ready).enumerate() {
            if is_ready {
                self.transport.enable(index);
                let resumed = lock(&queue.ring).resume(&memory);
                if let Err(broken) = resumed {
                    device.fail(&broken);
                }
            }
        }
        // Only now, as the status lets the threads of the queues begin.
        let is_broken = device.status.fetch_or(status, Ordering::SeqCst) & NEEDS_RESET != 0;
        if status & DRIVER_OK != 0 {
            if is_broken {
                device.signals.configuration();
            }
            // The last answers may not have been followed by an interrupt: one too many does no harm.
            device.queues.iter().for_each(|queue| device.signals.queue(queue.vector()));
        }
        self.transport.ring_all();
        Ok(())
    }
}

impl Registers for Function<'_> {
    fn read(&mut self, at: Target, size: usize) -> u64 {
        match at {
            Target::Pci { function, register } if function == self.at => self.read_config(register, size),
            Target::Memory(address) => match self.offset(address, size) {
                Some(at) => self.transport.read(at, size),
                None => u64::MAX,
            },
            other => self.bus.as_ref().map_or(u64::MAX, |bus| bus.read(other, size)),
        }
    }

    fn write(&mut self, at: Target, size: usize, value: u64) {
        self.is_changed |= self.take(at, size, value);
        self.values_left = self.values_left.saturating_sub(1);
        if self.values_left == 0 && std::mem::take(&mut self.is_changed) {
            self.save_or_warn();
        }
    }
}

impl Function<'_> {
    /// Serves a request. If it writes, the state is saved before the answer, and only once.
    pub(crate) fn serve(&mut self, request: Request) {
        self.values_left = request.count();
        request.serve(self);
    }

    /// Takes a value that the guest writes. Returns whether that may have changed the state.
    fn take(&mut self, at: Target, size: usize, value: u64) -> bool {
        match at {
            Target::Pci { function, register } if function == self.at => {
                self.write_config(register, size, value);
                true
            }
            Target::Memory(address) => self.offset(address, size).is_some_and(|at| {
                self.transport.write(at, size, value);
                !transport::is_doorbell(at) // which is frequent, and changes nothing
            }),
            other => {
                if let Some(bus) = &mut self.bus {
                    bus.write(other, size, value);
                }
                false // these registers a guest only reads again while it looks for PCI
            }
        }
    }

    /// Returns the offset in the function's memory, if it is at this address now.
    fn offset(&self, address: u64, size: usize) -> Option<u32> {
        in_memory(address.checked_sub(self.memory?)?, size)
    }
}

fn in_memory(offset: u64, size: usize) -> Option<u32> {
    let end = offset.checked_add(size as u64)?;
    if end <= transport::SIZE.into() { u32::try_from(offset).ok() } else { None }
}

fn memory_at(address: u64) -> IoRange {
    IoRange::memory(address, address + u64::from(transport::SIZE) - 1)
}

/// Adds a range to a server, unless another process has added it before.
fn add(server: &IoreqServer, range: IoRange) -> xenmap::Result<()> {
    server.add_range(range).or_else(|e| if e.errno() == libc::EEXIST { Ok(()) } else { Err(e) })
}

/// Returns the body of a virtio capability that says where registers are: in BAR 0, at an offset.
fn virtio(size: u8, kind: u8, offset: u32, len: u32) -> [u8; 14] {
    let mut body = [0; 14];
    body[0] = size;
    body[1] = kind;
    body[6..10].copy_from_slice(&offset.to_le_bytes());
    body[10..].copy_from_slice(&len.to_le_bytes());
    body
}
