// SPDX-License-Identifier: LGPL-2.1-or-later
//! The command line.

use std::ffi::OsString;

pub const USAGE: &str = "\
usage: machine1-shell [-h] [--socket PATH] [--user USER] [--env NAME=VALUE] NAME [COMMAND [ARGUMENT ...]]
";

pub const HELP: &str = "\
usage: machine1-shell [-h] [--socket PATH] [--user USER] [--env NAME=VALUE] NAME [COMMAND [ARGUMENT ...]]

Open a shell in a machine, or run a command there on a terminal of its own.

  NAME              of the machine
  COMMAND           absolute path of a program, instead of a shell
  --socket PATH     of the service; $MACHINE1_SOCKET or /run/machine1/io.machine1 if it is not said
  --user USER       in the machine; root if it is not said
  --env NAME=VALUE  a variable of the shell; may be repeated
  -h, --help        show this

Press ^] three times within a second to leave; what runs in the machine is then hung up on. Without a terminal here,
standard input goes to the command, and its end, too.
";

#[derive(Debug, PartialEq)]
pub struct Options {
    pub socket: String,
    pub user: Option<String>,
    pub env: Vec<String>,
    pub name: String,
    pub command: Vec<String>,
}

#[derive(Debug, PartialEq)]
pub enum Wish {
    Help,
    Shell(Options),
}

pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Wish, String> {
    let arguments: Result<Vec<String>, OsString> = arguments.map(OsString::into_string).collect();
    let mut arguments = arguments.map_err(|argument| format!("not UTF-8: {}", argument.display()))?.into_iter();
    let (mut socket, mut user, mut env) = (None, None, Vec::new());
    let name = loop {
        let argument = arguments.next().ok_or("NAME is missing")?;
        if !argument.starts_with('-') {
            break argument;
        }
        let (option, given) = match argument.split_once('=') {
            Some((option, value)) => (option, Some(value.to_owned())),
            None => (argument.as_str(), None),
        };
        match option {
            "--" => break arguments.next().ok_or("NAME is missing")?,
            "-h" | "--help" => return Ok(Wish::Help),
            "--socket" | "--user" | "--env" => {
                let value = given.or_else(|| arguments.next()).ok_or(format!("{option} wants a value"))?;
                match option {
                    "--socket" => socket = Some(value),
                    "--user" => user = Some(value),
                    _ => env.push(value),
                }
            }
            _ => return Err(format!("there is no option {option}")),
        }
    };
    let command: Vec<String> = arguments.collect();
    if command.first().is_some_and(|first| first.starts_with('-')) {
        return Err(format!("{} is not the path of a command; options go before NAME", command[0]));
    }
    let socket =
        socket.or_else(|| std::env::var("MACHINE1_SOCKET").ok()).unwrap_or_else(|| machine1::SOCKET.to_owned());
    Ok(Wish::Shell(Options { socket, user, env, name, command }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Wish, String> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn what_follows_the_command_is_the_commands() {
        let wish = parsed("--socket=/s --env A=b=c --user bob --env C= web /bin/echo --user x").unwrap();
        let expected = Options {
            socket: "/s".into(),
            user: Some("bob".into()),
            env: vec!["A=b=c".into(), "C=".into()],
            name: "web".into(),
            command: vec!["/bin/echo".into(), "--user".into(), "x".into()],
        };
        assert_eq!(wish, Wish::Shell(expected));
    }

    #[test]
    fn a_wrong_line_says_what_is_wrong() {
        assert_eq!(parsed("--user"), Err("--user wants a value".into()));
        assert_eq!(parsed("--user bob"), Err("NAME is missing".into()));
        assert_eq!(parsed("--usr bob web"), Err("there is no option --usr".into()));
        assert!(parsed("web --user bob").unwrap_err().contains("before NAME"));
        assert_eq!(parsed("--user bob -h"), Ok(Wish::Help));
    }
}
