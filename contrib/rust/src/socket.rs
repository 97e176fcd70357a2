// SPDX-License-Identifier: LGPL-2.1-or-later
//! The socket below zlink's connection. It keeps a copy of what it receives: zlink has no place for a field of a
//! standard error that is not in the standard.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use zlink::connection::PassedCredentials;
use zlink::connection::socket::{self, ReadResult};

/// What the kernel hands over in one message at most.
const DESCRIPTORS_MAX: usize = 253;

/// What was received, each message with the NUL byte that ends it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<VecDeque<u8>>>);

impl Heard {
    /// The oldest message, which is then forgotten.
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = heard.iter().position(|byte| *byte == 0)?;
        let mut message: Vec<u8> = heard.drain(..=end).collect();
        message.pop();
        Some(message)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn add(&self, data: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(data);
    }
}

#[derive(Debug)]
pub(crate) struct Socket {
    stream: UnixStream,
    heard: Heard,
}

impl Socket {
    pub(crate) fn new(stream: UnixStream, heard: Heard) -> Self {
        Self { stream, heard }
    }
}

impl socket::Socket for Socket {
    type ReadHalf = ReadHalf;
    type WriteHalf = WriteHalf;

    const CAN_TRANSFER_FDS: bool = true;

    fn split(self) -> (ReadHalf, WriteHalf) {
        let (read, write) = self.stream.into_split();
        (ReadHalf(read, self.heard), WriteHalf(write))
    }
}

#[derive(Debug)]
pub(crate) struct ReadHalf(OwnedReadHalf, Heard);

impl socket::ReadHalf for ReadHalf {
    async fn read(&mut self, buffer: &mut [u8]) -> zlink::Result<ReadResult> {
        let stream: &UnixStream = self.0.as_ref();
        let result = stream.async_io(Interest::READABLE, || receive(stream, buffer)).await?;
        self.1.add(&buffer[..result.bytes_read()]);
        Ok(result)
    }
}

fn receive(stream: impl AsFd, buffer: &mut [u8]) -> io::Result<ReadResult> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // Those that came are closed here.
        return Err(io::Error::other("file descriptors were lost on the way: too many open files"));
    }
    Ok(ReadResult::new(received.bytes).set_fds(descriptors))
}

#[derive(Debug)]
pub(crate) struct WriteHalf(OwnedWriteHalf);

impl socket::WriteHalf for WriteHalf {
    /// File descriptors go with the first byte; the kernel tells the service who calls.
    async fn write(
        &mut self,
        buffer: &[u8],
        descriptors: &[impl AsFd],
        _credentials: Option<&PassedCredentials>,
    ) -> zlink::Result<()> {
        let mut sent = 0;
        if !descriptors.is_empty() {
            let stream: &UnixStream = self.0.as_ref();
            let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            sent = match stream.async_io(Interest::WRITABLE, || send(stream, buffer, &descriptors)).await {
                // The kernel lets none through to a socket with AcceptFileDescriptors=no. So the call goes without, and
                // is answered as on a socket whose service closes them.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => 0,
                result => result?,
            };
        }
        Ok(self.0.write_all(&buffer[sent..]).await?)
    }
}

fn send(stream: impl AsFd, buffer: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    Ok(sendmsg(stream, &[IoSlice::new(buffer)], &mut ancillary, SendFlags::NOSIGNAL)?)
}
