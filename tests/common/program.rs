//! Programs for a guest's processor: a few instructions that a device model sees. They run on the simulated host, and,
//! as machine code, on a real one.

use xenmap::Gfn;
use xenmap::mock::{MockDomain, MockRep, MockVcpu, VcpuStopped};

/// An instruction, or a few. What a read returns is a result of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    In {
        port: u16,
        size: usize,
    },
    Out {
        port: u16,
        size: usize,
        value: u64,
    },
    Read {
        address: u64,
        size: usize,
    },
    Write {
        address: u64,
        size: usize,
        value: u64,
    },
    RepIn {
        port: u16,
        rep: MockRep,
    },
    RepOut {
        port: u16,
        rep: MockRep,
    },
    RepRead {
        address: u64,
        rep: MockRep,
    },
    RepWrite {
        address: u64,
        rep: MockRep,
    },
    RepStore {
        address: u64,
        size: usize,
        count: u32,
        value: u64,
    },
    /// Adds to a value of 4 bytes, and reads what it was (`lock xadd`).
    Xadd {
        address: u64,
        value: u32,
    },
    /// Gives a frame back to Xen, as a balloon driver does, and reads how many Xen has taken.
    BalloonOut {
        frame: u64,
    },
}

impl Step {
    pub fn has_result(&self) -> bool {
        matches!(self, Step::In { .. } | Step::Read { .. } | Step::Xadd { .. } | Step::BalloonOut { .. })
    }
}

/// Executes a program on a simulated processor, and returns its results.
pub fn execute(domain: &MockDomain, vcpu: &MockVcpu, program: &[Step]) -> Result<Vec<u64>, VcpuStopped> {
    let mut results = Vec::new();
    for &step in program {
        match step {
            Step::In { port, size } => results.push(vcpu.port_in(port, size)?),
            Step::Out { port, size, value } => vcpu.port_out(port, size, value)?,
            Step::Read { address, size } => results.push(vcpu.read(address, size)?),
            Step::Write { address, size, value } => vcpu.write(address, size, value)?,
            Step::RepIn { port, rep } => vcpu.rep_port_in(port, rep)?,
            Step::RepOut { port, rep } => vcpu.rep_port_out(port, rep)?,
            Step::RepRead { address, rep } => vcpu.rep_read(address, rep)?,
            Step::RepWrite { address, rep } => vcpu.rep_write(address, rep)?,
            Step::RepStore { address, size, count, value } => vcpu.rep_store(address, size, count, value)?,
            Step::Xadd { address, value } => results.push(vcpu.fetch_add(address, 4, value.into())?),
            Step::BalloonOut { frame } => {
                domain.balloon_out(Gfn::new(frame).unwrap());
                results.push(1);
            }
        }
    }
    Ok(results)
}

/// Offsets in the page with a program's results, which begins with those.
const ARGUMENT: u64 = 2048;
pub const DONE: usize = 4088;

/// Hypercalls, and `XENMEM_decrease_reservation`.
const MEMORY_OP: u64 = 12;
const DECREASE_RESERVATION: u64 = 1;
const DOMID_SELF: u64 = 0x7FF0;

/// Returns the machine code of a program: 64-bit code that puts its results, of 8 bytes each, into the page at `page`,
/// then 1 into the word at [`DONE`], and then waits forever.
pub fn assemble(program: &[Step], page: u64) -> Vec<u8> {
    let mut code = Code::default();
    code.load(R8, page);
    for &step in program {
        match step {
            Step::In { port, size } => code.port(port).clear_rax().sized(size, 0xEC).store_result(),
            Step::Out { port, size, value } => code.port(port).load(RAX, value).sized(size, 0xEE),
            Step::Read { address, size } => {
                code.load(RCX, address).clear_rax().sized(size, 0x8A).bytes(&[0x01]).store_result()
            }
            Step::Write { address, size, value } => {
                code.load(RCX, address).load(RAX, value).sized(size, 0x88).bytes(&[0x01])
            }
            Step::RepIn { port, rep } => code.port(port).load(RDI, rep.ram).repeat(rep, 0x6C),
            Step::RepOut { port, rep } => code.port(port).load(RSI, rep.ram).repeat(rep, 0x6E),
            Step::RepRead { address, rep } => code.load(RSI, address).load(RDI, rep.ram).repeat(rep, 0xA4),
            Step::RepWrite { address, rep } => code.load(RSI, rep.ram).load(RDI, address).repeat(rep, 0xA4),
            Step::RepStore { address, size, count, value } => {
                let rep = MockRep { ram: 0, size, count, backwards: false };
                code.load(RDI, address).load(RAX, value).repeat(rep, 0xAA)
            }
            Step::Xadd { address, value } => {
                // lock xadd [rcx], eax
                code.load(RCX, address).load(RAX, value.into()).bytes(&[0xF0, 0x0F, 0xC1, 0x01]).store_result()
            }
            Step::BalloonOut { frame } => {
                // struct xen_memory_reservation: extent_start, nr_extents, extent_order and mem_flags, domid. The list
                // of frames follows.
                let argument = page + ARGUMENT;
                for (at, word) in (argument..).step_by(8).zip([argument + 32, 1, 0, DOMID_SELF, frame]) {
                    code.load(RCX, at).load(RAX, word).bytes(&[0x48, 0x89, 0x01]); // mov [rcx], rax
                }
                code.load(RAX, MEMORY_OP).load(RDI, DECREASE_RESERVATION).load(RSI, argument);
                code.bytes(&[0x0F, 0x01, 0xD9]).store_result() // vmmcall: the emulated processor is AMD's
            }
        };
    }
    // mov dword [rcx], 1; then sti; hlt; jmp back to sti. (Xen ends a guest that halts with interrupts off.)
    code.load(RCX, page + DONE as u64).bytes(&[0xC7, 0x01, 1, 0, 0, 0, 0xFB, 0xF4, 0xEB, 0xFC]);
    code.0
}

/// The prefix and opcode of `mov register, imm64`.
const RAX: [u8; 2] = [0x48, 0xB8];
const RCX: [u8; 2] = [0x48, 0xB9];
const RSI: [u8; 2] = [0x48, 0xBE];
const RDI: [u8; 2] = [0x48, 0xBF];
const R8: [u8; 2] = [0x49, 0xB8];

#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Code {
        self.0.extend(bytes);
        self
    }

    fn load(&mut self, register: [u8; 2], value: u64) -> &mut Code {
        self.bytes(&register).bytes(&value.to_le_bytes())
    }

    /// Loads DX.
    fn port(&mut self, port: u16) -> &mut Code {
        self.bytes(&[0x66, 0xBA]).bytes(&port.to_le_bytes())
    }

    fn clear_rax(&mut self) -> &mut Code {
        self.bytes(&[0x31, 0xC0])
    }

    /// Adds an opcode with the prefix for a size: the opcode for bytes, or the next one for other sizes.
    fn sized(&mut self, size: usize, opcode: u8) -> &mut Code {
        match size {
            1 => self.bytes(&[opcode]),
            2 => self.bytes(&[0x66, opcode + 1]),
            4 => self.bytes(&[opcode + 1]),
            8 => self.bytes(&[0x48, opcode + 1]),
            _ => panic!("{size} bytes"),
        }
    }

    /// Stores RAX at R8, and moves R8 on.
    fn store_result(&mut self) -> &mut Code {
        self.bytes(&[0x49, 0x89, 0x00, 0x49, 0x83, 0xC0, 8])
    }

    /// Repeats a string instruction.
    fn repeat(&mut self, rep: MockRep, opcode: u8) -> &mut Code {
        self.bytes(&[0xB9]).bytes(&rep.count.to_le_bytes()); // mov ecx
        if rep.backwards {
            self.bytes(&[0xFD]); // std
        }
        match rep.size {
            1 => self.bytes(&[0xF3, opcode]),
            2 => self.bytes(&[0x66, 0xF3, opcode + 1]),
            4 => self.bytes(&[0xF3, opcode + 1]),
            8 => self.bytes(&[0xF3, 0x48, opcode + 1]),
            size => panic!("{size} bytes"),
        };
        self.bytes(&[0xFC]) // cld
    }
}
