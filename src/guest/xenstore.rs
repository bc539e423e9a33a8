//! The names of domains, from xenstore.

use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::types::Domid;

/// Where the kernel hands messages on, if xenstored has no socket here because it runs in a domain of its own.
const DEVICES: [&str; 2] = ["/dev/xen/xenbus", "/proc/xen/xenbus"];

/// How long an answer is waited for. The device can be opened even if there is no xenstored at all.
const PATIENCE: Duration = Duration::from_secs(1);

// xen/include/public/io/xs_wire.h
const XS_READ: u32 = 2;
const XS_WATCH_EVENT: u32 = 15;
const XS_ERROR: u32 = 16;
/// Bytes in front of a message: type, request, transaction and length of what follows, each a u32.
const HEADER: usize = 16;
/// The most bytes that follow (`XENSTORE_PAYLOAD_MAX`).
const MAX_PAYLOAD: usize = 4096;

/// What tells the names of domains; nothing, where there is no xenstore or it does not answer.
pub(super) struct Names(Option<Connection>);

/// A connection to xenstored.
struct Connection(Box<dyn Stream>);

trait Stream: Read + Write + AsFd {}
impl<T: Read + Write + AsFd> Stream for T {}

impl Names {
    pub(super) fn open() -> Names {
        let folder = env::var_os("XENSTORED_RUNDIR").map(PathBuf::from);
        let folders = folder.into_iter().chain(["/run/xenstored", "/var/run/xenstored"].map(PathBuf::from));
        let mut sockets = folders.filter_map(|folder| Connection::to_socket(&folder.join("socket")).ok());
        let mut devices = DEVICES.iter().filter_map(|path| Connection::to_device(path).ok());
        Names(sockets.next().or_else(|| devices.next()))
    }

    /// The name of a domain, if it has one.
    pub(super) fn of(&mut self, domid: Domid) -> Option<String> {
        let path = format!("/local/domain/{domid}/name");
        match self.0.as_mut()?.read(&path) {
            Ok(name) => name.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            Err(e) => {
                log::debug!("no names of domains from xenstore: {e}");
                // Whatever else it says cannot be told from a late answer, and nobody should wait again.
                self.0 = None;
                None
            }
        }
    }
}

impl Connection {
    fn to_socket(path: &Path) -> io::Result<Connection> {
        // `UnixStream::connect` waits for ever for a xenstored that takes no more callers.
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Connection(Box::new(UnixStream::from(socket))))
    }

    fn to_device(path: &str) -> io::Result<Connection> {
        Ok(Connection(Box::new(File::options().read(true).write(true).open(path)?)))
    }

    /// What xenstore has under a path; `None` if that does not exist or may not be read.
    fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let len = u32::try_from(path.len() + 1).map_err(io::Error::other)?;
        let mut message: Vec<u8> = [XS_READ, 0, 0, len].into_iter().flat_map(u32::to_ne_bytes).collect();
        message.extend(path.bytes().chain([0]));
        self.0.write_all(&message)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let header = self.receive(HEADER, deadline)?;
            let word = |i: usize| header[4 * i..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
            let (kind, len) = (word(0), usize::try_from(word(3)).unwrap_or(usize::MAX));
            if len > MAX_PAYLOAD {
                return Err(ErrorKind::InvalidData.into());
            }
            let payload = self.receive(len, deadline)?;
            match kind {
                XS_READ => return Ok(Some(payload)),
                XS_ERROR => return Ok(None),
                XS_WATCH_EVENT => {}
                _ => return Err(ErrorKind::InvalidData.into()),
            }
        }
    }

    /// The next `len` bytes that xenstored sends.
    fn receive(&mut self, len: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Err(ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            }
            match self.0.read(rest) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => rest = &mut rest[count..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const NONE: &str = "(no name)";

    fn message(kind: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        let mut bytes: Vec<u8> = [kind, 0, 0, len].into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend(payload);
        bytes
    }

    /// A folder for a test, and a socket in it.
    fn socket_path(test: &str) -> (PathBuf, PathBuf) {
        let folder = env::temp_dir().join(format!("xenmap-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("socket");
        (folder, socket)
    }

    /// Asks a xenstored that gives these answers for the names of domains 1, 2, …, one for each answer. An empty
    /// answer is none.
    fn names(test: &str, answers: &[Vec<u8>]) -> Vec<String> {
        let (folder, socket) = socket_path(test);
        let listener = UnixListener::bind(&socket).unwrap();
        let mut names = Names(Some(Connection::to_socket(&socket).unwrap()));
        std::fs::remove_dir_all(&folder).unwrap();

        let domids = 1..=u16::try_from(answers.len()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                for (domid, answer) in domids.clone().zip(answers) {
                    let expected = message(XS_READ, format!("/local/domain/{domid}/name\0").as_bytes());
                    let mut asked = vec![0; expected.len()];
                    if stream.read_exact(&mut asked).is_err() {
                        return; // It has given up.
                    }
                    assert_eq!(asked, expected);
                    // In two pieces, as a stream may deliver it.
                    let (first, second) = answer.split_at(answer.len() / 2);
                    stream.write_all(first).unwrap();
                    stream.write_all(second).unwrap();
                }
                // Silent until the other side has gone.
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            });
            let ask = |domid| names.of(Domid::new(domid).unwrap()).unwrap_or_else(|| NONE.to_owned());
            let found = domids.clone().map(ask).collect();
            drop(names);
            found
        })
    }

    #[test]
    fn names_are_read_over_one_connection() {
        let answers = [message(XS_READ, b"web"), message(XS_ERROR, b"ENOENT\0"), message(XS_READ, b"db")];
        assert_eq!(names("several", &answers), ["web", NONE, "db"]);
    }

    #[test]
    fn watch_event_is_not_taken_for_the_answer() {
        let answer = [message(XS_WATCH_EVENT, b"path\0token\0"), message(XS_READ, b"web")].concat();
        assert_eq!(names("event", &[answer]), ["web"]);
    }

    #[test]
    fn silent_xenstored_is_waited_for_once() {
        let start = Instant::now();
        assert_eq!(names("silent", &[vec![], message(XS_READ, b"db")]), [NONE; 2]);
        assert!((PATIENCE..2 * PATIENCE).contains(&start.elapsed()), "{:?}", start.elapsed());
    }

    #[test]
    fn xenstored_that_takes_no_more_callers_is_not_waited_for() {
        let (folder, socket) = socket_path("full");
        let listener = UnixListener::bind(&socket).unwrap();
        // Else it may take more callers than this process can have open files.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let mut callers = Vec::new();
        let refused = loop {
            match Connection::to_socket(&socket) {
                Ok(caller) => callers.push(caller),
                Err(e) => break e,
            }
        };
        assert_eq!(refused.kind(), ErrorKind::WouldBlock);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn nonsense_is_no_name() {
        let mut too_long = message(XS_READ, b"");
        too_long[12..].fill(0xFF);
        assert_eq!(names("length", &[too_long]), [NONE]);
        assert_eq!(names("type", &[message(99, b"web")]), [NONE]);
        assert_eq!(names("text", &[message(XS_READ, b"we\xFFb")]), ["we\u{FFFD}b"]);
    }
}
