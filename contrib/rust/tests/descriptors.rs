// SPDX-License-Identifier: LGPL-2.1-or-later
//! One test, alone in its process, so that what is open can be counted.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::spawn;

use machine1::Client;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Answers each call, until the client hangs up; what came with it is gone with read(2).
fn serve(mut stream: UnixStream) {
    let answers = [
        "{\"parameters\":{\"transfer\":7},\"continues\":true}\0{\"parameters\":{\"transfer\":7,\"done\":true}}\0",
        "{\"parameters\":{\"transfer\":8}}\0",
        "{\"error\":\"org.varlink.service.PermissionDenied\",\"parameters\":{}}\0",
    ];
    for answer in answers.iter().cycle() {
        let mut call = Vec::new();
        while !call.ends_with(&[0]) {
            let mut data = [0; 4096];
            match stream.read(&mut data).unwrap() {
                0 => return,
                count => call.extend(&data[..count]),
            }
        }
        stream.write_all(answer.as_bytes()).unwrap();
    }
}

#[tokio::test]
async fn calls_with_files_leave_none_open() {
    let archive = std::fs::File::open("/dev/null").unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let service = spawn(move || serve(theirs));
    let mut client = Client::from(tokio::net::UnixStream::from_std(ours).unwrap());
    let before = open_files();
    for _ in 0..10 {
        let mut replies = client.import_tar_more("a", &archive, None, None, None).await.unwrap();
        assert!(replies.next().await.unwrap().is_ok());
        assert_eq!(replies.next().await.unwrap().unwrap().done, Some(true));
        assert!(replies.next().await.is_none());
        assert_eq!(client.export_tar("a", &archive, None, None).await.unwrap().transfer, 8);
        assert!(client.import_raw("a", archive.try_clone().unwrap(), None, None, None).await.is_err());
        assert_eq!(open_files(), before);
    }
    drop(client);
    service.join().unwrap();
}
