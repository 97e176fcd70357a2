// SPDX-License-Identifier: LGPL-2.1-or-later

//! Asks a real service with the client that zlink-codegen made: the socket, and a machine's name.

use client_zlink::{Machine1, Machine1Error};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().expect("the path of the socket");
    let name = arguments.next().expect("the name of a machine");
    let mut connection = zlink::tokio::unix::connect(socket).await?;

    for machine in connection.list_machines(None, None, None, None, None).await?.expect("a list").machines {
        println!("{} {} {}", machine.name, machine.class.expect("a class"), machine.service);
    }
    let machine = connection.get_machine(&name, None, None).await?.expect("a machine").machine;
    println!("there is {} {}", machine.name, machine.object_path);
    match connection.get_machine("nope", None, None).await? {
        Err(Machine1Error::NoSuchMachine { name }) => println!("there is no {name}"),
        other => panic!("{other:?}"),
    }
    Ok(())
}
