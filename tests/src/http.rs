//! A client of HTTP that keeps its connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use crate::host::{PATIENCE, poll};

/// A connection to a port of this machine.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// What came behind the last answer.
    rest: Vec<u8>,
}

/// The body of an answer that is one, as text.
///
/// # Panics
///
/// When the connection broke, or the status is another than 200.
#[expect(
    clippy::must_use_candidate,
    reason = "often it is enough that there is one"
)]
pub fn text(answer: io::Result<(u16, Vec<u8>)>) -> String {
    let (status, body) = answer.expect("the connection goes on");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    String::from_utf8(body).expect("it is text")
}

impl Client {
    /// Connects as soon as somebody listens.
    ///
    /// # Panics
    ///
    /// When nobody does.
    #[must_use]
    pub fn of(port: u16) -> Self {
        poll(|| Self::connect(port).ok()).expect("somebody listens")
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// When nobody is there.
    pub fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            rest: Vec::new(),
        })
    }

    /// Asks, and waits for the answer: its status and body.
    ///
    /// # Errors
    ///
    /// When the connection breaks, or the answer is none.
    pub fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        self.begin(method, path, body.len())?;
        self.stream.write_all(body)?;
        self.answer()
    }

    /// Sends a request up to its body, which has so many bytes.
    ///
    /// # Errors
    ///
    /// When the connection breaks.
    pub fn begin(&mut self, method: &str, path: &str, len: usize) -> io::Result<()> {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: it\r\nContent-Length: {len}\r\n\r\n");
        self.stream.write_all(head.as_bytes())
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    ///
    /// When the connection breaks.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Waits for an answer.
    ///
    /// # Errors
    ///
    /// When the connection breaks, or the answer is none.
    pub fn answer(&mut self) -> io::Result<(u16, Vec<u8>)> {
        let no_answer = || io::Error::from(io::ErrorKind::InvalidData);
        let end = loop {
            if let Some(at) = self.rest.windows(4).position(|it| it == b"\r\n\r\n") {
                break at + 4;
            }
            self.more()?;
        };
        let head = String::from_utf8_lossy(&self.rest[..end]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
        let len = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(Some(0), |len| len.trim().parse().ok());
        let (status, len): (u16, usize) = status.zip(len).ok_or_else(no_answer)?;
        while self.rest.len() < end + len {
            self.more()?;
        }
        let body = self.rest[end..end + len].to_vec();
        self.rest.drain(..end + len);
        Ok((status, body))
    }

    fn more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.rest.extend(&buffer[..count]);
                Ok(())
            }
        }
    }
}
