//! Touching a failed frame in an Arm dom0 ends the process.
//!
//! On Xen, the kernel gets a fault of an unknown type and kills the process; no handler can prevent that. Here, such a
//! frame is a page of a memory file that stays empty, so touching it raises SIGBUS, and a handler of that signal aborts
//! the process with an explanation. The page's offset in the file says which frame it stands for, so the handler needs
//! only the kernel's list of mappings: no lock, no memory and no state of any host.

#![expect(unsafe_code, reason = "handles a signal")]

use std::ffi::{CStr, c_int, c_void};
use std::fmt::{self, Write};
use std::io;
use std::sync::OnceLock;

use nix::errno::Errno;

/// The name of the file.
pub(super) const FILE: &CStr = c"xenmap-fatal";

/// The page of the file that stands for the first frame past the end of a mapping. No frame number is as large, and a
/// file may be.
const PAST_THE_END: usize = 1 << 50;

/// `si_code` of a SIGBUS for a page that its file does not have (`BUS_ADRERR`).
const NO_SUCH_PAGE: c_int = 2;

/// Returns the page of the file that stands for a frame.
pub(super) fn page_of(gfn: u64) -> usize {
    usize::try_from(gfn).map_or(PAST_THE_END - 1, |gfn| gfn.min(PAST_THE_END - 1))
}

/// Returns the page of the file that stands for memory past a mapping's last frame; `index` is its index in the
/// mapping.
pub(super) fn page_past_end(index: usize) -> usize {
    PAST_THE_END + index
}

/// The handler that was installed before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler, once in a process.
///
/// # Panics
///
/// If the system does not allow it.
pub(super) fn install_handler() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        install().unwrap_or_else(|e| panic!("the mock needs a SIGBUS handler for its Arm dom0: {e}"));
    });
}

fn install() -> io::Result<()> {
    // SAFETY: the structure is integers, a set of bits and pointers that may be null.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only writes the current action to our own structure.
    check(unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) })?;
    // Before the handler can be called, which reads it.
    BEFORE.get_or_init(|| before);
    let mut ours = before;
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;
    ours.sa_sigaction = handler as libc::sighandler_t;
    // The alternate stack is for the standard library's handler, which detects stack overflows.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler calls only functions that a signal handler may call, and forwards signals that are not for
    // it.
    check(unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut()) })
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to each handler with SA_SIGINFO.
    let about = unsafe { &*info };
    if about.si_code == NO_SUCH_PAGE {
        // SAFETY: a signal with this code has an address.
        let addr = unsafe { about.si_addr() }.addr();
        let errno = Errno::last_raw();
        if let Some(page) = fatal_page(addr) {
            explain(addr, page);
            std::process::abort();
        }
        Errno::set_raw(errno);
    }
    let is_sent = about.si_code <= 0;
    forward(signal, is_sent, info, context);
}

/// Does what would have happened without our handler. A signal that a process sent is not about an access.
fn forward(signal: c_int, is_sent: bool, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(before) = BEFORE.get() else { std::process::abort() };
    match before.sa_sigaction {
        libc::SIG_IGN if is_sent => {}
        // The kernel does not let a process ignore an access that faults.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the structure is integers, a set of bits and pointers that may be null: `SIG_DFL`, no flags.
            let default: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: sets the default action, which runs no code of the process.
            unsafe { libc::sigaction(signal, &raw const default, std::ptr::null_mut()) };
            // SAFETY: the signal is blocked until the handler returns; then the default action ends the process.
            unsafe { libc::raise(signal) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: a handler that was installed with SA_SIGINFO is a function of this type.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: a handler that was installed without SA_SIGINFO is a function of this type.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// Returns the page of our file that is mapped at an address, or `None` if another file is or none. It reads the
/// kernel's list (`start-end permissions offset device inode name`) by calls that a signal handler may make.
fn fatal_page(addr: usize) -> Option<usize> {
    // SAFETY: the path is a literal C string.
    let fd = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // Keeps as much of each line as fits: the fields that matter are at its beginning.
    let (mut line, mut len) = ([0; 160], 0);
    let mut block = [0_u8; 512];
    let found = 'search: loop {
        // SAFETY: writes at most `block.len()` bytes, to our own block.
        let read = unsafe { libc::read(fd, block.as_mut_ptr().cast(), block.len()) };
        let Some(read) = usize::try_from(read).ok().filter(|&read| read != 0) else { break None };
        for &byte in &block[..read] {
            if byte == b'\n' {
                if let Some((is_ours, offset)) = line.get(..len).and_then(|line| file_at(line, addr)) {
                    break 'search is_ours.then_some(offset);
                }
                len = 0;
            } else if let Some(place) = line.get_mut(len) {
                *place = byte;
                len += 1;
            }
        }
    };
    // SAFETY: opened above, and not used any more.
    unsafe { libc::close(fd) };
    found.map(|offset| offset / crate::types::FRAME_SIZE)
}

/// If a line covers an address, returns whether it is for our file, and the address's offset in the mapped file.
fn file_at(line: &[u8], addr: usize) -> Option<(bool, usize)> {
    let mut fields = line.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    let mut range = fields.next()?.split(|&byte| byte == b'-');
    let (start, end) = (hex(range.next()?)?, hex(range.next()?)?);
    if !(start..end).contains(&addr) {
        return None;
    }
    let offset = fields.nth(1).and_then(hex)?;
    let name = fields.nth(2).and_then(|name| name.strip_prefix(b"/memfd:"));
    Some((name == Some(FILE.to_bytes()), offset + (addr - start)))
}

fn hex(digits: &[u8]) -> Option<usize> {
    usize::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// Writes to stderr what was touched.
fn explain(addr: usize, page: usize) {
    let text = explanation(addr, page);
    // SAFETY: `text` has `len` initialised bytes.
    unsafe { libc::write(libc::STDERR_FILENO, text.bytes.as_ptr().cast(), text.len) };
}

fn explanation(addr: usize, page: usize) -> Text {
    let mut text = Text { bytes: [0; 320], len: 0 };
    let what = match page.checked_sub(PAST_THE_END) {
        None => write!(text, "\nxenmap's mock: frame {page:#x}, which could not be mapped,"),
        Some(index) => write!(text, "\nxenmap's mock: memory past the last frame of a mapping (index {index})"),
    };
    // It fits.
    let _ = what.and_then(|()| {
        writeln!(
            text,
            " was touched at {addr:#x}. An Arm kernel kills the process for that (SIGKILL), or crashes if a system \
             call touched it."
        )
    });
    text
}

/// Text that needs no allocator.
struct Text {
    bytes: [u8; 320],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let place = self.bytes.get_mut(self.len..self.len + more.len()).ok_or(fmt::Error)?;
        place.copy_from_slice(more.as_bytes());
        self.len += more.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_another_address_is_skipped() {
        let line = b"7f00-8f00 r--s 00000000 00:01 1024                       /memfd:xenmap-fatal (deleted)";
        assert_eq!(file_at(line, 0x6fff), None);
        assert_eq!(file_at(line, 0x8f00), None);
        assert_eq!(file_at(b"", 0), None);
    }

    #[test]
    fn line_of_our_file_gives_the_page() {
        let line = b"7f000-8f000 r--s 123000 00:01 1024                       /memfd:xenmap-fatal (deleted)";
        assert_eq!(file_at(line, 0x80_123), Some((true, 0x12_4123)));
    }

    #[test]
    fn line_of_another_file_or_none_is_not_ours() {
        for name in ["/memfd:xenmap-empty (deleted)", "/memfd:xenmap-fatal2", "[heap]", ""] {
            let line = format!("7f000-8f000 rw-p 00000000 00:00 0     {name}");
            assert_eq!(file_at(line.as_bytes(), 0x80_123).map(|(is_ours, _)| is_ours), Some(false), "{name}");
        }
    }

    #[test]
    fn explanation_fits() {
        for page in [PAST_THE_END - 1, PAST_THE_END, usize::MAX] {
            let text = explanation(usize::MAX, page);
            let text = str::from_utf8(&text.bytes[..text.len]).unwrap().to_owned();
            assert!(text.ends_with("touched it.\n"), "{text}");
        }
    }
}
