//! The socket between two processes: messages, with the files and bytes that they speak
//! of.
//!
//! A message is its lengths, its files on bytes of their own, its text, and its bytes. One
//! that is not understood is taken in wholly, so that the next can be heard.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use wharf_machine::handover::Luggage;

use super::Message;

/// Files that go on one byte: the kernel takes 253 (unix(7), `SCM_RIGHTS`).
const FILES_AT_ONCE: usize = 128;

/// Most of each that a message has: a guest has 1,024 connections, a host 128 guests
/// whose images and consoles are of some MiB.
const TEXT_MAX: u64 = 256 << 20;
const BYTES_MAX: u64 = 1 << 30;
const FILES_MAX: u64 = 1 << 16;

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end is closed.
    #[error("it has ended")]
    Closed,
    /// Nothing came, or nothing went, for as long as it may take.
    #[error("it does not answer")]
    Silent,
    /// The kernel refused.
    #[error("the socket to it: {0}")]
    Socket(#[source] io::Error),
    /// It is no message.
    #[error("it said what is not understood: {0}")]
    NotUnderstood(#[source] serde_json::Error),
    /// It claims to be longer than any is.
    #[error("it said what is no message")]
    NoMessage,
    /// Nobody would take it: nothing was said.
    #[error("there is more to say than a message holds")]
    TooLong,
}

impl LinkError {
    /// Whether there is no talking any more.
    pub(in crate::cell) const fn is_end(&self) -> bool {
        match self {
            Self::Closed | Self::Silent | Self::Socket(_) | Self::NoMessage => true,
            Self::NotUnderstood(_) | Self::TooLong => false,
        }
    }
}

/// One end.
#[derive(Debug)]
pub(in crate::cell) struct Link(UnixStream);

/// What makes an end of a link hear that the other is closed.
#[derive(Debug)]
pub(super) struct Shutter(UnixStream);

impl Shutter {
    /// Has whoever waits at this end wait no longer.
    pub(super) fn shut(&self) {
        // It may be closed by itself already.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

impl Link {
    /// A link, and what the other end is to be given.
    pub(in crate::cell) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self(ours), theirs.into()))
    }

    /// The end that this process was given.
    pub(in crate::cell) fn given(end: OwnedFd) -> Self {
        Self(end.into())
    }

    /// What makes this end hear that the other is closed.
    pub(super) fn shutter(&self) -> io::Result<Shutter> {
        self.0.try_clone().map(Shutter)
    }

    /// Says something, with what it speaks of.
    pub(in crate::cell) fn say(
        &self,
        message: &Message,
        luggage: &Luggage,
    ) -> Result<(), LinkError> {
        let text = serde_json::to_vec(message).map_err(LinkError::NotUnderstood)?;
        let (files, bytes) = luggage.parts();
        let lens = [text.len(), bytes.len(), files.len()];
        let lens = lens.map(|len| u64::try_from(len).unwrap_or(u64::MAX));
        if !are_lens(lens) {
            return Err(LinkError::TooLong);
        }
        let socket = Outgoing(Deadline::new(&self.0, super::PATIENCE));
        let mut head: Vec<u8> = lens.into_iter().flat_map(u64::to_le_bytes).collect();
        if files.is_empty() {
            head.extend(&text);
            socket.write_all(&head)?;
        } else {
            socket.write_all(&head)?;
            for some in files.chunks(FILES_AT_ONCE) {
                socket.0.hurry(UnixStream::set_write_timeout)?;
                self.send_files(some)?;
            }
            socket.write_all(&text)?;
        }
        socket.write_all(bytes)
    }

    /// The same of what needs nothing.
    pub(in crate::cell) fn tell(&self, message: &Message) -> Result<(), LinkError> {
        self.say(message, &Luggage::default())
    }

    /// Waits for what the other says, for so long until it is there as a whole.
    pub(in crate::cell) fn hear(
        &self,
        patience: Duration,
    ) -> Result<(Message, Luggage), LinkError> {
        let mut incoming = Incoming(Deadline::new(&self.0, patience));
        let mut lens = [[0; 8]; 3];
        for len in &mut lens {
            incoming.read_exact(len).map_err(failed)?;
        }
        let lens = lens.map(u64::from_le_bytes);
        if !are_lens(lens) {
            return Err(LinkError::NoMessage);
        }
        let [text, bytes, count] = lens;
        let count = usize::try_from(count).unwrap_or(0);
        let files = incoming.files(count)?;
        let text = incoming.receive(text)?;
        let bytes = incoming.receive(bytes)?;
        let message = serde_json::from_slice(&text).map_err(LinkError::NotUnderstood)?;
        // Fewer than were sent when this process may open no more (unix(7)): which they
        // are, nobody can tell.
        let luggage = if files.len() == count {
            Luggage::new(files, bytes)
        } else {
            Luggage::without_files(bytes)
        };
        Ok((message, luggage))
    }

    fn send_files(&self, files: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(LinkError::NoMessage);
        }
        let byte = [IoSlice::new(&[0])];
        let sent = retry_on_intr(|| sendmsg(&self.0, &byte, &mut control, SendFlags::NOSIGNAL));
        sent.map(drop).map_err(|e| failed(e.into()))
    }

    /// Whether the other end is of the process that has started this one.
    pub(in crate::cell) fn is_of_parent(&self) -> bool {
        let theirs = rustix::net::sockopt::socket_peercred(&self.0);
        let theirs = theirs.map(|it| u32::try_from(it.pid.as_raw_nonzero().get()));
        theirs == Ok(Ok(std::os::unix::process::parent_id()))
    }
}

/// A socket, and when a whole message is to have passed it.
struct Deadline<'a> {
    socket: &'a UnixStream,
    start: Instant,
    patience: Duration,
}

impl<'a> Deadline<'a> {
    fn new(socket: &'a UnixStream, patience: Duration) -> Self {
        Self {
            socket,
            start: Instant::now(),
            patience,
        }
    }

    /// Has the next read or write wait no longer than there is time.
    fn hurry(
        &self,
        set: impl Fn(&UnixStream, Option<Duration>) -> io::Result<()>,
    ) -> Result<(), LinkError> {
        let left = self.patience.saturating_sub(self.start.elapsed());
        if left.is_zero() {
            return Err(LinkError::Silent);
        }
        set(self.socket, Some(left)).map_err(failed)
    }
}

/// A message on its way to the other.
struct Outgoing<'a>(Deadline<'a>);

impl Outgoing<'_> {
    fn write_all(&self, mut bytes: &[u8]) -> Result<(), LinkError> {
        let mut socket = self.0.socket;
        while !bytes.is_empty() {
            self.0.hurry(UnixStream::set_write_timeout)?;
            match socket.write(bytes) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(())
    }
}

/// A message on its way here.
struct Incoming<'a>(Deadline<'a>);

impl Incoming<'_> {
    /// As many bytes as were promised. They are not believed before they are there.
    fn receive(&mut self, len: u64) -> Result<Vec<u8>, LinkError> {
        let mut bytes = Vec::new();
        let taken = self.by_ref().take(len).read_to_end(&mut bytes);
        let taken = taken.map_err(failed)?;
        if u64::try_from(taken) == Ok(len) {
            Ok(bytes)
        } else {
            Err(LinkError::Closed)
        }
    }

    /// As many of so many files as this process may open.
    fn files(&self, count: usize) -> Result<Vec<OwnedFd>, LinkError> {
        let mut files = Vec::new();
        for _ in 0..count.div_ceil(FILES_AT_ONCE) {
            let mut byte = [0];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_AT_ONCE))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [IoSliceMut::new(&mut byte)];
            self.0.hurry(UnixStream::set_read_timeout)?;
            let (socket, flags) = (self.0.socket, RecvFlags::CMSG_CLOEXEC);
            let got = retry_on_intr(|| recvmsg(socket, &mut bytes, &mut control, flags));
            if got.map_err(|e| failed(e.into()))?.bytes == 0 {
                return Err(LinkError::Closed);
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(some) = message {
                    files.extend(some);
                }
            }
        }
        Ok(files)
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let hurried = self.0.hurry(UnixStream::set_read_timeout);
        hurried.map_err(|_| io::ErrorKind::TimedOut)?;
        (&mut self.0.socket).read(into)
    }
}

/// Whether a message may have so much text, so many bytes and so many files.
const fn are_lens([text, bytes, files]: [u64; 3]) -> bool {
    text <= TEXT_MAX && bytes <= BYTES_MAX && files <= FILES_MAX
}

fn failed(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => LinkError::Silent,
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => LinkError::Closed,
        _ => LinkError::Socket(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{FILES_AT_ONCE, FILES_MAX, Link, LinkError, Luggage, Message};

    const MOMENT: Duration = Duration::from_millis(50);

    #[test]
    fn files_and_bytes_arrive_with_what_speaks_of_them() {
        let (ours, theirs) = Link::pair().unwrap();
        let theirs = Link::given(theirs);
        let mut luggage = Luggage::default();
        let mut named = Vec::new();
        for number in 0..=FILES_AT_ONCE {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&number.to_le_bytes()).unwrap();
            named.push(luggage.put_file(file.into()));
        }
        let bytes = luggage.put_bytes(&[7; 1 << 20]);
        let sender = std::thread::spawn(move || {
            ours.say(&Message::Refused("no".to_owned()), &luggage)
                .unwrap();
            ours.tell(&Message::GiveBack).unwrap();
            ours
        });
        let (message, mut luggage) = theirs.hear(Duration::from_secs(10)).unwrap();
        assert!(matches!(message, Message::Refused(why) if why == "no"));
        assert_eq!(luggage.bytes(bytes).unwrap(), [7; 1 << 20]);
        for (number, name) in named.into_iter().enumerate() {
            let mut file = File::from(luggage.take_file(name).unwrap());
            file.rewind().unwrap();
            let mut read = [0; 8];
            file.read_exact(&mut read).unwrap();
            assert_eq!(read, number.to_le_bytes());
        }
        let (message, _) = theirs.hear(MOMENT).unwrap();
        assert!(matches!(message, Message::GiveBack));
        let ours = sender.join().unwrap();
        assert!(matches!(theirs.hear(MOMENT), Err(LinkError::Silent)));
        drop(ours);
        assert!(matches!(theirs.hear(MOMENT), Err(LinkError::Closed)));
    }

    #[test]
    fn what_is_no_message_is_refused_before_it_is_believed() {
        let heads: [&[u64]; 4] = [
            &[u64::MAX, 0, 0],
            &[1, u64::MAX, 0],
            &[1, 0, u64::MAX],
            // Bytes that never come.
            &[2, 0, 0],
        ];
        for head in heads {
            let (ours, theirs) = Link::pair().unwrap();
            let theirs = Link::given(theirs);
            for len in head {
                (&ours.0).write_all(&len.to_le_bytes()).unwrap();
            }
            (&ours.0).write_all(b"{").unwrap();
            drop(ours);
            assert!(theirs.hear(MOMENT).is_err(), "{head:?}");
        }
        // Its text is none. The next message is heard all the same.
        let (ours, theirs) = Link::pair().unwrap();
        for len in [2_u64, 1, 0] {
            (&ours.0).write_all(&len.to_le_bytes()).unwrap();
        }
        (&ours.0).write_all(b"{]x").unwrap();
        ours.tell(&Message::GiveBack).unwrap();
        let theirs = Link::given(theirs);
        let error = theirs.hear(MOMENT).unwrap_err();
        assert!(matches!(error, LinkError::NotUnderstood(_)), "{error}");
        assert!(matches!(theirs.hear(MOMENT), Ok((Message::GiveBack, _))));
    }

    /// Who says a byte now and then is not waited for for ever.
    #[test]
    fn a_message_that_drips_is_given_up() {
        let (ours, theirs) = Link::pair().unwrap();
        let theirs = Link::given(theirs);
        let start = Instant::now();
        let dripping = std::thread::spawn(move || {
            while start.elapsed() < 10 * MOMENT && (&ours.0).write_all(b"\0").is_ok() {
                std::thread::sleep(MOMENT / 5);
            }
        });
        assert!(matches!(theirs.hear(MOMENT), Err(LinkError::Silent)));
        assert!(start.elapsed() < 5 * MOMENT);
        drop(theirs);
        dripping.join().unwrap();
    }

    /// Of files of which some could not be opened, none is taken for another.
    #[test]
    fn a_message_without_all_of_its_files_has_none() {
        let (ours, theirs) = Link::pair().unwrap();
        let text = serde_json::to_vec(&Message::Ready).unwrap();
        for len in [text.len() as u64, 0, FILES_AT_ONCE as u64 + 1] {
            (&ours.0).write_all(&len.to_le_bytes()).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        ours.send_files(&[file.as_fd()]).unwrap();
        (&ours.0).write_all(b"\0").unwrap();
        (&ours.0).write_all(&text).unwrap();
        let (message, mut luggage) = Link::given(theirs).hear(MOMENT).unwrap();
        assert!(matches!(message, Message::Ready));
        let file = Luggage::default().put_file(file.into());
        let refused = luggage.take_file(file).unwrap_err().to_string();
        assert!(refused.contains("ulimit -n"), "{refused}");
    }

    #[test]
    fn what_nobody_would_take_is_not_begun() {
        let (ours, theirs) = Link::pair().unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut luggage = Luggage::default();
        for _ in 0..=FILES_MAX {
            luggage.lend_file(&file);
        }
        let error = ours.say(&Message::GiveBack, &luggage).unwrap_err();
        assert!(matches!(error, LinkError::TooLong), "{error}");
        ours.tell(&Message::Ready).unwrap();
        let heard = Link::given(theirs).hear(MOMENT);
        assert!(matches!(heard, Ok((Message::Ready, _))));
    }

    /// The parent of a test is who runs tests.
    #[test]
    fn a_link_of_ones_own_is_not_the_parents() {
        let (ours, _theirs) = Link::pair().unwrap();
        assert!(!ours.is_of_parent());
    }
}
