// SPDX-License-Identifier: LGPL-2.1-or-later
// Made by contrib/rust/generate.py with zlink-codegen 0.7.0 from io.machine1.varlink: edit neither this nor that.

//! What systemd-machined (org.freedesktop.machine1) offers on D-Bus, for clients without D-Bus: list
//! and inspect the local containers and virtual machines, open shells in them, copy files in and out,
//! and manage their images.
//! Any method may also fail with an error of another interface: org.varlink.service.InvalidParameter
//! when a parameter is missing, unknown or not as described here (its field parameter is the path of
//! the parameter, as in `args[2]`); org.varlink.service.PermissionDenied when the caller may not do
//! this, by the policy of this socket or by polkit; io.systemd.InteractiveAuthenticationRequired when
//! the caller could do this after entering a password, but did not set
//! allowInteractiveAuthentication.
//! A parameter that may be left out may also be null, with the same meaning. Times are microseconds
//! since 1970-01-01 00:00 UTC (CLOCK_REALTIME). Sizes are bytes. A field of a reply that is optional
//! is absent when its value is not known.
//! This is version 1.1 of the interface.

use serde::{Deserialize, Serialize};
use crate::client::{Client, Nothing};
use crate::error::AnyError;
use zlink::{proxy, ReplyError};

#[proxy("io.machine1")]
pub(crate) trait Machine1 {
    async fn list_machines(&mut self, all: Option<bool>) -> zlink::Result<Result<ListMachinesOutput, AnyError>>;
    async fn get_machine(&mut self, name: &str) -> zlink::Result<Result<GetMachineOutput, AnyError>>;
    async fn terminate_machine(&mut self, name: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn kill_machine(&mut self, name: &str, who: Option<&str>, signal: Option<i64>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    #[zlink(return_fds)]
    async fn open_machine_shell(&mut self, name: &str, user: Option<&str>, path: Option<&str>, args: Option<&[&str]>, env: Option<&[&str]>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<(Result<OpenMachineShellOutput, AnyError>, Vec<std::os::fd::OwnedFd>)>;
    async fn copy_from_machine(&mut self, name: &str, src: &str, dest: Option<&str>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn copy_to_machine(&mut self, name: &str, src: &str, dest: Option<&str>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn list_images(&mut self, all: Option<bool>) -> zlink::Result<Result<ListImagesOutput, AnyError>>;
    async fn remove_image(&mut self, name: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn clone_image(&mut self, name: &str, dest: &str, read_only: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn rename_image(&mut self, name: &str, dest: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn check(&mut self, method: &str, parameters: Option<&serde_json::Value>) -> zlink::Result<Result<CheckOutput, AnyError>>;
}

/// The methods of the interface.
impl Client {
    /// List All Registered Machines.
    /// Lists the running machines that are registered with systemd-machined, sorted by name. Mirrors
    /// ListMachines() on D-Bus.
    /// Errors: Failed, Unavailable, Timeout.
    pub async fn list_machines(&mut self, all: Option<bool>) -> crate::Result<ListMachinesOutput> {
        self.begin()?;
        let result = self.connection.list_machines(all).await;
        self.end(result)
    }

    /// Get A Machine By Name.
    /// Returns one machine. Mirrors GetMachine(name) on D-Bus and the properties of the object it
    /// returns.
    /// Errors: NoSuchMachine, Failed, Unavailable, Timeout.
    pub async fn get_machine(&mut self, name: &str) -> crate::Result<GetMachineOutput> {
        self.begin()?;
        let result = self.connection.get_machine(name).await;
        self.end(result)
    }

    /// Terminate A Machine.
    /// Ends a machine at once: its processes are killed without a clean shutdown. For a clean shutdown of
    /// a container that runs systemd, send signal 37 (SIGRTMIN+3) to its leader with KillMachine. The
    /// reply may come before the last process is gone. Mirrors TerminateMachine(name) on D-Bus.
    /// Errors: NoSuchMachine, Busy, Failed, NotSupported, Unavailable, Timeout.
    pub async fn terminate_machine(&mut self, name: &str, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.terminate_machine(name, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Send A Signal To A Machine.
    /// Sends a UNIX signal to processes of a machine. Mirrors KillMachine(name, who, signal) on D-Bus.
    /// Errors: NoSuchMachine, Busy, Failed, NotSupported, Unavailable, Timeout.
    pub async fn kill_machine(&mut self, name: &str, who: Option<&str>, signal: Option<i64>, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.kill_machine(name, who, signal, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Open A Shell Inside A Machine.
    /// Starts a program on a new pseudo terminal inside a machine and returns the master side of the
    /// terminal as a file descriptor. The machine needs systemd and a system bus inside. The program ends
    /// when the descriptor is closed; reading fails with EIO once the program has ended. The terminal
    /// starts with a window of 0 by 0: set its size with ioctl TIOCSWINSZ.
    /// A shell on the host itself, .host, is denied to everyone, root included (PermissionDenied), unless
    /// an administrator gives this service the right to open one (polkit action
    /// org.freedesktop.machine1.host-shell).
    /// Mirrors OpenMachineShell(name, user, path, args, env) on D-Bus.
    /// Errors: NoSuchMachine, Busy, Failed, NotSupported, Unavailable, Timeout.
    ///
    /// Returns the file descriptors too, whose indices are in the fields `*_fd`.
    pub async fn open_machine_shell(&mut self, name: &str, user: Option<&str>, path: Option<&str>, args: Option<&[&str]>, env: Option<&[&str]>, allow_interactive_authentication: Option<bool>) -> crate::Result<(OpenMachineShellOutput, Vec<std::os::fd::OwnedFd>)> {
        self.begin()?;
        let result = self.connection.open_machine_shell(name, user, path, args, env, allow_interactive_authentication).await;
        let result = result.map(|(result, fds)| result.map(|output| (output, fds)));
        self.end(result)
    }

    /// Copy A File Out Of A Machine.
    /// Copies a file or a directory tree out of a container to the host, and replies when the copy is
    /// complete, which can take minutes. A caller that leaves does not stop it. A symbolic link is copied
    /// as a link. Directories are merged, but an existing file is not replaced: the call is then Failed,
    /// with the dbus_error org.freedesktop.DBus.Error.FileExists. Mirrors CopyFromMachine(name, src,
    /// dest) on D-Bus.
    /// Errors: NoSuchMachine, Busy, TooManyOperations, Failed, NotSupported, Unavailable, Timeout.
    pub async fn copy_from_machine(&mut self, name: &str, src: &str, dest: Option<&str>, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.copy_from_machine(name, src, dest, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Copy A File Into A Machine.
    /// Copies a file or a directory tree from the host into a container, and replies when the copy is
    /// complete, which can take minutes. A caller that leaves does not stop it. A symbolic link is copied
    /// as a link. Directories are merged, but an existing file is not replaced: the call is then Failed,
    /// with the dbus_error org.freedesktop.DBus.Error.FileExists. Mirrors CopyToMachine(name, src, dest)
    /// on D-Bus.
    /// Errors: NoSuchMachine, Busy, TooManyOperations, Failed, NotSupported, Unavailable, Timeout.
    pub async fn copy_to_machine(&mut self, name: &str, src: &str, dest: Option<&str>, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.copy_to_machine(name, src, dest, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// List All Machine Images.
    /// Lists the images of machines, sorted by name. Mirrors ListImages() on D-Bus.
    /// Errors: Failed, Unavailable, Timeout.
    pub async fn list_images(&mut self, all: Option<bool>) -> crate::Result<ListImagesOutput> {
        self.begin()?;
        let result = self.connection.list_images(all).await;
        self.end(result)
    }

    /// Remove A Machine Image.
    /// Removes an image and all it contains, and replies when it is gone, which can take minutes. Mirrors
    /// RemoveImage(name) on D-Bus.
    /// Errors: NoSuchImage, ReadOnly, Busy, TooManyOperations, Failed, NotSupported, Unavailable,
    /// Timeout.
    pub async fn remove_image(&mut self, name: &str, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.remove_image(name, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Clone A Machine Image.
    /// Copies an image under a new name, and replies when the copy is complete, which can take minutes
    /// where the file system cannot share data. Mirrors CloneImage(src, dest, read_only) on D-Bus.
    /// Errors: NoSuchImage, ReadOnly, NameTaken, Busy, TooManyOperations, Failed, NotSupported,
    /// Unavailable, Timeout.
    pub async fn clone_image(&mut self, name: &str, dest: &str, read_only: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.clone_image(name, dest, read_only, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Rename A Machine Image.
    /// Gives an image a new name. Mirrors RenameImage(src, dest) on D-Bus.
    /// Errors: NoSuchImage, ReadOnly, NameTaken, Busy, Failed, NotSupported, Unavailable, Timeout.
    pub async fn rename_image(&mut self, name: &str, dest: &str, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.rename_image(name, dest, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Say Whether A Call Would Be Allowed.
    /// Says whether a call would be allowed, without making it: whether the policy of this socket lets it
    /// pass and polkit would say yes without asking anybody. Says nothing about whether the machine or
    /// image exists.
    /// A method that does not exist, and parameters that do not fit it, are the same errors as in the
    /// call itself: MethodNotFound, InterfaceNotFound and InvalidParameter of org.varlink.service, the
    /// last with its path below parameters, as in `parameters.args[2]`.
    /// Errors: Failed.
    pub async fn check(&mut self, method: &str, parameters: Option<&serde_json::Value>) -> crate::Result<CheckOutput> {
        self.begin()?;
        let result = self.connection.check(method, parameters).await;
        self.end(result)
    }
}

/// Output parameters for the ListMachines method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct ListMachinesOutput {
    pub machines: Vec<Machine>,
}

/// Output parameters for the GetMachine method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct GetMachineOutput {
    pub machine: Machine,
}

/// Output parameters for the OpenMachineShell method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct OpenMachineShellOutput {
    pub pty_fd: i64,
    pub pty_path: String,
}

/// Output parameters for the ListImages method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct ListImagesOutput {
    pub images: Vec<Image>,
}

/// Output parameters for the Check method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct CheckOutput {
    pub allowed: bool,
    pub reason: String,
}

/// A running container or virtual machine.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Machine {
    /// Name of the machine, unique on this host.
    pub name: String,
    /// Whether this is a virtual machine, a container, or the host itself. Absent when machined
    /// reports a class that this interface does not know.
    pub class: Option<String>,
    /// What registered the machine, for example systemd-nspawn or libvirt. Empty when none is known.
    pub service: String,
    /// D-Bus object path of the machine below /org/freedesktop/machine1/machine.
    pub object_path: String,
}

/// An image that a machine can be started from.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Image {
    /// Name of the image, without the suffix .raw of a disk image.
    pub name: String,
    /// Whether the image is a directory tree, a btrfs subvolume, a disk image in a file, or a block
    /// device. Absent when machined reports a type that this interface does not know.
    #[serde(rename = "type")]
    pub r#type: Option<String>,
    /// Whether the image is marked read-only. It can be removed and renamed all the same.
    pub read_only: bool,
    /// When the image was created, in microseconds since 1970-01-01 00:00 UTC (CLOCK_REALTIME).
    /// Absent when unknown.
    pub ctime: Option<i64>,
    /// When the image was last modified, in microseconds since 1970-01-01 00:00 UTC (CLOCK_REALTIME).
    /// Absent when unknown.
    pub mtime: Option<i64>,
    /// Disk space that the image takes, in bytes. Absent when unknown.
    pub usage: Option<i64>,
    /// D-Bus object path of the image below /org/freedesktop/machine1/image.
    pub object_path: String,
}

/// Errors that can occur in this interface.
#[derive(Debug, Clone, PartialEq, ReplyError)]
#[zlink(interface = "io.machine1")]
pub enum Machine1Error {
    /// No machine of this name is registered. ListMachines shows those that are.
    NoSuchMachine {
        /// The name that was asked for.
        name: String,
    },
    /// No image of this name exists. ListImages shows those that do.
    NoSuchImage {
        /// The name that was asked for.
        name: String,
    },
    /// An image of the new name exists already. Choose another one, or remove that image first.
    NameTaken {
        /// The name that exists already.
        name: String,
    },
    /// systemd-machined cannot do this with a machine or image of this kind, for example open a shell in
    /// a virtual machine, copy files from the host to itself, or terminate the host.
    NotSupported {
        /// What is not supported, for a person to read.
        reason: String,
    },
    /// The image is in use by a machine or by another operation, or too many questions to polkit about
    /// this user wait for an answer, perhaps for a password. Try again when that has ended.
    Busy {
        /// What there is to wait for, for a person to read.
        reason: String,
    },
    /// The image cannot be changed: it is the host itself, comes with the operating system (it is below
    /// /usr), or a file system that would have to be written to is read-only. That an image is merely
    /// marked read-only does not keep it from being removed or renamed.
    ReadOnly {
        /// The name of the image.
        name: String,
    },
    /// systemd-machined has 64 copies, clones and removals under way, which is its limit. Try again when
    /// some have ended.
    TooManyOperations,
    /// systemd-machined did not answer within 25 seconds, or what it works on did not answer it. Copies,
    /// clones and removals of images have no such limit of their own. Whether the operation takes place
    /// after all is not known: look before trying again.
    Timeout,
    /// The system bus or systemd-machined cannot be reached, or this service stops while replies are
    /// still to come. Look at the state of dbus.service and systemd-machined.service on the host, and try
    /// again.
    Unavailable {
        /// What could not be reached, for a person to read.
        reason: String,
    },
    /// systemd-machined refused or failed with an error that has no counterpart here. The journal of
    /// systemd-machined.service on the host may say more.
    Failed {
        /// Name of the D-Bus error, for example System.Error.EIO.
        dbus_error: String,
        /// What machined says about it, for a person to read.
        message: String,
    },
}

