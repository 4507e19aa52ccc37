//! The messages between the parent and a child, and their frames on a socket.
//!
//! Owns the bytes. Both ends are of one build, so there are no versions. Invariant: the reader of a frame bounds its
//! length before reading, and neither end trusts the other: strangers supply the code that a child runs.
//!
//! A frame is its length as `u32` in little-endian order, and a message in postcard's form.

use std::io::{self, BufWriter, Read, Write};

use postcard::ser_flavors::Size;
use serde::{Deserialize, Serialize};

use crate::check::{ModuleInfo, Role};
use crate::policy::{PolicyFailure, PolicyLimits, Vote};
use crate::run::{AskError, Limits, Ran};

/// Longest frame to a child, in bytes: the longest module with its data, or code made from one.
pub(crate) const MAX_TO_CHILD: usize = 64 << 20;

/// Longest piece of compiled code, in bytes, since the daemon keeps it. The densest admitted code becomes sixty times
/// as long.
pub(crate) const MAX_CODE: usize = 8 << 20;

/// The most bytes that a child adds around a vector, an output or code.
pub(crate) const MARGIN: usize = 8 << 10;

/// SHA-256 of a module without its data: the name of its code.
pub(crate) type CodeKey = [u8; 32];

/// The parent's messages to a child.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToChild<'a> {
    /// Compile this module. Answered with [`FromChild::Compiled`].
    Compile {
        role: Role,
        #[serde(borrow, with = "bytes")]
        wasm: &'a [u8],
    },
    /// Keep this code. Not answered: a later message that uses it reports its errors.
    Keep {
        key: CodeKey,
        /// [`seal`] over the other fields.
        seal: [u8; 32],
        role: Role,
        #[serde(borrow, with = "bytes")]
        code: &'a [u8],
        /// Code to evict for it.
        instead_of: Option<CodeKey>,
    },
    /// Run kept code. Answered with any number of [`FromChild::Asked`] and one [`FromChild::Ended`].
    Run {
        key: CodeKey,
        limits: Limits,
        submits: bool,
        initial_pages: u64,
        #[serde(borrow)]
        data: Vec<Segment<'a>>,
    },
    /// The answer to a question.
    Answer(Result<u32, AskError>),
    /// Ask kept code of a policy oracle. Answered with [`FromChild::Voted`].
    Decide {
        key: CodeKey,
        limits: PolicyLimits,
        #[serde(borrow, with = "bytes")]
        input: &'a [u8],
    },
}

/// A data segment of a module: its address and its bytes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Segment<'a> {
    pub(crate) address: u32,
    #[serde(borrow, with = "bytes")]
    pub(crate) bytes: &'a [u8],
}

/// A child's messages. A fault is the host's, in the engine's words.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromChild<'a> {
    /// Sent once, when the child is ready.
    Ready(Ready),
    /// Compiled code, or the engine's reason.
    Compiled(#[serde(borrow)] Result<Code<'a>, String>),
    /// A guest asks about a vector.
    Asked(#[serde(borrow, with = "bytes")] &'a [u8]),
    /// A run has ended.
    Ended(Result<Ran, String>),
    /// A policy oracle has answered, or failed.
    Voted(Result<Vote, PolicyFailure>),
}

/// Compiled code in the engine's own form.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Code<'a>(#[serde(borrow, with = "bytes")] pub(crate) &'a [u8]);

/// A child's report about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) engine_id: String,
    pub(crate) walls: Walls,
}

/// The kernel's walls around the children, beside their limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walls {
    /// seccomp allows only the system calls that computing needs.
    pub seccomp: bool,
    /// Landlock takes away every file and, if the kernel supports it, every network connection.
    pub landlock: bool,
}

/// Binds compiled code to the module that it is made from and to the engine that made it.
pub(crate) fn seal(engine_id: &str, role: Role, key: &CodeKey, code: &[u8]) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let mut digest = Sha256::new();
    // The length separates the name from the following bytes: no two inputs hash the same bytes.
    digest.update((engine_id.len() as u64).to_le_bytes());
    digest.update(engine_id);
    digest.update([role as u8]);
    digest.update(key);
    digest.update(code);
    digest.finalize().into()
}

/// The message for a run of an admitted module, beside its code.
pub(crate) fn run_of<'a>(
    key: CodeKey,
    info: &ModuleInfo,
    limits: &Limits,
    data: &'a [(u32, Box<[u8]>)],
) -> ToChild<'a> {
    ToChild::Run {
        key,
        limits: *limits,
        submits: info.submits,
        initial_pages: info.initial_memory_pages,
        data: data
            .iter()
            .map(|(address, bytes)| Segment {
                address: *address,
                bytes,
            })
            .collect(),
    }
}

/// One end of the socket, with the bytes that were read last.
pub(crate) struct Link<S> {
    socket: S,
    buffer: Vec<u8>,
    /// The part of the buffer that is read and not yet taken.
    filled: std::ops::Range<usize>,
}

/// The most of the buffer that is kept between messages, in bytes.
const KEPT_BUFFER: usize = 64 << 10;

impl<S: Read + Write> Link<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self {
            socket,
            buffer: vec![0; KEPT_BUFFER],
            filled: 0..0,
        }
    }

    pub(crate) fn socket(&self) -> &S {
        &self.socket
    }

    /// Writes one message, without copying a large one.
    pub(crate) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let len =
            postcard::serialize_with_flavor(message, Size::default()).map_err(io::Error::other)?;
        let head = u32::try_from(len).map_err(io::Error::other)?.to_le_bytes();
        let capacity = (4 + len).min(KEPT_BUFFER);
        let mut to = Noticing {
            to: BufWriter::with_capacity(capacity, &mut self.socket),
            error: None,
        };
        to.write_all(&head)?;
        if let Err(error) = postcard::to_io(message, &mut to) {
            return Err(to.error.unwrap_or_else(|| io::Error::other(error)));
        }
        to.to.flush()
    }

    /// Reads one message of at most `most` bytes. `None`: the other end closed the socket before
    /// it.
    pub(crate) fn receive<'a, T: Deserialize<'a>>(
        &'a mut self,
        most: usize,
    ) -> io::Result<Option<T>> {
        if !self.fill(4)? {
            return Ok(None);
        }
        let head = self.filled.start;
        let mut len = [0; 4];
        len.copy_from_slice(&self.buffer[head..head + 4]);
        let len = u32::from_le_bytes(len) as usize;
        // The other end chose the length: bound it before allocating.
        if len > most {
            return Err(io::Error::other(format!(
                "a message of {len} bytes, but at most {most} are allowed"
            )));
        }
        if !self.fill(4 + len)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let body = self.filled.start + 4;
        self.filled.start = body + len;
        postcard::from_bytes(&self.buffer[body..body + len])
            .map(Some)
            .map_err(io::Error::other)
    }

    /// Reads the answer of a compiling child, of at most `most` bytes, into the memory in which its code will stay.
    pub(crate) fn receive_code(
        &mut self,
        most: usize,
    ) -> io::Result<Option<Result<Box<[u8]>, String>>> {
        let code = match self.receive(most)? {
            None => return Ok(None),
            Some(FromChild::Compiled(Err(why))) => return Ok(Some(Err(why))),
            Some(FromChild::Compiled(Ok(Code(code)))) => code.len(),
            Some(_) => return Err(io::Error::other("the child did not answer with code")),
        };
        // A message ends with its code.
        let end = self.filled.start;
        let mut buffer = std::mem::take(&mut self.buffer);
        self.filled = 0..0;
        buffer.copy_within(end - code..end, 0);
        buffer.truncate(code);
        Ok(Some(Ok(buffer.into_boxed_slice())))
    }

    /// Reads until `wanted` bytes are in the buffer. `false`: the end came before the first.
    fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        if self.filled.is_empty() {
            self.filled = 0..0;
            // Otherwise each link would keep the size of its largest message.
            if self.buffer.len() > KEPT_BUFFER && wanted <= KEPT_BUFFER {
                self.buffer = vec![0; KEPT_BUFFER];
            }
        }
        if self.filled.start + wanted > self.buffer.len() {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
            if wanted > self.buffer.len() {
                self.buffer.resize(wanted, 0);
            }
        }
        while self.filled.len() < wanted {
            match self.socket.read(&mut self.buffer[self.filled.end..]) {
                Ok(0) if self.filled.is_empty() => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.filled.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// A writer that keeps its error; the encoder only reports that there was one.
struct Noticing<W> {
    to: W,
    error: Option<io::Error>,
}

impl<W> Noticing<W> {
    fn notice(&mut self, error: io::Error) -> io::Error {
        let kind = error.kind();
        if kind != io::ErrorKind::Interrupted {
            self.error = Some(error);
        }
        kind.into()
    }
}

impl<W: Write> Write for Noticing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes).map_err(|error| self.notice(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush().map_err(|error| self.notice(error))
    }
}

/// Bytes as one piece: serde would encode them one by one.
mod bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<&'de [u8], D::Error> {
        <&[u8]>::deserialize(from)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn messages_come_as_they_went_also_longer_ones_than_the_buffer() {
        let (mut here, mut there) = pair();
        let vectors = [vec![1u8; 3], vec![0; 3 * KEPT_BUFFER], vec![1; 70], vec![]];
        let sent = vectors.clone();
        let sender = std::thread::spawn(move || {
            for vector in &sent {
                here.send(&FromChild::Asked(vector)).expect("sent");
            }
        });
        for vector in &vectors {
            let message = there.receive(1 << 20).expect("read").expect("a message");
            assert!(matches!(message, FromChild::Asked(asked) if asked == vector));
        }
        assert!(there.receive::<FromChild<'_>>(9).expect("closed").is_none());
        sender.join().expect("sent");
    }

    #[test]
    fn code_comes_as_it_went_and_nothing_else_passes_for_it() {
        let (mut here, mut there) = pair();
        let code: Vec<u8> = (0..5 * KEPT_BUFFER).map(|n| n as u8).collect();
        let sent = code.clone();
        let sender = std::thread::spawn(move || {
            here.send(&FromChild::Compiled(Ok(Code(&sent))))
                .expect("sent");
        });
        let received = there
            .receive_code(1 << 20)
            .expect("read")
            .expect("an answer");
        assert_eq!(received.expect("code"), code.into_boxed_slice());
        sender.join().expect("sent");

        let (mut here, mut there) = pair();
        here.send(&FromChild::Compiled(Err("why".to_owned())))
            .expect("sent");
        let received = there
            .receive_code(1 << 20)
            .expect("read")
            .expect("an answer");
        assert_eq!(received, Err("why".to_owned()));

        let (mut here, mut there) = pair();
        here.send(&FromChild::Asked(&[1])).expect("sent");
        assert!(there.receive_code(1 << 20).is_err());

        let (here, mut there) = pair();
        drop(here);
        assert!(there.receive_code(1 << 20).expect("closed").is_none());
    }

    #[test]
    fn a_peer_that_is_gone_is_told_as_that_whatever_the_length() {
        for len in [1, KEPT_BUFFER / 2, 3 * KEPT_BUFFER] {
            let (mut here, there) = pair();
            drop(there);
            let error = here
                .send(&FromChild::Asked(&vec![0; len]))
                .expect_err("nobody reads");
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{len}: {error}");
        }
    }

    #[test]
    fn a_frame_that_is_too_long_or_no_message_is_refused() {
        let (mut here, mut there) = pair();
        here.send(&FromChild::Asked(&[1; 100])).expect("sent");
        assert!(there.receive::<FromChild<'_>>(50).is_err());

        let (here, mut there) = pair();
        (&here.socket)
            .write_all(&[2, 0, 0, 0, 0xff, 0xff])
            .expect("sent");
        assert!(there.receive::<FromChild<'_>>(50).is_err());

        let (here, mut there) = pair();
        (&here.socket).write_all(&[9, 0, 0, 0, 1]).expect("sent");
        drop(here);
        assert!(there.receive::<FromChild<'_>>(50).is_err());
    }

    fn pair() -> (Link<UnixStream>, Link<UnixStream>) {
        let (here, there) = UnixStream::pair().expect("a socket");
        (Link::new(here), Link::new(there))
    }
}
