// SPDX-License-Identifier: LGPL-2.1-or-later
//! The client against a service of the test's own, which hears what was called and answers as told.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use machine1::{Client, Error, ImportTarOutput, Machine1Error, ServiceError, ShellOptions};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde_json::{Value, json};

/// A message, and the file descriptors on its first byte.
struct Answer(Vec<u8>, Vec<OwnedFd>);

impl From<Value> for Answer {
    fn from(reply: Value) -> Self {
        Answer(format!("{reply}\0").into_bytes(), Vec::new())
    }
}

/// A call, and the file descriptors on its first byte.
type Received = (Value, Vec<OwnedFd>);

/// A client whose calls get these answers, one list a call, and what was called when all are given.
fn service<const N: usize>(answers: [Vec<Answer>; N]) -> (Client, JoinHandle<Vec<Value>>) {
    let (client, service) = service_of_descriptors(answers);
    let called = |(call, descriptors): Received| {
        assert!(descriptors.is_empty());
        call
    };
    (client, spawn(move || service.join().unwrap().into_iter().map(called).collect()))
}

/// The same, and what came with the calls.
fn service_of_descriptors<const N: usize>(answers: [Vec<Answer>; N]) -> (Client, JoinHandle<Vec<Received>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    set_socket_send_buffer_size(&ours, 4096).unwrap();
    let thread = spawn(move || {
        let mut calls = Vec::new();
        for answers in answers {
            calls.push(receive(&theirs));
            for Answer(message, descriptors) in answers {
                let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                assert!(ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)));
                let sent = sendmsg(&theirs, &[IoSlice::new(&message)], &mut ancillary, SendFlags::empty()).unwrap();
                assert_eq!(sent, message.len());
            }
        }
        calls
    });
    (Client::from(tokio::net::UnixStream::from_std(ours).unwrap()), thread)
}

/// The next call.
fn receive(stream: &UnixStream) -> Received {
    let (mut call, mut descriptors) = (Vec::new(), Vec::new());
    while !call.ends_with(&[0]) {
        let mut data = [0; 4096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(stream, &mut [IoSliceMut::new(&mut data)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        for message in ancillary.drain() {
            let RecvAncillaryMessage::ScmRights(rights) = message else { panic!("no file descriptors") };
            assert!(call.is_empty());
            descriptors.extend(rights);
        }
        call.extend(&data[..received.unwrap().bytes]);
    }
    (serde_json::from_slice(&call[..call.len() - 1]).unwrap(), descriptors)
}

fn answer(reply: Value) -> Vec<Answer> {
    vec![reply.into()]
}

fn pipes<const N: usize>() -> ([OwnedFd; N], [OwnedFd; N]) {
    let mut reads = Vec::new();
    let writes = [(); N].map(|()| {
        let (read, write) = rustix::pipe::pipe().unwrap();
        reads.push(read);
        write
    });
    (reads.try_into().unwrap(), writes)
}

/// Whether every copy of the other end of this pipe is closed.
fn is_alone(read: &OwnedFd) -> bool {
    rustix::io::ioctl_fionbio(read, true).unwrap();
    rustix::io::read(read, &mut [0; 1]) == Ok(0)
}

#[tokio::test]
async fn calls_are_those_of_the_interface() {
    let machine = json!({"name": "web", "service": "", "object_path": "/m/web", "added_later": 1});
    let (mut client, service) = service([
        answer(json!({"parameters": {"machines": [machine]}})),
        answer(json!({"parameters": {}})),
        answer(json!({})),
        answer(json!({"parameters": null})),
        answer(json!({"parameters": {"allowed": false, "reason": "a \"quoted\" reason"}})),
        answer(json!({"parameters": {"machine": machine}})),
        answer(json!({"parameters": {"pty_fd": 0, "pty_path": ""}})),
    ]);
    let machines = client.list_machines(Some(true), None, None, None, None).await.unwrap().machines;
    assert_eq!((machines[0].name.as_str(), &machines[0].class), ("web", &None));
    client.terminate_machine("web", Some(true)).await.unwrap();
    client.kill_machine("web", Some("leader"), Some(37), None).await.unwrap();
    client.remove_image("web", None).await.unwrap();
    assert_eq!(client.check("KillMachine", None).await.unwrap().reason, "a \"quoted\" reason");
    assert_eq!(client.get_machine_by_pid(37, None, None).await.unwrap().machine.name, "web");
    client.open_machine_pty("web", None).await.unwrap();
    assert_eq!(
        service.join().unwrap(),
        [
            json!({"method": "io.machine1.ListMachines", "parameters": {"all": true}}),
            json!({"method": "io.machine1.TerminateMachine",
                   "parameters": {"name": "web", "allowInteractiveAuthentication": true}}),
            json!({"method": "io.machine1.KillMachine",
                   "parameters": {"name": "web", "who": "leader", "signal": 37}}),
            json!({"method": "io.machine1.RemoveImage", "parameters": {"name": "web"}}),
            json!({"method": "io.machine1.Check", "parameters": {"method": "KillMachine"}}),
            json!({"method": "io.machine1.GetMachineByPID", "parameters": {"pid": 37}}),
            json!({"method": "io.machine1.OpenMachinePTY", "parameters": {"name": "web"}}),
        ]
    );
}

#[tokio::test]
async fn a_long_reply_comes_whole() {
    let machine = json!({"name": "web", "class": "vm", "service": "", "object_path": "/m/web"});
    let reply = || answer(json!({"parameters": {"machines": vec![machine.clone(); 20_000]}}));
    let (mut client, service) = service([reply(), reply()]);
    for _ in 0..2 {
        assert_eq!(client.list_machines(None, None, None, None, None).await.unwrap().machines.len(), 20_000);
    }
    service.join().unwrap();
}

#[tokio::test]
async fn a_shell_is_a_file_descriptor_of_the_callers() {
    let (reads, writes) = pipes::<3>();
    let reply = json!({"parameters": {"pty_fd": 1, "pty_path": "/dev/pts/0"}});
    let (mut client, service) = service([vec![Answer(format!("{reply}\0").into_bytes(), writes.into())]]);
    let options = ShellOptions { user: Some("bob"), command: &["/bin/ls", "-l"], env: &["A=b"], ..Default::default() };
    let shell = client.open_shell("web", options).await.unwrap();
    assert_eq!(
        service.join().unwrap(),
        [json!({"method": "io.machine1.OpenMachineShell", "parameters":
                {"name": "web", "user": "bob", "path": "/bin/ls", "args": ["/bin/ls", "-l"], "env": ["A=b"]}})]
    );
    assert_eq!(shell.pty_path, "/dev/pts/0");
    assert!(fcntl_getfd(&shell.pty).unwrap().contains(FdFlags::CLOEXEC));
    assert_eq!(rustix::io::write(&shell.pty, b"x"), Ok(1));
    assert_eq!(rustix::io::read(&reads[1], &mut [0; 8]), Ok(1), "it is the one that the reply points to");
    assert_eq!(reads.each_ref().map(is_alone), [true, false, true], "the others are closed");
    drop(shell);
    assert!(is_alone(&reads[1]));
}

#[tokio::test]
async fn an_index_of_no_file_descriptor_is_an_error_and_leaks_none() {
    for index in [-1, 1] {
        let ([read], writes) = pipes::<1>();
        let reply = json!({"parameters": {"pty_fd": index, "pty_path": ""}});
        let (mut client, service) = service([vec![Answer(format!("{reply}\0").into_bytes(), writes.into())]]);
        let error = client.open_shell("web", ShellOptions::default()).await.unwrap_err();
        service.join().unwrap();
        assert!(matches!(error, Error::Malformed(_)), "{error:?}");
        assert!(is_alone(&read));
    }
}

#[tokio::test]
async fn file_descriptors_of_an_error_are_closed() {
    let ([read], writes) = pipes::<1>();
    let reply = json!({"error": "io.machine1.Timeout"});
    let (mut client, service) = service([vec![Answer(format!("{reply}\0").into_bytes(), writes.into())]]);
    let error = client.open_shell("web", ShellOptions::default()).await.unwrap_err();
    service.join().unwrap();
    assert!(matches!(error, Error::Machine1(Machine1Error::Timeout)), "{error:?}");
    assert!(is_alone(&read));
}

#[tokio::test]
async fn a_file_goes_with_the_call_and_stays_the_callers() {
    let ([read], [write]) = pipes::<1>();
    let begun = || answer(json!({"parameters": {"transfer": 7}}));
    let refused = answer(json!({"error": "org.varlink.service.PermissionDenied", "parameters": {}}));
    let (mut client, service) = service_of_descriptors([begun(), begun(), begun(), begun(), refused]);
    let imported = client.import_tar("a", &write, Some(true), None, None).await.unwrap();
    assert_eq!(imported, ImportTarOutput { transfer: 7, progress: None, done: None });
    assert_eq!(client.import_raw("b", &write, None, Some(true), None).await.unwrap().transfer, 7);
    assert_eq!(client.export_tar("c", write.as_fd(), Some("xz"), Some(true)).await.unwrap().transfer, 7);
    assert_eq!(client.export_raw("d", &write, None, None).await.unwrap().transfer, 7);
    let error = client.export_raw("e", &write, None, None).await.unwrap_err();
    assert!(matches!(error, Error::Service(ServiceError::PermissionDenied)), "{error:?}");
    let (calls, descriptors): (Vec<_>, Vec<_>) = service.join().unwrap().into_iter().unzip();
    assert_eq!(
        calls,
        [
            json!({"method": "io.machine1.ImportTar", "parameters": {"name": "a", "image_fd": 0, "force": true}}),
            json!({"method": "io.machine1.ImportRaw", "parameters": {"name": "b", "image_fd": 0, "read_only": true}}),
            json!({"method": "io.machine1.ExportTar", "parameters":
                   {"name": "c", "image_fd": 0, "format": "xz", "allowInteractiveAuthentication": true}}),
            json!({"method": "io.machine1.ExportRaw", "parameters": {"name": "d", "image_fd": 0}}),
            json!({"method": "io.machine1.ExportRaw", "parameters": {"name": "e", "image_fd": 0}}),
        ]
    );
    for received in descriptors {
        let [descriptor] = &received[..] else { panic!("{received:?}") };
        assert_eq!(rustix::io::write(descriptor, b"x"), Ok(1));
        assert_eq!(rustix::io::read(&read, &mut [0; 8]), Ok(1), "it is the one that was given");
    }
    assert_eq!(rustix::io::write(&write, b"x"), Ok(1));
    assert_eq!(rustix::io::read(&read, &mut [0; 8]), Ok(1));
    drop(write);
    assert!(is_alone(&read), "the client has none left");
}

#[tokio::test]
async fn a_file_goes_with_a_call_that_has_more_than_one_reply() {
    let ([read], [write]) = pipes::<1>();
    let reply = |parameters: Value, continues: bool| json!({"parameters": parameters, "continues": continues}).into();
    let failed = json!({"error": "io.machine1.TransferFailed", "parameters": {"transfer": 8, "reason": "no tar"}});
    let (mut client, service) = service_of_descriptors([
        vec![
            reply(json!({"transfer": 7}), true),
            reply(json!({"transfer": 7, "progress": 500}), true),
            reply(json!({"transfer": 7, "progress": 1000, "done": true}), false),
        ],
        vec![reply(json!({"transfer": 8}), true), failed.into()],
        answer(json!({"parameters": {"machines": []}})),
    ]);
    let mut seen = Vec::new();
    let mut replies = client.import_tar_more("a", &write, Some(true), None, None).await.unwrap();
    while let Some(reply) = replies.next().await {
        let ImportTarOutput { transfer, progress, done } = reply.unwrap();
        seen.push((transfer, progress, done));
    }
    assert_eq!(seen, [(7, None, None), (7, Some(500), None), (7, Some(1000), Some(true))]);
    let mut replies = client.export_raw_more("b", &write, Some("gzip"), None).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap().transfer, 8);
    let error = replies.next().await.unwrap().unwrap_err();
    let expected = Machine1Error::TransferFailed { transfer: 8, reason: "no tar".into() };
    assert!(matches!(&error, Error::Machine1(error) if *error == expected), "{error:?}");
    assert!(replies.next().await.is_none());
    assert_eq!(client.list_machines(None, None, None, None, None).await.unwrap().machines, []);
    let received = service.join().unwrap();
    // What is left out is null here, which means the same.
    let parameters = json!({"name": "a", "image_fd": 0, "force": true, "read_only": null,
                            "allowInteractiveAuthentication": null});
    assert_eq!(received[0].0, json!({"method": "io.machine1.ImportTar", "parameters": parameters, "more": true}));
    assert_eq!(received[1].0["method"], "io.machine1.ExportRaw");
    assert_eq!(received.iter().map(|(_, descriptors)| descriptors.len()).collect::<Vec<_>>(), [1, 1, 0]);
    drop(received);
    drop(write);
    assert!(is_alone(&read));
}

#[tokio::test]
async fn a_file_goes_with_the_first_byte_of_a_call_that_the_socket_takes_in_pieces() {
    let ([read], [write]) = pipes::<1>();
    let name = "x".repeat(50_000);
    let (mut client, service) = service_of_descriptors([answer(json!({"parameters": {"transfer": 7}}))]);
    client.export_tar(&name, &write, None, None).await.unwrap();
    let (call, descriptors) = service.join().unwrap().remove(0);
    assert_eq!((call["parameters"]["name"].as_str(), descriptors.len()), (Some(&name[..]), 1));
    drop((descriptors, write));
    assert!(is_alone(&read));
}

#[tokio::test]
async fn a_file_is_not_kept_by_a_call_without_a_reply() {
    let ([read], [write]) = pipes::<1>();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut client = Client::from(tokio::net::UnixStream::from_std(ours).unwrap());
    let call = client.export_tar("a", &write, None, None);
    assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
    assert_eq!(receive(&theirs).1.len(), 1);
    assert!(matches!(client.export_tar("a", &write, None, None).await, Err(Error::Unfinished)));

    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut other = Client::from(tokio::net::UnixStream::from_std(ours).unwrap());
    drop(theirs);
    let error = other.export_tar_more("a", &write, None, None).await.unwrap_err();
    assert!(matches!(&error, Error::Io(error) if error.kind() == std::io::ErrorKind::BrokenPipe), "{error:?}");
    drop(write);
    assert!(is_alone(&read));
}

/// What an error becomes, of a method that returns nothing and of one that returns something; and the client lives on.
async fn error(reply: Value) -> (Error, String) {
    let (mut client, service) =
        service([answer(reply.clone()), answer(reply), answer(json!({"parameters": {"machines": []}}))]);
    let error = client.terminate_machine("web", None).await.unwrap_err();
    let other = client.open_shell("web", ShellOptions::default()).await.unwrap_err();
    assert_eq!(format!("{error:?}"), format!("{other:?}"));
    assert_eq!(client.list_machines(None, None, None, None, None).await.unwrap().machines, []);
    service.join().unwrap();
    let words = error.to_string();
    (error, words)
}

#[tokio::test]
async fn each_error_of_the_interface_is_its_own() {
    use Machine1Error as E;
    let (name, reason) = (|| "web".to_owned(), || "why not".to_owned());
    for (expected, parameters, words) in [
        (E::NoSuchMachine { name: name() }, json!({"name": "web"}), "NoSuchMachine: web"),
        (E::NoMachineForPid { pid: 37 }, json!({"pid": 37}), "NoMachineForPID: 37"),
        (E::NoSuchImage { name: name() }, json!({"name": "web", "added_later": 1}), "NoSuchImage: web"),
        (E::NameTaken { name: name() }, json!({"name": "web"}), "NameTaken: web"),
        (E::NotSupported { reason: reason() }, json!({"reason": "why not"}), "NotSupported: why not"),
        (E::Busy { reason: reason() }, json!({"reason": "why not"}), "Busy: why not"),
        (E::ReadOnly { name: name() }, json!({"name": "web"}), "ReadOnly: web"),
        (E::TooManyOperations, json!({}), "TooManyOperations"),
        (E::Timeout, json!(null), "Timeout"),
        (E::Unavailable { reason: reason() }, json!({"reason": "why not"}), "Unavailable: why not"),
        (
            E::Failed { dbus_error: "System.Error.EIO".into(), message: "why \"not\"".into() },
            json!({"dbus_error": "System.Error.EIO", "message": "why \"not\""}),
            "Failed: System.Error.EIO, why \"not\"",
        ),
    ] {
        let name = words.split(':').next().unwrap();
        let (error, said) = error(json!({"error": format!("io.machine1.{name}"), "parameters": parameters})).await;
        assert_eq!(said, words);
        match error {
            Error::Machine1(error) => assert_eq!(error, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn each_error_of_the_standard_is_its_own_with_what_it_carries() {
    use ServiceError as E;
    let text = || "x.y".to_owned();
    for (expected, parameters, words) in [
        (E::InterfaceNotFound { interface: text() }, json!({"interface": "x.y"}), "InterfaceNotFound: x.y"),
        (E::MethodNotFound { method: text() }, json!({"method": "x.y"}), "MethodNotFound: x.y"),
        (E::MethodNotImplemented { method: text() }, json!({"method": "x.y"}), "MethodNotImplemented: x.y"),
        (
            E::InvalidParameter { parameter: text(), reason: Some("must be so".into()) },
            json!({"parameter": "x.y", "reason": "must be so"}),
            "InvalidParameter: x.y, must be so",
        ),
        (E::InvalidParameter { parameter: text(), reason: None }, json!({"parameter": "x.y"}), "InvalidParameter: x.y"),
        (E::PermissionDenied, json!({}), "PermissionDenied"),
        (E::ExpectedMore, json!(null), "ExpectedMore"),
    ] {
        let name = words.split(':').next().unwrap();
        let reply = json!({"error": format!("org.varlink.service.{name}"), "parameters": parameters});
        let (error, said) = error(reply).await;
        assert_eq!(said, words);
        assert!(matches!(&error, Error::Service(error) if *error == expected), "{error:?}");
    }
}

#[tokio::test]
async fn an_error_of_another_interface_is_no_success() {
    let (known, words) =
        error(json!({"error": "io.systemd.InteractiveAuthenticationRequired", "parameters": {}})).await;
    assert!(matches!(known, Error::InteractiveAuthenticationRequired), "{known:?}");
    assert_eq!(words, "InteractiveAuthenticationRequired");
    let (other, words) = error(json!({"error": "io.machine1.AddedLater", "parameters": {"a": "b", "c": 1}})).await;
    assert!(matches!(&other, Error::Other { name, .. } if name == "io.machine1.AddedLater"), "{other:?}");
    assert_eq!(words, "AddedLater: b, 1");
    let (other, words) = error(json!({"error": "org.varlink.service.MethodNotFound", "parameters": {}})).await;
    assert!(matches!(&other, Error::Other { .. }), "{other:?}");
    assert_eq!(words, "MethodNotFound");
}

#[tokio::test]
async fn more_is_a_stream_of_replies() {
    let reply = |number: u32, continues: bool| json!({"parameters": {"number": number}, "continues": continues});
    // Two in one message of the socket, as they come when they are written quickly.
    let two = Answer(format!("{}\0{}\0", reply(1, true), reply(2, true)).into_bytes(), Vec::new());
    let (mut client, service) = service([
        vec![two, reply(3, true).into(), json!({"parameters": {"number": 4}}).into()],
        vec![reply(1, true).into(), json!({"error": "io.machine1.Unavailable", "parameters": {"reason": "r"}}).into()],
        vec![json!({"error": "org.varlink.service.ExpectedMore"}).into()],
        answer(json!({})),
        answer(json!({"parameters": {"machines": []}})),
    ]);
    let mut numbers = Vec::new();
    let mut replies = client.more::<_, Value>("io.machine1.Count", json!({"from": 1})).await.unwrap();
    while let Some(reply) = replies.next().await {
        numbers.push(reply.unwrap()["number"].as_u64().unwrap());
    }
    assert_eq!(numbers, [1, 2, 3, 4]);
    let mut replies = client.more::<_, Value>("io.machine1.Count", json!({})).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap()["number"], 1);
    let error = replies.next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Machine1(Machine1Error::Unavailable { .. })), "{error:?}");
    assert!(replies.next().await.is_none());
    let mut replies = client.more::<_, Value>("io.machine1.Count", json!({})).await.unwrap();
    let error = replies.next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Service(ServiceError::ExpectedMore)), "{error:?}");
    assert!(replies.next().await.is_none());
    let mut replies = client.more::<_, Value>("io.machine1.Count", json!({})).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), json!({}));
    assert!(replies.next().await.is_none());
    assert_eq!(client.list_machines(None, None, None, None, None).await.unwrap().machines, []);
    let calls = service.join().unwrap();
    assert_eq!(calls[0], json!({"method": "io.machine1.Count", "parameters": {"from": 1}, "more": true}));
}

#[tokio::test]
async fn a_reply_whose_call_was_given_up_is_nobody_elses() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut client = Client::from(tokio::net::UnixStream::from_std(ours).unwrap());
    let call = client.get_machine("web", None, None);
    assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
    assert!(matches!(client.list_machines(None, None, None, None, None).await, Err(Error::Unfinished)));

    let (mut client, service) = service([answer(json!({"parameters": {}, "continues": true}))]);
    let mut replies = client.more::<_, Value>("io.machine1.Count", json!({})).await.unwrap();
    assert!(replies.next().await.unwrap().is_ok());
    assert!(matches!(client.list_machines(None, None, None, None, None).await, Err(Error::Unfinished)));
    service.join().unwrap();
}

#[tokio::test]
async fn what_is_no_reply_is_an_error_and_the_end() {
    for (said, closed) in [
        ("", true),
        ("{\"parameters\":", true),
        ("\0", false),
        ("[]\0", false),
        ("{\"parameters\":{}}\0", false),
        ("{\"error\":1}\0", false),
        ("{}x\0", false),
        ("x\0", false),
    ] {
        let (mut client, service) = service([vec![Answer(said.into(), Vec::new())]]);
        let error = client.get_machine("web", None, None).await.unwrap_err();
        service.join().unwrap();
        match error {
            Error::Closed if closed => (),
            Error::Malformed(_) if !closed => (),
            other => panic!("{said:?}: {other:?}"),
        }
        assert!(matches!(client.list_machines(None, None, None, None, None).await, Err(Error::Unfinished)));
    }
    let two = Answer(b"{\"parameters\":{}}\0{}\0".to_vec(), Vec::new());
    let (mut client, service) = service([vec![two]]);
    assert!(matches!(client.terminate_machine("web", None).await, Err(Error::Malformed(_))));
    assert!(matches!(client.list_machines(None, None, None, None, None).await, Err(Error::Unfinished)));
    service.join().unwrap();
}

#[tokio::test]
async fn no_service_is_an_error() {
    let error = Client::connect("/nowhere/io.machine1").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}
