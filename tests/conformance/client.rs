// SPDX-License-Identifier: LGPL-2.1-or-later

// The client of org.varlink.certification with varlink-rust: its own is in no crate that is published.
// Each method gets what the one before returned. Prints the name of each that was answered.

use certification::{VarlinkClient, VarlinkClientInterface};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).expect("usage: client ADDRESS");
    let mut client = VarlinkClient::new(varlink::Connection::with_address(&address)?);

    let id = client.start().call()?.client_id;
    println!("Start");
    let reply = client.test01(id.clone()).call()?;
    println!("Test01");
    let reply = client.test02(id.clone(), reply.r#bool).call()?;
    println!("Test02");
    let reply = client.test03(id.clone(), reply.r#int).call()?;
    println!("Test03");
    let reply = client.test04(id.clone(), reply.r#float).call()?;
    println!("Test04");
    let reply = client.test05(id.clone(), reply.r#string).call()?;
    println!("Test05");
    let reply = client.test06(id.clone(), reply.r#bool, reply.r#int, reply.r#float, reply.r#string).call()?;
    println!("Test06");
    let given = reply.r#struct;
    let given = certification::Test07_Args_struct {
        r#bool: given.r#bool,
        r#int: given.r#int,
        r#float: given.r#float,
        r#string: given.r#string,
    };
    let reply = client.test07(id.clone(), given).call()?;
    println!("Test07");
    let reply = client.test08(id.clone(), reply.map).call()?;
    println!("Test08");
    let reply = client.test09(id.clone(), reply.set).call()?;
    println!("Test09");
    let mut strings = Vec::new();
    for reply in client.test10(id.clone(), reply.mytype).more()? {
        strings.push(reply?.r#string);
    }
    println!("Test10 {}", strings.len());
    client.test11(id.clone(), strings).oneway()?;
    println!("Test11");
    println!("End {}", client.end(id).call()?.all_ok);
    Ok(())
}
