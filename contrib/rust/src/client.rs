// SPDX-License-Identifier: LGPL-2.1-or-later
//! A connection and how a call on it ends. The methods of the interface are in generated.rs.

use std::fmt::Debug;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::error::AnyError;
use crate::socket::{Heard, Socket};
use crate::{Error, Replies};

/// What a call returns.
pub type Result<T> = std::result::Result<T, Error>;

/// One connection to the service. Calls are made one after the other.
///
/// A call whose future is dropped before it is done leaves a reply under way: every later call then ends in
/// [`Error::Unfinished`].
#[derive(Debug)]
pub struct Client {
    pub(crate) connection: zlink::Connection<Socket>,
    heard: Heard,
    unfinished: bool,
}

/// A program on a terminal of its own in a machine, see [`Client::open_shell`].
#[derive(Debug)]
pub struct Shell {
    /// The terminal's master side. The program ends when it is closed, and reading it fails with EIO once the program
    /// has ended.
    pub pty: OwnedFd,
    /// The path of the other side, inside the machine.
    pub pty_path: String,
}

/// What [`Client::open_shell`] starts, and how. By default root's login shell.
#[derive(Debug, Clone, Copy, Default)]
pub struct ShellOptions<'a> {
    /// A user of the machine; root if it is not said.
    pub user: Option<&'a str>,
    /// The absolute path of a program in the machine, and its arguments, instead of the user's shell.
    pub command: &'a [&'a str],
    /// Variables for it, each NAME=VALUE.
    pub env: &'a [&'a str],
    /// Whether the user may be asked for a password while the call waits.
    pub allow_interactive_authentication: bool,
}

#[derive(Debug, Serialize)]
struct Call<'a, P> {
    method: &'a str,
    parameters: P,
}

/// The reply of a method that returns nothing. `parameters` may then be left out, null or an empty object.
#[derive(Debug, Deserialize)]
pub(crate) struct Nothing {}

impl Nothing {
    pub(crate) fn expected(
        result: zlink::Result<std::result::Result<Self, AnyError>>,
    ) -> zlink::Result<std::result::Result<(), AnyError>> {
        match result {
            Err(zlink::Error::MissingParameters) => Ok(Ok(())),
            result => result.map(|result| result.map(|Self {}| ())),
        }
    }
}

/// What zlink is given to send: it closes what it has sent.
pub(crate) fn duplicates<const N: usize>(descriptors: [BorrowedFd<'_>; N]) -> Result<Vec<OwnedFd>> {
    descriptors.iter().map(|descriptor| descriptor.try_clone_to_owned().map_err(Error::Io)).collect()
}

impl Client {
    /// Connects to the service at this path, which is [`crate::SOCKET`] outside of sandboxes.
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self::from(UnixStream::connect(path).await?))
    }

    /// Opens a shell, or a command on a terminal of its own, in a machine.
    pub async fn open_shell(&mut self, name: &str, options: ShellOptions<'_>) -> Result<Shell> {
        let ShellOptions { user, command, env, allow_interactive_authentication } = options;
        let (output, descriptors) = self
            .open_machine_shell(
                name,
                user,
                command.first().copied(),
                (!command.is_empty()).then_some(command),
                (!env.is_empty()).then_some(env),
                allow_interactive_authentication.then_some(true),
            )
            .await?;
        let pty = usize::try_from(output.pty_fd).ok().and_then(|index| descriptors.into_iter().nth(index));
        match pty {
            Some(pty) => Ok(Shell { pty, pty_path: output.pty_path }),
            None => Err(Error::Malformed(format!("no file descriptor {} came", output.pty_fd))),
        }
    }

    /// Makes a call that has more than one reply. The method's name is qualified, as in `io.machine1.ListMachines`. For a
    /// method that takes a file descriptor there is one of its own, as [`Client::import_tar_more`].
    ///
    /// A stream that is dropped before its end leaves replies under way, like a call.
    pub async fn more<P, R>(&mut self, method: &str, parameters: P) -> Result<Replies<'_, R>>
    where
        P: Serialize + Debug,
        R: DeserializeOwned + Debug,
    {
        self.more_with(method, parameters, Vec::new()).await
    }

    pub(crate) async fn more_with<P, R>(
        &mut self,
        method: &str,
        parameters: P,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Replies<'_, R>>
    where
        P: Serialize + Debug,
        R: DeserializeOwned + Debug,
    {
        self.begin()?;
        let call = zlink::Call::new(Call { method, parameters }).set_more(true);
        self.connection.send_call(&call, descriptors).await?;
        Ok(Replies::new(self))
    }

    pub(crate) fn begin(&mut self) -> Result<()> {
        match self.unfinished {
            true => Err(Error::Unfinished),
            false => {
                self.unfinished = true;
                Ok(())
            }
        }
    }

    /// What a call's only reply means.
    pub(crate) fn end<T>(&mut self, result: zlink::Result<std::result::Result<T, AnyError>>) -> Result<T> {
        let result = self.outcome(result);
        self.finish(&result)?;
        result
    }

    /// What a reply means. Of the standard's errors zlink keeps less than was said, so the message itself tells.
    pub(crate) fn outcome<T>(&self, result: zlink::Result<std::result::Result<T, AnyError>>) -> Result<T> {
        match self.heard.take().and_then(|message| Error::of_reply(&message)) {
            Some(error) => Err(error),
            None => Ok(result??),
        }
    }

    /// The last reply came, if it was one: then the connection can be used again.
    pub(crate) fn finish<T>(&mut self, result: &Result<T>) -> Result<()> {
        if matches!(result, Err(Error::Io(_) | Error::Closed | Error::Malformed(_))) {
            return Ok(());
        }
        if !self.heard.is_empty() {
            return Err(Error::Malformed("more came than one reply".into()));
        }
        self.unfinished = false;
        Ok(())
    }
}

impl From<UnixStream> for Client {
    fn from(stream: UnixStream) -> Self {
        let heard = Heard::default();
        Self { connection: zlink::Connection::new(Socket::new(stream, heard.clone())), heard, unfinished: false }
    }
}
