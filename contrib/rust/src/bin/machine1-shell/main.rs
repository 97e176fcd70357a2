// SPDX-License-Identifier: LGPL-2.1-or-later
//! A shell in a machine on this terminal. `machine1-bridge shell` is the same in Python: what one does, the other does.

mod options;
mod session;
mod signals;
mod terminal;

use std::future::{Future, poll_fn};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::process::ExitCode;
use std::task::Poll;

use machine1::{Client, ShellOptions};

use options::{Options, Wish};
use session::{End, Session};
use signals::Signals;
use terminal::Terminal;

/// 0 when the shell has ended, 1 with a reason, 2 if it is not understood what is asked for, 128 and the signal's number
/// after one.
fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(Wish::Shell(options)) => options,
        Ok(Wish::Help) => {
            return match write!(io::stdout(), "{}", options::HELP) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        Err(reason) => {
            say(&format!("{}machine1-shell: {reason}", options::USAGE));
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(End::Left) => ExitCode::SUCCESS,
        Ok(End::Signal(number)) => ExitCode::from(128 + number),
        Err(reason) => {
            say(&format!("machine1-shell: {}", readable(&reason)));
            ExitCode::FAILURE
        }
    }
}

/// To whom can be told: eprintln! panics where nobody listens, as on a terminal that went away.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A text that can do no more on a terminal than be read: some of an error is the machine's to say.
fn readable(text: &str) -> String {
    let shown = |key: char| match key {
        '\'' | '"' | '\\' => key.to_string(),
        key => key.escape_debug().to_string(),
    };
    text.chars().map(shown).collect()
}

fn run(options: &Options) -> Result<End, String> {
    let signals = Signals::new().map_err(|error| format!("signals: {}", in_words(&error)))?;
    let mut terminal = Terminal::of_input().map_err(|error| format!("terminal: {}", in_words(&error)))?;
    let Some(pty) = open(options, terminal.is_there(), &signals)? else {
        return Ok(End::Signal(signals.end().unwrap_or_default()));
    };
    let end = terminal.be_raw().and_then(|()| Session::new(pty, terminal.is_there()).run(&signals));
    // Whatever the end is; and a terminal that went away is one with a reason.
    let restored = terminal.restore();
    let end = end.map_err(|error| in_words(&error))?;
    restored.map_err(|error| format!("terminal: {}", in_words(&error)))?;
    Ok(end)
}

/// The PTY of a shell; none if a signal came before it.
fn open(options: &Options, on_terminal: bool, signals: &Signals) -> Result<Option<OwnedFd>, String> {
    let mut env: Vec<&str> = options.env.iter().map(String::as_str).collect();
    let term = std::env::var("TERM").map(|term| format!("TERM={term}"));
    if let (true, Ok(term)) = (on_terminal, &term)
        && !env.iter().any(|each| each.starts_with("TERM="))
    {
        env.push(term);
    }
    let command: Vec<&str> = options.command.iter().map(String::as_str).collect();
    let shell = ShellOptions {
        user: options.user.as_deref().filter(|user| !user.is_empty()),
        command: &command,
        env: &env,
        allow_interactive_authentication: true,
    };
    let opening = async {
        let at_socket = |reason: String| format!("{}: {reason}", options.socket);
        let mut client = Client::connect(&options.socket).await.map_err(|error| at_socket(in_words(&error)))?;
        client.open_shell(&options.name, shell).await.map_err(|error| match error {
            machine1::Error::Io(error) => at_socket(in_words(&error)),
            machine1::Error::Closed | machine1::Error::Malformed(_) => at_socket(error.to_string()),
            error => error.to_string(),
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(|error| in_words(&error))?;
    runtime.block_on(async {
        let (mut opening, mut signal) = (pin!(opening), pin!(signals.come()));
        poll_fn(|context| match opening.as_mut().poll(context) {
            Poll::Ready(shell) => Poll::Ready(shell.map(|shell| Some(shell.pty))),
            Poll::Pending => signal.as_mut().poll(context).map(|()| Ok(None)),
        })
        .await
    })
}

/// What the system says of an error, without its number.
fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
