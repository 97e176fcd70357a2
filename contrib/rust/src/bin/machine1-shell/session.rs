// SPDX-License-Identifier: LGPL-2.1-or-later
//! What is typed goes to the PTY, what the PTY says to standard output.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::stdio::{stdin, stdout};

use crate::signals::Signals;
use crate::terminal;

const SIZE: usize = 65536;
/// What a pipe or terminal takes without waiting once poll(2) says that it takes something.
const PIECE: usize = 4096;
/// machinectl(1): "pressing ^] three times within 1s" ends the connection.
const ESCAPE: u8 = 0x1d;
const ESCAPES: usize = 3;
const ESCAPE_TIME: Duration = Duration::from_secs(1);
/// Bytes from a terminal that may wait for a machine that does not read. More are lost, for who types has to be heard: a
/// machine can make a terminal type (what it answers to who asks what it is), and not read it.
const TYPED_MAX: usize = 1024 * 1024;
const SIGPIPE: u8 = libc::SIGPIPE as u8;
const END_OF_FILE: u8 = 0x04;
/// A program that begins to read key by key, as a shell does for its first prompt, loses an end that came before. So the
/// end is typed again, after so long, twice as long, up to the second: a file, too, stays at its end.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// The guest's systemd makes the terminal that of a session, and some versions then empty it (setup_input() in
/// exec-invoke.c), so what is typed waits for that: looks at whether there is one, so long apart, for so long at most, and
/// for so long after there is.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
const STARTING: Duration = Duration::from_secs(2);
const SETTLING: Duration = Duration::from_millis(50);
/// A program whose terminal is closed before it has opened it would run on: a shell lasts so long at least.
const LIFE_MIN: Duration = Duration::from_millis(500);

/// How a session ended without anything gone wrong.
#[derive(Debug)]
pub enum End {
    /// The program in the machine has ended, or who types has left.
    Left,
    /// A signal asked this program to end.
    Signal(u8),
}

#[derive(Debug)]
pub struct Session {
    pty: OwnedFd,
    on_terminal: bool,
    typed: Vec<u8>,
    said: Vec<u8>,
    begin: Instant,
    /// More may be typed.
    input: bool,
    /// When the end of what is typed is typed next.
    again: Instant,
    /// After which it is typed once more.
    pause: Duration,
    /// When the terminal was first seen to be that of a session.
    session: Option<Instant>,
    /// The program can be typed to.
    started: bool,
    /// The program has ended.
    ended: bool,
    at_start_of_line: bool,
    escapes: Vec<Instant>,
}

impl Session {
    pub fn new(pty: OwnedFd, on_terminal: bool) -> Self {
        let begin = Instant::now();
        Self {
            pty,
            on_terminal,
            typed: Vec::new(),
            said: Vec::new(),
            begin,
            input: true,
            again: begin,
            pause: AGAIN,
            session: None,
            started: false,
            ended: false,
            at_start_of_line: true,
            escapes: Vec::new(),
        }
    }

    /// Until the program has ended, who types leaves, or a signal comes.
    pub fn run(mut self, signals: &Signals) -> io::Result<End> {
        ioctl_fionbio(&self.pty, true)?;
        terminal::give_size_to(&self.pty)?;
        loop {
            if let Some(number) = signals.end() {
                return Ok(End::Signal(number));
            }
            match self.step(signals) {
                Ok(true) => {}
                Ok(false) => return Ok(End::Left),
                // Nobody reads standard output: as if the signal had ended this program.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::Signal(SIGPIPE)),
                Err(error) => return Err(error),
            }
        }
    }

    /// False when it is over.
    fn step(&mut self, signals: &Signals) -> io::Result<bool> {
        let started = self.has_started();
        let wanted = |wanted, flag| if wanted { flag } else { PollFlags::empty() };
        let of_pty = wanted(self.said.is_empty(), PollFlags::IN) | wanted(!self.typed.is_empty(), PollFlags::OUT);
        let (input, output) = (stdin(), stdout());
        let (hear, speak) =
            (started && self.input && (self.on_terminal || self.typed.is_empty()), !self.said.is_empty());
        // Who hangs up is told of whether it is asked for or not: only what is waited for is among these.
        let mut files = vec![PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        files.push(PollFd::new(&self.pty, of_pty));
        if speak {
            files.push(PollFd::from_borrowed_fd(output, PollFlags::OUT));
        }
        if hear {
            files.push(PollFd::from_borrowed_fd(input, PollFlags::IN));
        }
        match poll(&mut files, self.patience(Instant::now()).as_ref()) {
            Err(Errno::INTR) => return Ok(true),
            result => result?,
        };
        let ready: Vec<PollFlags> = files.iter().map(PollFd::revents).collect();
        drop(files);
        if !ready[0].is_empty() {
            signals.take();
            terminal::give_size_to(&self.pty)?;
        }
        if speak {
            if !ready[2].is_empty() {
                let count = write(output, &self.said[..PIECE.min(self.said.len())]);
                self.said.drain(..unless_it_would_wait(count)?);
            }
        } else if ready[1].intersects(!PollFlags::OUT) && !self.listen()? {
            return Ok(false);
        }
        if !self.typed.is_empty() && ready[1].contains(PollFlags::OUT) {
            let count = write(&self.pty, &self.typed[..PIECE.min(self.typed.len())]);
            self.typed.drain(..unless_it_would_wait(count)?);
        }
        if hear && !ready[ready.len() - 1].is_empty() {
            let mut data = vec![0; SIZE];
            let count = read(input, &mut data)?;
            return Ok(self.type_(&data[..count], Instant::now()));
        }
        let now = Instant::now();
        if !self.input && self.typed.is_empty() && now >= self.again {
            self.end_input(now);
        }
        Ok(true)
    }

    /// How long it is until there is something to do anyway.
    fn patience(&self, now: Instant) -> Option<Timespec> {
        if !self.started {
            return Some(LOOK);
        }
        let left = self.again.saturating_duration_since(now);
        // Less than 10 s.
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        (!self.input && self.typed.is_empty()).then_some(left)
    }

    fn has_started(&mut self) -> bool {
        if !self.started {
            if self.session.is_none() && has_session(&self.pty) {
                self.session = Some(Instant::now());
            }
            let settled = self.session.is_some_and(|since| since.elapsed() >= SETTLING);
            self.started = settled || self.begin.elapsed() > STARTING;
        }
        self.started
    }

    /// False when the program has ended: nobody has the other side of the terminal open.
    fn listen(&mut self) -> io::Result<bool> {
        let mut data = vec![0; SIZE];
        let count = match read(&self.pty, &mut data) {
            Err(Errno::AGAIN) => return Ok(true),
            Err(Errno::IO) => 0,
            result => result?,
        };
        data.truncate(count);
        self.said = data;
        self.ended = self.said.is_empty();
        Ok(!self.ended)
    }

    /// False for who leaves.
    fn type_(&mut self, data: &[u8], now: Instant) -> bool {
        if data.is_empty() {
            self.input = false;
            if !self.at_start_of_line {
                self.typed.push(END_OF_FILE); // ends only that line
            }
            self.end_input(now);
            return !self.on_terminal;
        }
        self.at_start_of_line = data.ends_with(b"\n");
        self.typed.extend(data);
        self.typed.truncate(TYPED_MAX);
        !(self.on_terminal && self.escaped(data, now))
    }

    fn end_input(&mut self, now: Instant) {
        self.typed.push(END_OF_FILE);
        self.again = now + self.pause;
        self.pause = AGAIN_MAX.min(2 * self.pause);
    }

    fn escaped(&mut self, data: &[u8], now: Instant) -> bool {
        for key in data {
            self.escapes.retain(|then| now - *then < ESCAPE_TIME);
            match *key {
                ESCAPE => self.escapes.push(now),
                _ => self.escapes.clear(),
            }
            if self.escapes.len() >= ESCAPES {
                return true;
            }
        }
        false
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.ended {
            sleep(LIFE_MIN.saturating_sub(self.begin.elapsed()));
        }
    }
}

fn unless_it_would_wait(count: rustix::io::Result<usize>) -> rustix::io::Result<usize> {
    if count == Err(Errno::AGAIN) { Ok(0) } else { count }
}

/// Whether the terminal is that of a session, though it be one in a PID namespace that is not seen from here: the number
/// is 0 then, which tcgetsid(3) of rustix cannot say.
fn has_session(pty: &OwnedFd) -> bool {
    let mut session: libc::pid_t = 0;
    // SAFETY: TIOCGSID writes one pid_t, ioctl_tty(2); the file descriptor is open as long as it is borrowed.
    unsafe { libc::ioctl(pty.as_raw_fd(), libc::TIOCGSID, &raw mut session) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let (pty, _) = rustix::pipe::pipe().unwrap();
        let mut session = Session::new(pty, true);
        session.ended = true; // nothing to wait for
        session
    }

    #[test]
    fn three_keys_within_a_second_leave() {
        let mut session = session();
        let now = Instant::now();
        assert!(!session.escaped(b"ls\x1d\x1d", now));
        assert!(session.escaped(b"\x1dx", now + Duration::from_millis(999)), "whatever comes with them");
    }

    #[test]
    fn another_key_between_them_or_a_second_does_not() {
        let mut session = session();
        let now = Instant::now();
        assert!(!session.escaped(b"\x1d\x1dx\x1d", now));
        assert!(!session.escaped(b"\x1d\x1d", now + Duration::from_millis(1000)));
    }

    #[test]
    fn what_waits_for_a_machine_that_does_not_read_is_bounded() {
        let mut session = session();
        for _ in 0..2 * TYPED_MAX / SIZE {
            assert!(session.type_(&[b'x'; SIZE], Instant::now()));
        }
        assert_eq!(session.typed.len(), TYPED_MAX);
        assert!(!session.type_(b"\x1d\x1d\x1d", Instant::now()));
    }

    #[test]
    fn the_end_of_input_is_typed_twice_in_the_middle_of_a_line() {
        let mut session = session();
        session.on_terminal = false;
        let now = Instant::now();
        assert!(session.type_(b"one\ntwo", now));
        session.typed.clear();
        assert!(session.type_(b"", now));
        assert_eq!(session.typed, b"\x04\x04");
        session.typed.clear();
        assert!(session.type_(b"one\n", now));
        session.typed.clear();
        assert!(session.type_(b"", now));
        assert_eq!(session.typed, b"\x04");
    }

    #[test]
    fn the_end_of_input_is_typed_again_after_longer_and_longer() {
        let mut session = session();
        session.started = true;
        assert!(session.patience(session.begin).is_none());
        let mut now = session.begin;
        let mut waits = Vec::new();
        session.type_(b"", now);
        for _ in 0..9 {
            assert!(session.patience(now).is_none(), "as long as it is not typed");
            session.typed.clear();
            let wait = session.patience(now).unwrap();
            waits.push(wait.tv_sec as u64 * 1000 + wait.tv_nsec as u64 / 1_000_000);
            now = session.again;
            session.end_input(now);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000]);
    }
}
