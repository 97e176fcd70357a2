// SPDX-License-Identifier: LGPL-2.1-or-later
//! Lists the machines; `machines terminate NAME` ends one.

use std::process::ExitCode;

use machine1::{Client, Error, Machine1Error, SOCKET, ServiceError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        [] => list().await,
        ["terminate", name] => terminate(name).await,
        _ => {
            eprintln!("usage: machines [terminate NAME]");
            return ExitCode::from(2);
        }
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    match error {
        Error::Machine1(Machine1Error::NoSuchMachine { name }) => eprintln!("There is no machine {name}."),
        Error::Service(ServiceError::InvalidParameter { parameter, reason }) => {
            eprintln!("This cannot be a {parameter}: it {}.", reason.as_deref().unwrap_or("is wrong"));
        }
        Error::Service(ServiceError::PermissionDenied) => eprintln!("You may not do this."),
        Error::InteractiveAuthenticationRequired => eprintln!("You may do this after entering a password."),
        other => eprintln!("{other}"),
    }
    ExitCode::FAILURE
}

async fn list() -> Result<(), Error> {
    let mut client = Client::connect(SOCKET).await.map_err(Error::Io)?;
    for machine in client.list_machines(None, None, None, None, None).await?.machines {
        println!("{} {} {}", machine.name, machine.class.as_deref().unwrap_or("-"), machine.service);
    }
    Ok(())
}

async fn terminate(name: &str) -> Result<(), Error> {
    let mut client = Client::connect(SOCKET).await.map_err(Error::Io)?;
    client.terminate_machine(name, None).await
}
