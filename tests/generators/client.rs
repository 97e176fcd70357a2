// SPDX-License-Identifier: LGPL-2.1-or-later

//! Makes calls with the client that zlink-codegen generated, and prints what each returned: one line a call.
//! test_clients.py runs it and knows what has to come out.

use client_zlink::{Machine1, Machine1Error};
use zlink::varlink_service::Error as Standard;

/// Which type an error came as.
fn outcome<T>(result: &zlink::Result<Result<T, Machine1Error>>) -> String {
    match result {
        Ok(Ok(_)) => "done".into(),
        Ok(Err(Machine1Error::NoSuchMachine { name })) => format!("NoSuchMachine {name}"),
        Ok(Err(Machine1Error::NoSuchImage { name })) => format!("NoSuchImage {name}"),
        Ok(Err(Machine1Error::Failed { dbus_error, message })) => format!("Failed {dbus_error} {message}"),
        Ok(Err(Machine1Error::TooManyOperations)) => "TooManyOperations".into(),
        Ok(Err(Machine1Error::Timeout)) => "Timeout".into(),
        Ok(Err(error)) => format!("unexpected {error:?}"),
        Err(zlink::Error::VarlinkService(error)) => match error.inner() {
            Standard::InvalidParameter { parameter } => format!("InvalidParameter {parameter}"),
            Standard::PermissionDenied => "PermissionDenied".into(),
            other => format!("unexpected {other:?}"),
        },
        Err(error) => format!("broken {error:?}"),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).expect("the path of the socket");
    let mut connection = zlink::tokio::unix::connect(path).await?;

    let result = connection.list_machines(None, None, None, None, None).await;
    println!("ListMachines: {}", outcome(&result));
    for machine in result.into_iter().flatten().flat_map(|reply| reply.machines) {
        println!("  {} {} {}", machine.name, machine.class.as_deref().unwrap_or("-"), machine.service);
    }
    let result = connection.get_machine("web", None, None).await;
    print!("GetMachine: {}", outcome(&result));
    for machine in result.into_iter().flatten().map(|reply| reply.machine) {
        print!(" {} {} {}", machine.name, machine.class.as_deref().unwrap_or("-"), machine.object_path);
    }
    println!();
    let result = connection.get_machine("nope", None, None).await;
    println!("GetMachine: {}", outcome(&result));
    let result = connection.terminate_machine("web", None).await;
    println!("TerminateMachine: {}", outcome(&result));
    let result = connection.copy_from_machine("web", "/etc/hostname", None, None, None).await;
    println!("CopyFromMachine: {}", outcome(&result));
    let result = connection.copy_to_machine("web", "relative", None, None, None).await;
    println!("CopyToMachine: {}", outcome(&result));
    let result = connection.kill_machine("web", None, None, None).await;
    println!("KillMachine: {}", outcome(&result));
    let result = connection.remove_image("debian", None).await;
    println!("RemoveImage: {}", outcome(&result));
    let result = connection.rename_image("debian", "old", None).await;
    println!("RenameImage: {}", outcome(&result));
    let result = connection.clone_image("debian", "copy", None, None).await;
    println!("CloneImage: {}", outcome(&result));
    let result = connection.list_images(None, None, None, None, None).await;
    print!("ListImages: {}", outcome(&result));
    println!(" {}", result.into_iter().flatten().map(|reply| reply.images.len()).sum::<usize>());
    let result = connection.check("GetMachine", Some(&serde_json::json!({"name": "web"}))).await;
    print!("Check: {}", outcome(&result));
    for reply in result.into_iter().flatten() {
        print!(" {} {:?}", reply.allowed, reply.reason);
    }
    println!();
    let result = connection.check("io.machine1.GetMachine", Some(&serde_json::json!({"name": "-"}))).await;
    println!("Check: {}", outcome(&result));
    Ok(())
}
