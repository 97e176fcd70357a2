// SPDX-License-Identifier: LGPL-2.1-or-later

//! Asks a real service with the client that varlink-rust-generator made: the socket, and a machine's name.

use client_varlink::{ErrorKind, Machine_class, VarlinkClient, VarlinkClientInterface};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().expect("the path of the socket");
    let name = arguments.next().expect("the name of a machine");
    let mut client = VarlinkClient::new(varlink::Connection::with_address(&format!("unix:{socket}"))?);

    for machine in client.list_machines(None, None, None, None, None).call()?.machines {
        let class = match machine.class {
            Some(Machine_class::container) => "container",
            other => panic!("{other:?}"),
        };
        println!("{} {} {}", machine.name, class, machine.service);
    }
    let machine = client.get_machine(name, None, None).call()?.machine;
    println!("there is {} {}", machine.name, machine.object_path);
    let error = client.get_machine("nope".into(), None, None).call().unwrap_err();
    match error.kind() {
        ErrorKind::NoSuchMachine(Some(missing)) => println!("there is no {}", missing.name),
        _ => return Err(error.into()),
    }
    Ok(())
}
