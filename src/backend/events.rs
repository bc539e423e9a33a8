//! The device for event channels.

#![expect(unsafe_code, reason = "ioctls")]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::abi;
use crate::types::Domid;

/// An open /dev/xen/evtchn, real or simulated. It does not block.
pub(crate) trait EventDevice: fmt::Debug + Send + Sync {
    /// Binds a domain's port to a new local port, and returns the latter. The new port has an event pending.
    fn bind_interdomain(&self, domid: Domid, remote_port: u32) -> io::Result<u32>;

    /// Creates a local port to which the domain may bind, and returns it.
    fn bind_unbound(&self, domid: Domid) -> io::Result<u32>;

    fn unbind(&self, port: u32) -> io::Result<()>;

    fn notify(&self, port: u32) -> io::Result<()>;

    /// Forgets all pending events, and the error of an overflow. The ports of these events stay masked.
    fn reset(&self) -> io::Result<()>;

    /// Permanently restricts this open file to the ports of one domain.
    fn restrict(&self, domid: Domid) -> io::Result<()>;

    /// Returns a port that has an event pending, and masks it; the error is `WouldBlock` if there is none.
    fn read(&self) -> io::Result<u32>;

    fn unmask(&self, port: u32) -> io::Result<()>;

    /// Returns a descriptor that can be read when an event is pending.
    fn fd(&self) -> BorrowedFd<'_>;
}

/// The device of a real Xen host.
#[derive(Debug)]
pub(crate) struct KernelEvents(File);

impl KernelEvents {
    pub(crate) const PATH: &str = "/dev/xen/evtchn";

    pub(crate) fn open() -> io::Result<KernelEvents> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        Ok(KernelEvents(OpenOptions::new().read(true).write(true).custom_flags(flags).open(Self::PATH)?))
    }

    /// Uses an open device, and makes it non-blocking.
    pub(crate) fn from_owned_fd(fd: OwnedFd) -> io::Result<KernelEvents> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(KernelEvents(File::from(fd)))
    }

    /// Makes an ioctl, and returns its result.
    ///
    /// # Safety
    ///
    /// `number` is an ioctl of the device whose argument is a `T`.
    unsafe fn ioctl<T>(&self, number: u32, mut argument: T) -> io::Result<u32> {
        // SAFETY: the argument lives until the call returns, and has the size that the number says (the caller's
        // promise).
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::Ioctl::from(number), &raw mut argument) };
        u32::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

impl EventDevice for KernelEvents {
    fn bind_interdomain(&self, domid: Domid, remote_port: u32) -> io::Result<u32> {
        let remote = abi::BindInterdomain { remote_domain: domid.get().into(), remote_port };
        // SAFETY: this ioctl takes this structure.
        unsafe { self.ioctl(abi::IOCTL_EVTCHN_BIND_INTERDOMAIN, remote) }
    }

    fn bind_unbound(&self, domid: Domid) -> io::Result<u32> {
        // SAFETY: this ioctl takes an integer, the domain.
        unsafe { self.ioctl(abi::IOCTL_EVTCHN_BIND_UNBOUND_PORT, u32::from(domid.get())) }
    }

    fn unbind(&self, port: u32) -> io::Result<()> {
        // SAFETY: this ioctl takes an integer, the port.
        unsafe { self.ioctl(abi::IOCTL_EVTCHN_UNBIND, port) }.map(|_| ())
    }

    fn notify(&self, port: u32) -> io::Result<()> {
        // SAFETY: this ioctl takes an integer, the port.
        unsafe { self.ioctl(abi::IOCTL_EVTCHN_NOTIFY, port) }.map(|_| ())
    }

    fn reset(&self) -> io::Result<()> {
        // SAFETY: this ioctl has no argument.
        unsafe { self.ioctl(abi::IOCTL_EVTCHN_RESET, ()) }.map(|_| ())
    }

    fn restrict(&self, domid: Domid) -> io::Result<()> {
        // SAFETY: this ioctl takes a domid.
        unsafe { self.ioctl(abi::IOCTL_EVTCHN_RESTRICT_DOMID, domid.get()) }.map(|_| ())
    }

    fn read(&self) -> io::Result<u32> {
        let mut port = [0; 4];
        match (&self.0).read(&mut port)? {
            4 => Ok(u32::from_ne_bytes(port)),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn unmask(&self, port: u32) -> io::Result<()> {
        (&self.0).write_all(&port.to_ne_bytes())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn ports_are_read_without_blocking_and_written_back() {
        let (mut kernel, program) = UnixStream::pair().unwrap();
        let device = KernelEvents::from_owned_fd(program.into()).unwrap();
        assert_eq!(device.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);

        kernel.write_all(&[7_u32.to_ne_bytes(), 9_u32.to_ne_bytes()].concat()).unwrap();
        assert_eq!((device.read().unwrap(), device.read().unwrap()), (7, 9), "one at a time");
        device.unmask(9).unwrap();
        let mut unmasked = [0; 4];
        kernel.read_exact(&mut unmasked).unwrap();
        assert_eq!(u32::from_ne_bytes(unmasked), 9);
    }

    #[test]
    fn nothing_to_read_is_no_event() {
        let (kernel, program) = UnixStream::pair().unwrap();
        let device = KernelEvents::from_owned_fd(program.into()).unwrap();
        drop(kernel);
        // As the kernel answers when it has less than a port.
        assert_eq!(device.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
