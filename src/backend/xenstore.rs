//! Reads the names of domains from xenstore.

use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::types::Domid;

/// Where the kernel forwards messages if xenstored has no socket here because it runs in a domain of its own.
const DEVICES: [&str; 2] = ["/dev/xen/xenbus", "/proc/xen/xenbus"];

/// How long a caller waits for all its names together. The device can be opened even if no xenstored runs.
const TIMEOUT: Duration = Duration::from_secs(1);

// xen/include/public/io/xs_wire.h
const XS_READ: u32 = 2;
const XS_WATCH_EVENT: u32 = 15;
const XS_ERROR: u32 = 16;
/// The size of a message's header in bytes: type, request, transaction and length of the payload, each a u32.
const HEADER: usize = 16;
/// The largest payload in bytes (`XENSTORE_PAYLOAD_MAX`).
const MAX_PAYLOAD: usize = 4096;

/// Reads domain names; `None` if xenstore is missing or does not answer.
pub(super) struct Names(Option<Connection>);

/// A connection to xenstored, which is given up at the deadline. The peer is not trusted: it may send anything, at any
/// pace.
struct Connection {
    /// Never blocks (`O_NONBLOCK`). Before Linux 4.11, write(2) on the device waits for the answer all the same.
    stream: Box<dyn Stream>,
    deadline: Instant,
}

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

    /// Returns the name of a domain, if it has one.
    pub(super) fn of(&mut self, domid: Domid) -> Option<String> {
        let path = format!("/local/domain/{domid}/name");
        match self.0.as_mut()?.read(&path) {
            Ok(name) => name.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            Err(e) => {
                log::debug!("no names of domains from xenstore: {e}");
                // The connection may be out of sync, or the time is up.
                self.0 = None;
                None
            }
        }
    }
}

impl Connection {
    fn new(stream: impl Stream + 'static) -> Connection {
        Connection { stream: Box::new(stream), deadline: Instant::now() + TIMEOUT }
    }

    fn to_socket(path: &Path) -> io::Result<Connection> {
        // `UnixStream::connect` blocks forever if xenstored's backlog is full.
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Connection::new(UnixStream::from(socket)))
    }

    fn to_device(path: &str) -> io::Result<Connection> {
        let mut options = File::options();
        Ok(Connection::new(options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?))
    }

    /// Reads the value of a path; `None` if the path does not exist or may not be read.
    fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let len = u32::try_from(path.len() + 1).map_err(io::Error::other)?;
        let mut message: Vec<u8> = [XS_READ, 0, 0, len].into_iter().flat_map(u32::to_ne_bytes).collect();
        message.extend(path.bytes().chain([0]));
        // If there is no room for these few bytes, xenstored has left many requests unread: an error is right.
        self.stream.write_all(&message)?;
        loop {
            let header = self.receive(HEADER)?;
            let word = |i: usize| header[4 * i..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
            let (kind, len) = (word(0), usize::try_from(word(3)).unwrap_or(usize::MAX));
            if len > MAX_PAYLOAD {
                return Err(ErrorKind::InvalidData.into());
            }
            let payload = self.receive(len)?;
            // The number of the request is ignored: Linux 4.11 to 4.15 replaces it by one of its own.
            match kind {
                XS_WATCH_EVENT => {}
                XS_READ => return Ok(Some(payload)),
                XS_ERROR => return Ok(None),
                _ => return Err(ErrorKind::InvalidData.into()),
            }
        }
    }

    /// Receives `len` bytes.
    fn receive(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Even a poll with no timeout would succeed while a flood of messages comes in.
                return Err(ErrorKind::TimedOut.into());
            }
            let timeout = PollTimeout::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Err(ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            }
            match self.stream.read(rest) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => rest = &mut rest[count..],
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const NONE: &str = "(no name)";

    /// Makes a message that answers a request.
    fn message(kind: u32, request: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        let mut bytes: Vec<u8> = [kind, request, 0, len].into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend(payload);
        bytes
    }

    /// Makes a folder for a test, and the path of a socket in it.
    fn socket_path(test: &str) -> (PathBuf, PathBuf) {
        let folder = env::temp_dir().join(format!("xenmap-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("socket");
        (folder, socket)
    }

    /// Asks a xenstored that gives these answers for the names of domains 1, 2, …, one for each answer. It does not
    /// answer where the answer is empty.
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
                    let expected = message(XS_READ, 0, format!("/local/domain/{domid}/name\0").as_bytes());
                    let mut asked = vec![0; expected.len()];
                    if stream.read_exact(&mut asked).is_err() {
                        return; // The client has given up.
                    }
                    assert_eq!(asked, expected);
                    // In two pieces, as a stream may deliver it.
                    let (first, second) = answer.split_at(answer.len() / 2);
                    stream.write_all(first).unwrap();
                    stream.write_all(second).unwrap();
                }
                // Silent until the client has closed the connection.
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
        let answers = [message(XS_READ, 1, b"web"), message(XS_ERROR, 2, b"ENOENT\0"), message(XS_READ, 3, b"db")];
        assert_eq!(names("several", &answers), ["web", NONE, "db"]);
    }

    #[test]
    fn watch_event_is_skipped() {
        let event = message(XS_WATCH_EVENT, 0, b"path\0token\0");
        assert_eq!(names("event", &[[event, message(XS_READ, 0, b"web")].concat()]), ["web"]);
    }

    #[test]
    fn request_number_in_the_answer_is_ignored() {
        assert_eq!(names("number", &[message(XS_READ, 77, b"web")]), ["web"]);
    }

    #[test]
    fn silent_xenstored_is_waited_for_once() {
        let start = Instant::now();
        assert_eq!(names("silent", &[vec![], message(XS_READ, 2, b"db")]), [NONE; 2]);
        assert!((TIMEOUT / 2..2 * TIMEOUT).contains(&start.elapsed()), "{:?}", start.elapsed());
    }

    /// A device that accepts every request and repeats a message forever, `at_most` bytes per call.
    struct Flood {
        message: Vec<u8>,
        next: usize,
        at_most: usize,
        ready: File,
    }

    impl Read for Flood {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let rest = &self.message[self.next..];
            let count = rest.len().min(buffer.len()).min(self.at_most);
            buffer[..count].copy_from_slice(&rest[..count]);
            self.next = (self.next + count) % self.message.len();
            Ok(count)
        }
    }

    impl Write for Flood {
        fn write(&mut self, request: &[u8]) -> io::Result<usize> {
            Ok(request.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Flood {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.ready.as_fd()
        }
    }

    fn flood(message: &[u8], at_most: usize) -> Names {
        let ready = File::open("/dev/zero").unwrap();
        Names(Some(Connection::new(Flood { message: message.to_vec(), next: 0, at_most, ready })))
    }

    #[test]
    fn flood_of_watch_events_ends_at_the_deadline() {
        for at_most in [1, usize::MAX] {
            let (found, time) = three_names(flood(&message(XS_WATCH_EVENT, 0, b"path\0token\0"), at_most));
            assert_eq!(found, [NONE; 3]);
            assert!(time < 2 * TIMEOUT, "{time:?}");
        }
    }

    #[test]
    fn answer_that_comes_byte_by_byte_is_read() {
        let (found, _) = three_names(flood(&message(XS_READ, 0, b"web"), 1));
        assert_eq!(found, ["web"; 3]);
    }

    #[test]
    fn xenstored_that_reads_nothing_is_not_waited_for() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[0; 64]).is_ok() {}
        let (found, time) = three_names(Names(Some(Connection::new(ours))));
        assert_eq!(found, [NONE; 3]);
        assert!(time < TIMEOUT, "{time:?}");
    }

    #[test]
    fn all_names_share_one_deadline() {
        let mut names = flood(&message(XS_READ, 0, b"web"), usize::MAX);
        let domid = Domid::new(1).unwrap();
        assert_eq!(names.of(domid).as_deref(), Some("web"));
        // As if the first answer had taken all the time.
        names.0.as_mut().unwrap().deadline = Instant::now();
        assert_eq!(names.of(domid), None);
    }

    /// Asks for the names of domains 1 to 3, and measures the time.
    fn three_names(mut names: Names) -> (Vec<String>, Duration) {
        let start = Instant::now();
        let ask = |domid| names.of(Domid::new(domid).unwrap()).unwrap_or_else(|| NONE.to_owned());
        ((1..=3).map(ask).collect(), start.elapsed())
    }

    #[test]
    fn xenstored_with_a_full_backlog_is_not_waited_for() {
        let (folder, socket) = socket_path("full");
        let listener = UnixListener::bind(&socket).unwrap();
        // With a longer backlog, this process may run out of file descriptors first.
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
    fn invalid_answer_is_no_name() {
        let mut too_long = message(XS_READ, 1, b"");
        too_long[12..].fill(0xFF);
        assert_eq!(names("length", &[too_long]), [NONE]);
        assert_eq!(names("type", &[message(99, 1, b"web")]), [NONE]);
        assert_eq!(names("text", &[message(XS_READ, 1, b"we\xFFb")]), ["we\u{FFFD}b"]);
    }
}
