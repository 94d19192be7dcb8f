//! JSON lines as they arrive.

use std::marker::PhantomData;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use super::client::ClientError;

/// Values that a response consists of, one a line. Waits for each; ends when the
/// host has no more.
#[derive(Debug)]
pub struct Lines<'a, T> {
    runtime: &'a Runtime,
    body: Incoming,
    /// What arrived and was not a whole line yet.
    buffer: Vec<u8>,
    value: PhantomData<T>,
}

impl<'a, T> Lines<'a, T> {
    pub(super) const fn new(runtime: &'a Runtime, body: Incoming) -> Self {
        Self {
            runtime,
            body,
            buffer: Vec::new(),
            value: PhantomData,
        }
    }

    /// The next bytes; none at the end.
    fn receive(&mut self) -> Result<Option<Bytes>, ClientError> {
        match self.runtime.block_on(self.body.frame()) {
            None => Ok(None),
            Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
            Some(Err(error)) => Err(ClientError::Lost(error)),
        }
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer.iter().position(|byte| *byte == b'\n')?;
        Some(self.buffer.drain(..=end).collect())
    }
}

impl<T: DeserializeOwned> Iterator for Lines<'_, T> {
    type Item = Result<T, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(line) = self.line() {
                return Some(serde_json::from_slice(&line).map_err(ClientError::NotUnderstood));
            }
            match self.receive() {
                Ok(Some(bytes)) => self.buffer.extend(bytes),
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
