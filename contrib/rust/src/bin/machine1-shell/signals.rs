// SPDX-License-Identifier: LGPL-2.1-or-later
//! The signals that end this program, and the one for a window of another size, as something to poll.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::{flag, low_level::pipe};

#[derive(Debug)]
pub struct Signals {
    came: UnixStream,
    ends: Arc<AtomicUsize>,
}

impl Signals {
    pub fn new() -> io::Result<Self> {
        let (came, comes) = UnixStream::pair()?;
        came.set_nonblocking(true)?;
        let ends = Arc::new(AtomicUsize::new(0));
        for signal in [SIGTERM, SIGHUP, SIGINT, SIGQUIT] {
            // In this order: who is woken finds the number.
            flag::register_usize(signal, Arc::clone(&ends), signal as usize)?;
            pipe::register(signal, comes.try_clone()?)?;
        }
        pipe::register(SIGWINCH, comes)?;
        Ok(Self { came, ends })
    }

    /// Readable when one came.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.came.as_fd()
    }

    /// To be woken again by the next one.
    pub fn take(&self) {
        while matches!((&self.came).read(&mut [0; 64]), Ok(1..)) {}
    }

    /// The number of one that ends this program, if one came.
    pub fn end(&self) -> Option<u8> {
        match self.ends.load(Ordering::SeqCst) {
            0 => None,
            number => u8::try_from(number).ok(),
        }
    }

    /// When one that ends this program has come.
    pub async fn come(&self) {
        let Ok(came) = self.came.try_clone().and_then(tokio::net::UnixStream::from_std) else {
            return std::future::pending().await;
        };
        while self.end().is_none() {
            match came.readable().await {
                Ok(()) => drop(came.try_read(&mut [0; 64])),
                Err(_) => std::future::pending().await,
            }
        }
    }
}
