// SPDX-License-Identifier: LGPL-2.1-or-later
//! The terminal that this program has, if it has one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

/// It is as it was when this is dropped, by a panic too.
#[derive(Debug)]
pub struct Terminal<'a> {
    fd: BorrowedFd<'a>,
    before: Option<Termios>,
}

impl Terminal<'static> {
    /// The one on standard input.
    pub fn of_input() -> io::Result<Self> {
        Terminal::new(rustix::stdio::stdin())
    }
}

impl<'a> Terminal<'a> {
    fn new(fd: BorrowedFd<'a>) -> io::Result<Self> {
        let before = if isatty(fd) { Some(tcgetattr(fd)?) } else { None };
        Ok(Self { fd, before })
    }

    pub fn is_there(&self) -> bool {
        self.before.is_some()
    }

    /// Each key goes to the machine, ^C too.
    pub fn be_raw(&self) -> io::Result<()> {
        if let Some(before) = &self.before {
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(self.fd, OptionalActions::Now, &raw)?;
        }
        Ok(())
    }

    pub fn restore(&mut self) -> io::Result<()> {
        if let Some(before) = self.before.take() {
            tcsetattr(self.fd, OptionalActions::Now, &before)?;
        }
        Ok(())
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = self.restore();
    }
}

/// Gives the PTY the size of the terminal on standard output, if there is one.
pub fn give_size_to(pty: impl AsFd) -> io::Result<()> {
    let output = rustix::stdio::stdout();
    if isatty(output) {
        tcsetwinsize(pty, tcgetwinsize(output)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;

    #[test]
    fn a_panic_leaves_it_as_it_was() {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let path = ptsname(&ours, Vec::new()).unwrap();
        let theirs = rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let modes = || tcgetattr(&theirs).unwrap().local_modes;
        let before = modes();
        assert!(before.contains(LocalModes::ICANON | LocalModes::ECHO));
        let panicked = std::panic::catch_unwind(|| {
            let terminal = Terminal::new(theirs.as_fd()).unwrap();
            terminal.be_raw().unwrap();
            assert!(!modes().intersects(LocalModes::ICANON | LocalModes::ECHO));
            panic!("this one is part of the test");
        });
        assert!(panicked.is_err());
        assert_eq!(modes(), before);
    }
}
