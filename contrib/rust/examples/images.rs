// SPDX-License-Identifier: LGPL-2.1-or-later
//! `images import NAME <ARCHIVE` makes an image of a tar archive, `images export NAME >ARCHIVE` an archive of an image.
//! With `--no-wait` after the verb it prints the transfer's number, which goes on by itself.

use std::io::{stdin, stdout};
use std::process::ExitCode;

use machine1::{Client, Error, Machine1Error, SOCKET, ServiceError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["import", name] => import(name).await,
        ["export", name] => export(name).await,
        ["import", "--no-wait", name] => begin_import(name).await,
        ["export", "--no-wait", name] => begin_export(name).await,
        _ => {
            eprintln!("usage: images import|export [--no-wait] NAME");
            return ExitCode::from(2);
        }
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    match error {
        Error::Machine1(Machine1Error::NameTaken { name }) => eprintln!("There is an image {name} already."),
        Error::Machine1(Machine1Error::TransferFailed { reason, .. }) => eprintln!("It has failed: {reason}"),
        Error::Service(ServiceError::PermissionDenied) => eprintln!("You may not do this, or not on this socket."),
        other => eprintln!("{other}"),
    }
    ExitCode::FAILURE
}

async fn connect() -> Result<Client, Error> {
    let path = std::env::var("MACHINE1_SOCKET").unwrap_or_else(|_| SOCKET.to_owned());
    Client::connect(path).await.map_err(Error::Io)
}

async fn import(name: &str) -> Result<(), Error> {
    let mut client = connect().await?;
    let mut replies = client.import_tar_more(name, stdin(), None, None, None).await?;
    while let Some(reply) = replies.next().await {
        tell(reply?.progress);
    }
    Ok(())
}

async fn export(name: &str) -> Result<(), Error> {
    let mut client = connect().await?;
    let mut replies = client.export_tar_more(name, stdout(), None, None).await?;
    while let Some(reply) = replies.next().await {
        tell(reply?.progress);
    }
    Ok(())
}

async fn begin_import(name: &str) -> Result<(), Error> {
    eprintln!("{}", connect().await?.import_tar(name, stdin(), None, None, None).await?.transfer);
    Ok(())
}

async fn begin_export(name: &str) -> Result<(), Error> {
    eprintln!("{}", connect().await?.export_tar(name, stdout(), None, None).await?.transfer);
    Ok(())
}

/// The last progress is 1000. Before that there may be none, as there is to systemd 252.
fn tell(progress: Option<i64>) {
    if let Some(progress) = progress {
        eprintln!("{}.{} %", progress / 10, progress % 10);
    }
}
