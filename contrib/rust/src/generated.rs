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

use std::os::fd::{AsFd, OwnedFd};

use crate::client::{Client, Nothing, duplicates};
use crate::error::AnyError;
use crate::replies::Replies;
use serde::{Deserialize, Serialize};
use zlink::{proxy, ReplyError};

#[proxy("io.machine1")]
pub(crate) trait Machine1 {
    async fn list_machines(&mut self, all: Option<bool>, class: Option<&str>, service: Option<&str>, details: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<ListMachinesOutput, AnyError>>;
    async fn get_machine(&mut self, name: &str, details: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<GetMachineOutput, AnyError>>;
    async fn terminate_machine(&mut self, name: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn kill_machine(&mut self, name: &str, who: Option<&str>, signal: Option<i64>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    #[zlink(return_fds)]
    async fn open_machine_shell(&mut self, name: &str, user: Option<&str>, path: Option<&str>, args: Option<&[&str]>, env: Option<&[&str]>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<(Result<OpenMachineShellOutput, AnyError>, Vec<OwnedFd>)>;
    async fn copy_from_machine(&mut self, name: &str, src: &str, dest: Option<&str>, replace: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn copy_to_machine(&mut self, name: &str, src: &str, dest: Option<&str>, replace: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    #[zlink(rename = "GetMachineByPID")]
    async fn get_machine_by_pid(&mut self, pid: i64, details: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<GetMachineByPidOutput, AnyError>>;
    #[zlink(return_fds)]
    async fn open_machine_login(&mut self, name: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<(Result<OpenMachineLoginOutput, AnyError>, Vec<OwnedFd>)>;
    #[zlink(rename = "OpenMachinePTY", return_fds)]
    async fn open_machine_pty(&mut self, name: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<(Result<OpenMachinePtyOutput, AnyError>, Vec<OwnedFd>)>;
    #[zlink(return_fds)]
    async fn open_machine_root_directory(&mut self, name: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<(Result<OpenMachineRootDirectoryOutput, AnyError>, Vec<OwnedFd>)>;
    async fn bind_mount_machine(&mut self, name: &str, src: &str, dest: Option<&str>, read_only: Option<bool>, mkdir: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn unregister_machine(&mut self, name: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn poweroff_machine(&mut self, name: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn reboot_machine(&mut self, name: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn map_from_machine_user(&mut self, name: &str, uid: i64) -> zlink::Result<Result<MapFromMachineUserOutput, AnyError>>;
    async fn map_to_machine_user(&mut self, uid: i64) -> zlink::Result<Result<MapToMachineUserOutput, AnyError>>;
    async fn map_from_machine_group(&mut self, name: &str, gid: i64) -> zlink::Result<Result<MapFromMachineGroupOutput, AnyError>>;
    async fn map_to_machine_group(&mut self, gid: i64) -> zlink::Result<Result<MapToMachineGroupOutput, AnyError>>;
    async fn list_images(&mut self, all: Option<bool>, #[zlink(rename = "type")] r#type: Option<&str>, read_only: Option<bool>, details: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<ListImagesOutput, AnyError>>;
    async fn get_image(&mut self, name: &str, details: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<GetImageOutput, AnyError>>;
    async fn remove_image(&mut self, name: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn clone_image(&mut self, name: &str, dest: &str, read_only: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn rename_image(&mut self, name: &str, dest: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn start_machine(&mut self, name: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn watch_machines(&mut self, cursor: Option<&str>, all: Option<bool>) -> zlink::Result<Result<WatchMachinesOutput, AnyError>>;
    async fn watch_images(&mut self, cursor: Option<&str>, all: Option<bool>) -> zlink::Result<Result<WatchImagesOutput, AnyError>>;
    async fn wait_machine(&mut self, name: &str, state: &str, timeout: Option<i64>) -> zlink::Result<Result<WaitMachineOutput, AnyError>>;
    async fn mark_image_read_only(&mut self, name: &str, read_only: bool, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn set_image_limit(&mut self, name: &str, limit: Option<i64>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn get_pool(&mut self) -> zlink::Result<Result<GetPoolOutput, AnyError>>;
    async fn set_pool_limit(&mut self, limit: Option<i64>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn clean_pool(&mut self, mode: &str, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<CleanPoolOutput, AnyError>>;
    async fn import_tar(&mut self, name: &str, image_fd: i64, force: Option<bool>, read_only: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>, #[zlink(fds)] fds: Vec<OwnedFd>) -> zlink::Result<Result<ImportTarOutput, AnyError>>;
    async fn import_raw(&mut self, name: &str, image_fd: i64, force: Option<bool>, read_only: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>, #[zlink(fds)] fds: Vec<OwnedFd>) -> zlink::Result<Result<ImportRawOutput, AnyError>>;
    async fn export_tar(&mut self, name: &str, image_fd: i64, format: Option<&str>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>, #[zlink(fds)] fds: Vec<OwnedFd>) -> zlink::Result<Result<ExportTarOutput, AnyError>>;
    async fn export_raw(&mut self, name: &str, image_fd: i64, format: Option<&str>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>, #[zlink(fds)] fds: Vec<OwnedFd>) -> zlink::Result<Result<ExportRawOutput, AnyError>>;
    async fn pull_tar(&mut self, name: &str, url: &str, verify: Option<&str>, force: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<PullTarOutput, AnyError>>;
    async fn pull_raw(&mut self, name: &str, url: &str, verify: Option<&str>, force: Option<bool>, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<PullRawOutput, AnyError>>;
    async fn list_transfers(&mut self) -> zlink::Result<Result<ListTransfersOutput, AnyError>>;
    async fn cancel_transfer(&mut self, transfer: i64, #[zlink(rename = "allowInteractiveAuthentication")] allow_interactive_authentication: Option<bool>) -> zlink::Result<Result<Nothing, AnyError>>;
    async fn check(&mut self, method: &str, parameters: Option<&serde_json::Value>) -> zlink::Result<Result<CheckOutput, AnyError>>;
}

/// The methods of the interface.
impl Client {
    /// List All Registered Machines.
    /// Lists the running machines that are registered with systemd-machined, sorted by name. A call with
    /// the flag `more` gets a reply for each machine, as soon as it is known; one with an empty list when
    /// there is none. Mirrors ListMachines() on D-Bus and, for the details, what GetMachine mirrors.
    /// Errors: Busy, Failed, Unavailable, Timeout.
    pub async fn list_machines(&mut self, all: Option<bool>, class: Option<&str>, service: Option<&str>, details: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<ListMachinesOutput> {
        self.begin()?;
        let result = self.connection.list_machines(all, class, service, details, allow_interactive_authentication).await;
        self.end(result)
    }

    /// Get A Machine By Name.
    /// Returns one machine. Mirrors GetMachine(name) on D-Bus and, for the details, the properties of the
    /// object that it returns, GetMachineOSRelease(), GetMachineAddresses(), GetMachineUIDShift() and
    /// GetMachineSSHInfo().
    /// Errors: NoSuchMachine, Busy, Failed, Unavailable, Timeout.
    pub async fn get_machine(&mut self, name: &str, details: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<GetMachineOutput> {
        self.begin()?;
        let result = self.connection.get_machine(name, details, allow_interactive_authentication).await;
        self.end(result)
    }

    /// Terminate A Machine.
    /// Ends a machine at once: its processes are killed without a clean shutdown, which PoweroffMachine
    /// asks for. The reply may come before the last process is gone. Mirrors TerminateMachine(name) on
    /// D-Bus.
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
    pub async fn open_machine_shell(&mut self, name: &str, user: Option<&str>, path: Option<&str>, args: Option<&[&str]>, env: Option<&[&str]>, allow_interactive_authentication: Option<bool>) -> crate::Result<(OpenMachineShellOutput, Vec<OwnedFd>)> {
        self.begin()?;
        let result = self.connection.open_machine_shell(name, user, path, args, env, allow_interactive_authentication).await;
        let result = result.map(|(result, fds)| result.map(|output| (output, fds)));
        self.end(result)
    }

    /// Copy A File Out Of A Machine.
    /// Copies a file or a directory tree out of a container to the host, and replies when the copy is
    /// complete, which can take minutes. A caller that leaves does not stop it. A symbolic link is copied
    /// as a link. Directories are merged, but an existing file is not replaced unless replace is true:
    /// the call is then Failed, with the dbus_error org.freedesktop.DBus.Error.FileExists. Mirrors
    /// CopyFromMachine(name, src, dest) and, with replace, CopyFromMachineWithFlags() on D-Bus.
    /// Errors: NoSuchMachine, Busy, TooManyOperations, Failed, NotSupported, Unavailable, Timeout.
    pub async fn copy_from_machine(&mut self, name: &str, src: &str, dest: Option<&str>, replace: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.copy_from_machine(name, src, dest, replace, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Copy A File Into A Machine.
    /// Copies a file or a directory tree from the host into a container, and replies when the copy is
    /// complete, which can take minutes. A caller that leaves does not stop it. A symbolic link is copied
    /// as a link. Directories are merged, but an existing file is not replaced unless replace is true:
    /// the call is then Failed, with the dbus_error org.freedesktop.DBus.Error.FileExists. Mirrors
    /// CopyToMachine(name, src, dest) and, with replace, CopyToMachineWithFlags() on D-Bus.
    /// Errors: NoSuchMachine, Busy, TooManyOperations, Failed, NotSupported, Unavailable, Timeout.
    pub async fn copy_to_machine(&mut self, name: &str, src: &str, dest: Option<&str>, replace: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.copy_to_machine(name, src, dest, replace, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Get The Machine Of A Process.
    /// Returns the machine that a process belongs to. The process of this service itself belongs to none,
    /// and neither does one whose machine the policy of this socket hides. Mirrors GetMachineByPID(pid)
    /// on D-Bus.
    /// Errors: NoMachineForPID, Busy, Failed, Unavailable, Timeout.
    pub async fn get_machine_by_pid(&mut self, pid: i64, details: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<GetMachineByPidOutput> {
        self.begin()?;
        let result = self.connection.get_machine_by_pid(pid, details, allow_interactive_authentication).await;
        self.end(result)
    }

    /// Open A Login Prompt Inside A Machine.
    /// Starts a login prompt (getty) on a new pseudo terminal inside a machine and returns the master
    /// side of the terminal as a file descriptor. Whoever reads and writes there has to log in. Until the
    /// prompt is there, a read that fails with EIO is not the end: getty(8) hangs the terminal up
    /// (vhangup(2)) before it opens it again. The machine needs systemd and a system bus inside. There is
    /// none on the host itself, .host (PermissionDenied). Mirrors OpenMachineLogin(name) on D-Bus.
    /// Errors: NoSuchMachine, Busy, Failed, NotSupported, Unavailable, Timeout.
    ///
    /// Returns the file descriptors too, whose indices are in the fields `*_fd`.
    pub async fn open_machine_login(&mut self, name: &str, allow_interactive_authentication: Option<bool>) -> crate::Result<(OpenMachineLoginOutput, Vec<OwnedFd>)> {
        self.begin()?;
        let result = self.connection.open_machine_login(name, allow_interactive_authentication).await;
        let result = result.map(|(result, fds)| result.map(|output| (output, fds)));
        self.end(result)
    }

    /// Open A Pseudo Terminal Inside A Machine.
    /// Allocates a pseudo terminal inside a machine and returns its master side as a file descriptor.
    /// Nothing runs on it. NotSupported before systemd 258, which lets none but root do this. There is
    /// none on the host itself, .host (PermissionDenied). Mirrors OpenMachinePTY(name) on D-Bus.
    /// Errors: NoSuchMachine, Busy, Failed, NotSupported, Unavailable, Timeout.
    ///
    /// Returns the file descriptors too, whose indices are in the fields `*_fd`.
    pub async fn open_machine_pty(&mut self, name: &str, allow_interactive_authentication: Option<bool>) -> crate::Result<(OpenMachinePtyOutput, Vec<OwnedFd>)> {
        self.begin()?;
        let result = self.connection.open_machine_pty(name, allow_interactive_authentication).await;
        let result = result.map(|(result, fds)| result.map(|output| (output, fds)));
        self.end(result)
    }

    /// Open The Root Directory Of A Machine.
    /// Returns the root directory of a container as a file descriptor: with it, and by openat2(2), the
    /// container's files are there for whoever has the permissions of their owners. There is none of the
    /// host itself, .host (PermissionDenied). Mirrors OpenMachineRootDirectory(name) on D-Bus.
    /// Errors: NoSuchMachine, Busy, Failed, NotSupported, Unavailable, Timeout.
    ///
    /// Returns the file descriptors too, whose indices are in the fields `*_fd`.
    pub async fn open_machine_root_directory(&mut self, name: &str, allow_interactive_authentication: Option<bool>) -> crate::Result<(OpenMachineRootDirectoryOutput, Vec<OwnedFd>)> {
        self.begin()?;
        let result = self.connection.open_machine_root_directory(name, allow_interactive_authentication).await;
        let result = result.map(|(result, fds)| result.map(|output| (output, fds)));
        self.end(result)
    }

    /// Mount A Directory Of The Host In A Machine.
    /// Mounts a file or a directory of the host inside a running container, until the container ends.
    /// NotSupported for a container with a user namespace of its own. Mirrors BindMountMachine(name, src,
    /// dest, read_only, mkdir) on D-Bus.
    /// Errors: NoSuchMachine, Busy, Failed, NotSupported, Unavailable, Timeout.
    pub async fn bind_mount_machine(&mut self, name: &str, src: &str, dest: Option<&str>, read_only: Option<bool>, mkdir: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.bind_mount_machine(name, src, dest, read_only, mkdir, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Forget A Machine.
    /// Has systemd-machined forget a machine, whose processes run on. Mirrors UnregisterMachine(name) on
    /// D-Bus.
    /// Errors: NoSuchMachine, Busy, Failed, NotSupported, Unavailable, Timeout.
    pub async fn unregister_machine(&mut self, name: &str, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.unregister_machine(name, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Power Off A Machine.
    /// Asks the init system of a container to power off, with the signal that systemd knows for it
    /// (SIGRTMIN+4 to the leader), as `machinectl poweroff` does. The reply comes when the signal was
    /// sent; WaitMachine tells when the machine is gone. An init system that has just begun may not
    /// listen to it yet. NotSupported on the host itself, .host. Mirrors KillMachine(name, leader,
    /// SIGRTMIN+4) on D-Bus.
    /// Errors: NoSuchMachine, Busy, Failed, NotSupported, Unavailable, Timeout.
    pub async fn poweroff_machine(&mut self, name: &str, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.poweroff_machine(name, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Reboot A Machine.
    /// Asks the init system of a container to reboot, with the signal that it knows for it (SIGINT to the
    /// leader), as `machinectl reboot` does. The reply comes when the signal was sent. NotSupported on
    /// the host itself, .host. Mirrors KillMachine(name, leader, SIGINT) on D-Bus.
    /// Errors: NoSuchMachine, Busy, Failed, NotSupported, Unavailable, Timeout.
    pub async fn reboot_machine(&mut self, name: &str, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.reboot_machine(name, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Map A User Of A Machine To The Host.
    /// Says which user ID of the host a user of a container is. NotSupported for what is no container.
    /// Mirrors MapFromMachineUser(name, uid) on D-Bus.
    /// Errors: NoSuchMachine, NoSuchUserMapping, Failed, NotSupported, Unavailable, Timeout.
    pub async fn map_from_machine_user(&mut self, name: &str, uid: i64) -> crate::Result<MapFromMachineUserOutput> {
        self.begin()?;
        let result = self.connection.map_from_machine_user(name, uid).await;
        self.end(result)
    }

    /// Map A User Of The Host Into A Machine.
    /// Says which container a user ID of the host belongs to, and which ID it is inside. Containers that
    /// the policy of this socket hides have none. Mirrors MapToMachineUser(uid) on D-Bus.
    /// Errors: NoSuchUserMapping, Failed, Unavailable, Timeout.
    pub async fn map_to_machine_user(&mut self, uid: i64) -> crate::Result<MapToMachineUserOutput> {
        self.begin()?;
        let result = self.connection.map_to_machine_user(uid).await;
        self.end(result)
    }

    /// Map A Group Of A Machine To The Host.
    /// Says which group ID of the host a group of a container is. NotSupported for what is no container.
    /// Mirrors MapFromMachineGroup(name, gid) on D-Bus.
    /// Errors: NoSuchMachine, NoSuchGroupMapping, Failed, NotSupported, Unavailable, Timeout.
    pub async fn map_from_machine_group(&mut self, name: &str, gid: i64) -> crate::Result<MapFromMachineGroupOutput> {
        self.begin()?;
        let result = self.connection.map_from_machine_group(name, gid).await;
        self.end(result)
    }

    /// Map A Group Of The Host Into A Machine.
    /// Says which container a group ID of the host belongs to, and which ID it is inside. Containers that
    /// the policy of this socket hides have none. Mirrors MapToMachineGroup(gid) on D-Bus.
    /// Errors: NoSuchGroupMapping, Failed, Unavailable, Timeout.
    pub async fn map_to_machine_group(&mut self, gid: i64) -> crate::Result<MapToMachineGroupOutput> {
        self.begin()?;
        let result = self.connection.map_to_machine_group(gid).await;
        self.end(result)
    }

    /// List All Machine Images.
    /// Lists the images of machines, sorted by name. A call with the flag `more` gets a reply for each
    /// image, as soon as it is known; one with an empty list when there is none. Mirrors ListImages() on
    /// D-Bus and, for the details, what GetImage mirrors.
    /// Errors: Busy, Failed, Unavailable, Timeout.
    pub async fn list_images(&mut self, all: Option<bool>, r#type: Option<&str>, read_only: Option<bool>, details: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<ListImagesOutput> {
        self.begin()?;
        let result = self.connection.list_images(all, r#type, read_only, details, allow_interactive_authentication).await;
        self.end(result)
    }

    /// Get An Image By Name.
    /// Returns one image. Mirrors GetImage(name) on D-Bus and, for the details, the properties of the
    /// object that it returns, GetImageHostname(), GetImageMachineID(), GetImageMachineInfo() and
    /// GetImageOSRelease().
    /// Errors: NoSuchImage, Busy, Failed, Unavailable, Timeout.
    pub async fn get_image(&mut self, name: &str, details: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<GetImageOutput> {
        self.begin()?;
        let result = self.connection.get_image(name, details, allow_interactive_authentication).await;
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

    /// Start An Image As A Machine.
    /// Starts a container from an image, as a machine of the same name, as `machinectl start` does: with
    /// the unit systemd-nspawn@NAME.service. The reply comes when systemd has started it, which its unit
    /// bounds; the system in there may still be on its way up. Where that unit is active already, nothing
    /// is done, also if it is about to end; an image that something else has in use is StartFailed. A
    /// caller that leaves does not stop the start. Mirrors StartUnit(systemd-nspawn@NAME.service, fail)
    /// of org.freedesktop.systemd1 on D-Bus, and its signal JobRemoved.
    /// Errors: NoSuchImage, StartFailed, Busy, Failed, NotSupported, Unavailable, Timeout.
    pub async fn start_machine(&mut self, name: &str, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.start_machine(name, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Watch Machines Come And Go.
    /// Says which machines are registered, and then each one that comes or goes, in order, none left out
    /// and none twice, for as long as the caller listens. To be called with the flag `more`, as each
    /// change is a reply of its own; without it the error is org.varlink.service.ExpectedMore. Nothing
    /// else is answered on that connection meanwhile.
    /// The first reply is a snapshot, or resumed if a cursor was given that can be resumed. Whenever
    /// changes may have been lost there is a snapshot again, with the reason in gap: what was known
    /// before is void then. The watch goes on when systemd-machined exits and comes again, and when the
    /// system bus is restarted; it ends with an error when they cannot be reached for a minute.
    /// From MachineNew and MachineRemoved of D-Bus, and ListMachines(). machined announces nothing else
    /// about a machine, so the event changed does not occur here yet.
    /// Errors: Failed, Unavailable, Timeout.
    pub async fn watch_machines(&mut self, cursor: Option<&str>, all: Option<bool>) -> crate::Result<WatchMachinesOutput> {
        self.begin()?;
        let result = self.connection.watch_machines(cursor, all).await;
        self.end(result)
    }

    /// Watch Images Come And Go.
    /// Says which images there are, and then each one that comes, goes or changes, for as long as the
    /// caller listens. Replies are those of WatchMachines, with images; the same holds for cursors and
    /// gaps.
    /// systemd-machined announces nothing about images. It is asked for its list when one of the
    /// directories that it searches looks different, which is seen within 0.25 seconds, and every 5
    /// seconds otherwise: so late may a change be told that is inside an image, such as of its size or
    /// its read-only mark. What comes and goes between two lists is not seen. An image that was replaced
    /// by another one of its name is removed and added.
    /// Errors: Failed, Unavailable, Timeout.
    pub async fn watch_images(&mut self, cursor: Option<&str>, all: Option<bool>) -> crate::Result<WatchImagesOutput> {
        self.begin()?;
        let result = self.connection.watch_images(cursor, all).await;
        self.end(result)
    }

    /// Wait For A Machine.
    /// Replies when a machine is registered with systemd-machined, or when it is not: at once if that is
    /// so already. There need not be a machine of this name yet. One that the policy of the socket does
    /// not show is none. That it is registered does not say that the system in it is up. Nothing else is
    /// answered on that connection meanwhile.
    /// Errors: Failed, Unavailable, Timeout.
    pub async fn wait_machine(&mut self, name: &str, state: &str, timeout: Option<i64>) -> crate::Result<WaitMachineOutput> {
        self.begin()?;
        let result = self.connection.wait_machine(name, state, timeout).await;
        self.end(result)
    }

    /// Mark A Machine Image Read-Only.
    /// Marks an image read-only, or takes that mark from it. Of a disk image and a block device it is the
    /// permission to write, of a subvolume its own flag, of a directory its attribute "immutable", which
    /// not each file system has: NotSupported there. Mirrors MarkImageReadOnly(name, read_only) on D-Bus.
    /// Errors: NoSuchImage, ReadOnly, Busy, Failed, NotSupported, Unavailable, Timeout.
    pub async fn mark_image_read_only(&mut self, name: &str, read_only: bool, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.mark_image_read_only(name, read_only, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Limit The Disk Space Of A Machine Image.
    /// Sets how much disk space an image may take. NotSupported for anything but a btrfs subvolume, and
    /// where the quota of that btrfs is off; SetPoolLimit turns it on. Mirrors SetImageLimit(name, limit)
    /// on D-Bus.
    /// Errors: NoSuchImage, ReadOnly, Busy, Failed, NotSupported, Unavailable, Timeout.
    pub async fn set_image_limit(&mut self, name: &str, limit: Option<i64>, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.set_image_limit(name, limit, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Get The Storage Of Machine Images.
    /// Says where machined keeps images and how much space they take and may take. This is about every
    /// image: the policy of the socket refuses it unless its images have the glob *. Mirrors the
    /// properties PoolPath, PoolUsage and PoolLimit on D-Bus.
    /// Errors: Failed, Unavailable, Timeout.
    pub async fn get_pool(&mut self) -> crate::Result<GetPoolOutput> {
        self.begin()?;
        let result = self.connection.get_pool().await;
        self.end(result)
    }

    /// Limit The Disk Space Of All Machine Images.
    /// Sets how much disk space all images together may take, and turns the quota of their btrfs on.
    /// NotSupported where /var/lib/machines is not on btrfs. This is about every image: the policy of the
    /// socket refuses it unless its images have the glob *. Mirrors SetPoolLimit(limit) on D-Bus.
    /// Errors: Busy, Failed, NotSupported, Unavailable, Timeout.
    pub async fn set_pool_limit(&mut self, limit: Option<i64>, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.set_pool_limit(limit, allow_interactive_authentication).await;
        self.end(Nothing::expected(result))
    }

    /// Remove Machine Images In Bulk.
    /// Removes images that no machine uses, and replies when they are gone, which can take minutes. It
    /// has to be called with the flag `more`, as it has a reply for each image that was removed; when
    /// there was none, one reply without a name. This is about every image: the policy of the socket
    /// refuses it unless its images have the glob *. Mirrors CleanPool(mode) on D-Bus.
    /// Errors: Busy, TooManyOperations, Failed, NotSupported, Unavailable, Timeout.
    pub async fn clean_pool(&mut self, mode: &str, allow_interactive_authentication: Option<bool>) -> crate::Result<CleanPoolOutput> {
        self.begin()?;
        let result = self.connection.clean_pool(mode, allow_interactive_authentication).await;
        self.end(result)
    }

    /// Import A Tar Archive As Image.
    /// Makes an image of a tar archive, which may be compressed with xz, gzip or bzip2. Replies when the
    /// transfer has begun; it goes on when the caller leaves. A call with the flag `more` has a reply
    /// each time that the progress is another one, and the last one when all is done; it ends in
    /// TransferFailed or TransferCanceled when that is what becomes of it. Mirrors ImportTar() of
    /// org.freedesktop.import1 on D-Bus.
    /// Errors: NameTaken, TransferCanceled, Busy, TooManyOperations, Failed, NotSupported,
    /// TransferFailed, Unavailable, Timeout.
    ///
    /// Sends a duplicate of `image_fd`, which stays the caller's.
    pub async fn import_tar(&mut self, name: &str, image_fd: impl AsFd, force: Option<bool>, read_only: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<ImportTarOutput> {
        let fds = duplicates([image_fd.as_fd()])?;
        self.begin()?;
        let result = self.connection.import_tar(name, 0, force, read_only, allow_interactive_authentication, fds).await;
        self.end(result)
    }

    /// [`Client::import_tar`] with the flag `more`: it has replies until all is done.
    ///
    /// Sends a duplicate of `image_fd`, which stays the caller's.
    pub async fn import_tar_more(&mut self, name: &str, image_fd: impl AsFd, force: Option<bool>, read_only: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<Replies<'_, ImportTarOutput>> {
        let fds = duplicates([image_fd.as_fd()])?;
        let parameters = serde_json::json!({"name": name, "image_fd": 0, "force": force, "read_only": read_only, "allowInteractiveAuthentication": allow_interactive_authentication});
        self.more_with("io.machine1.ImportTar", parameters, fds).await
    }

    /// Import A Disk Image As Image.
    /// Makes an image of a disk image, which may be compressed with xz, gzip or bzip2. Replies when the
    /// transfer has begun; it goes on when the caller leaves. A call with the flag `more` has a reply
    /// each time that the progress is another one, and the last one when all is done; it ends in
    /// TransferFailed or TransferCanceled when that is what becomes of it. Mirrors ImportRaw() of
    /// org.freedesktop.import1 on D-Bus.
    /// Errors: NameTaken, TransferCanceled, Busy, TooManyOperations, Failed, NotSupported,
    /// TransferFailed, Unavailable, Timeout.
    ///
    /// Sends a duplicate of `image_fd`, which stays the caller's.
    pub async fn import_raw(&mut self, name: &str, image_fd: impl AsFd, force: Option<bool>, read_only: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<ImportRawOutput> {
        let fds = duplicates([image_fd.as_fd()])?;
        self.begin()?;
        let result = self.connection.import_raw(name, 0, force, read_only, allow_interactive_authentication, fds).await;
        self.end(result)
    }

    /// [`Client::import_raw`] with the flag `more`: it has replies until all is done.
    ///
    /// Sends a duplicate of `image_fd`, which stays the caller's.
    pub async fn import_raw_more(&mut self, name: &str, image_fd: impl AsFd, force: Option<bool>, read_only: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<Replies<'_, ImportRawOutput>> {
        let fds = duplicates([image_fd.as_fd()])?;
        let parameters = serde_json::json!({"name": name, "image_fd": 0, "force": force, "read_only": read_only, "allowInteractiveAuthentication": allow_interactive_authentication});
        self.more_with("io.machine1.ImportRaw", parameters, fds).await
    }

    /// Export An Image As A Tar Archive.
    /// Writes an image that is a directory or subvolume to a file, as a tar archive. Replies when the
    /// transfer has begun; it goes on when the caller leaves. A call with the flag `more` has a reply
    /// each time that the progress is another one, and the last one when all is done; it ends in
    /// TransferFailed or TransferCanceled when that is what becomes of it. systemd-importd may leave
    /// O_NONBLOCK set on the file. Mirrors ExportTar() of org.freedesktop.import1 on D-Bus.
    /// Errors: NoSuchImage, TransferCanceled, Busy, TooManyOperations, Failed, NotSupported,
    /// TransferFailed, Unavailable, Timeout.
    ///
    /// Sends a duplicate of `image_fd`, which stays the caller's.
    pub async fn export_tar(&mut self, name: &str, image_fd: impl AsFd, format: Option<&str>, allow_interactive_authentication: Option<bool>) -> crate::Result<ExportTarOutput> {
        let fds = duplicates([image_fd.as_fd()])?;
        self.begin()?;
        let result = self.connection.export_tar(name, 0, format, allow_interactive_authentication, fds).await;
        self.end(result)
    }

    /// [`Client::export_tar`] with the flag `more`: it has replies until all is done.
    ///
    /// Sends a duplicate of `image_fd`, which stays the caller's.
    pub async fn export_tar_more(&mut self, name: &str, image_fd: impl AsFd, format: Option<&str>, allow_interactive_authentication: Option<bool>) -> crate::Result<Replies<'_, ExportTarOutput>> {
        let fds = duplicates([image_fd.as_fd()])?;
        let parameters = serde_json::json!({"name": name, "image_fd": 0, "format": format, "allowInteractiveAuthentication": allow_interactive_authentication});
        self.more_with("io.machine1.ExportTar", parameters, fds).await
    }

    /// Export An Image As A Disk Image.
    /// Writes an image that is a file or a block device to a file, as a disk image. Replies when the
    /// transfer has begun; it goes on when the caller leaves. A call with the flag `more` has a reply
    /// each time that the progress is another one, and the last one when all is done; it ends in
    /// TransferFailed or TransferCanceled when that is what becomes of it. systemd-importd may leave
    /// O_NONBLOCK set on the file. Mirrors ExportRaw() of org.freedesktop.import1 on D-Bus.
    /// Errors: NoSuchImage, TransferCanceled, Busy, TooManyOperations, Failed, NotSupported,
    /// TransferFailed, Unavailable, Timeout.
    ///
    /// Sends a duplicate of `image_fd`, which stays the caller's.
    pub async fn export_raw(&mut self, name: &str, image_fd: impl AsFd, format: Option<&str>, allow_interactive_authentication: Option<bool>) -> crate::Result<ExportRawOutput> {
        let fds = duplicates([image_fd.as_fd()])?;
        self.begin()?;
        let result = self.connection.export_raw(name, 0, format, allow_interactive_authentication, fds).await;
        self.end(result)
    }

    /// [`Client::export_raw`] with the flag `more`: it has replies until all is done.
    ///
    /// Sends a duplicate of `image_fd`, which stays the caller's.
    pub async fn export_raw_more(&mut self, name: &str, image_fd: impl AsFd, format: Option<&str>, allow_interactive_authentication: Option<bool>) -> crate::Result<Replies<'_, ExportRawOutput>> {
        let fds = duplicates([image_fd.as_fd()])?;
        let parameters = serde_json::json!({"name": name, "image_fd": 0, "format": format, "allowInteractiveAuthentication": allow_interactive_authentication});
        self.more_with("io.machine1.ExportRaw", parameters, fds).await
    }

    /// Pull A Tar Archive From A URL As Image.
    /// Makes an image of a tar archive that systemd-importd downloads. Replies when the transfer has
    /// begun; it goes on when the caller leaves. A call with the flag `more` has a reply each time that
    /// the progress is another one, and the last one when all is done; it ends in TransferFailed or
    /// TransferCanceled when that is what becomes of it. Mirrors PullTar() of org.freedesktop.import1 on
    /// D-Bus.
    /// Errors: NameTaken, TransferCanceled, Busy, TooManyOperations, Failed, NotSupported,
    /// TransferFailed, Unavailable, Timeout.
    pub async fn pull_tar(&mut self, name: &str, url: &str, verify: Option<&str>, force: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<PullTarOutput> {
        self.begin()?;
        let result = self.connection.pull_tar(name, url, verify, force, allow_interactive_authentication).await;
        self.end(result)
    }

    /// Pull A Disk Image From A URL As Image.
    /// Makes an image of a disk image that systemd-importd downloads. Replies when the transfer has
    /// begun; it goes on when the caller leaves. A call with the flag `more` has a reply each time that
    /// the progress is another one, and the last one when all is done; it ends in TransferFailed or
    /// TransferCanceled when that is what becomes of it. Mirrors PullRaw() of org.freedesktop.import1 on
    /// D-Bus.
    /// Errors: NameTaken, TransferCanceled, Busy, TooManyOperations, Failed, NotSupported,
    /// TransferFailed, Unavailable, Timeout.
    pub async fn pull_raw(&mut self, name: &str, url: &str, verify: Option<&str>, force: Option<bool>, allow_interactive_authentication: Option<bool>) -> crate::Result<PullRawOutput> {
        self.begin()?;
        let result = self.connection.pull_raw(name, url, verify, force, allow_interactive_authentication).await;
        self.end(result)
    }

    /// List Transfers Of Images.
    /// Lists the transfers of images that are under way, whoever has begun them, by their numbers.
    /// Mirrors ListTransfers() of org.freedesktop.import1 on D-Bus.
    /// Errors: Failed, Unavailable, Timeout.
    pub async fn list_transfers(&mut self) -> crate::Result<ListTransfersOutput> {
        self.begin()?;
        let result = self.connection.list_transfers().await;
        self.end(result)
    }

    /// Cancel A Transfer.
    /// Ends a transfer, whoever has begun it, and takes away what it has made of an image so far. Mirrors
    /// CancelTransfer(id) of org.freedesktop.import1 on D-Bus.
    /// Errors: NoSuchTransfer, Busy, Failed, Unavailable, Timeout.
    pub async fn cancel_transfer(&mut self, transfer: i64, allow_interactive_authentication: Option<bool>) -> crate::Result<()> {
        self.begin()?;
        let result = self.connection.cancel_transfer(transfer, allow_interactive_authentication).await;
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

/// Output parameters for the GetMachineByPID method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct GetMachineByPidOutput {
    pub machine: Machine,
}

/// Output parameters for the OpenMachineLogin method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct OpenMachineLoginOutput {
    pub pty_fd: i64,
    pub pty_path: String,
}

/// Output parameters for the OpenMachinePTY method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct OpenMachinePtyOutput {
    pub pty_fd: i64,
    pub pty_path: String,
}

/// Output parameters for the OpenMachineRootDirectory method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct OpenMachineRootDirectoryOutput {
    pub directory_fd: i64,
}

/// Output parameters for the MapFromMachineUser method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct MapFromMachineUserOutput {
    pub uid: i64,
}

/// Output parameters for the MapToMachineUser method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct MapToMachineUserOutput {
    pub name: String,
    pub uid: i64,
}

/// Output parameters for the MapFromMachineGroup method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct MapFromMachineGroupOutput {
    pub gid: i64,
}

/// Output parameters for the MapToMachineGroup method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct MapToMachineGroupOutput {
    pub name: String,
    pub gid: i64,
}

/// Output parameters for the ListImages method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct ListImagesOutput {
    pub images: Vec<Image>,
}

/// Output parameters for the GetImage method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct GetImageOutput {
    pub image: Image,
}

/// Output parameters for the WatchMachines method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct WatchMachinesOutput {
    pub event: String,
    pub machines: Vec<Machine>,
    pub cursor: String,
    pub gap: Option<String>,
    pub missed: Option<i64>,
}

/// Output parameters for the WatchImages method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct WatchImagesOutput {
    pub event: String,
    pub images: Vec<Image>,
    pub cursor: String,
    pub gap: Option<String>,
    pub missed: Option<i64>,
}

/// Output parameters for the WaitMachine method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct WaitMachineOutput {
    pub machine: Option<Machine>,
}

/// Output parameters for the GetPool method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct GetPoolOutput {
    pub path: String,
    pub usage: Option<i64>,
    pub limit: Option<i64>,
}

/// Output parameters for the CleanPool method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct CleanPoolOutput {
    pub name: Option<String>,
    pub usage: Option<i64>,
}

/// Output parameters for the ImportTar method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct ImportTarOutput {
    pub transfer: i64,
    pub progress: Option<i64>,
    pub done: Option<bool>,
}

/// Output parameters for the ImportRaw method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct ImportRawOutput {
    pub transfer: i64,
    pub progress: Option<i64>,
    pub done: Option<bool>,
}

/// Output parameters for the ExportTar method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct ExportTarOutput {
    pub transfer: i64,
    pub progress: Option<i64>,
    pub done: Option<bool>,
}

/// Output parameters for the ExportRaw method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct ExportRawOutput {
    pub transfer: i64,
    pub progress: Option<i64>,
    pub done: Option<bool>,
}

/// Output parameters for the PullTar method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct PullTarOutput {
    pub transfer: i64,
    pub progress: Option<i64>,
    pub done: Option<bool>,
}

/// Output parameters for the PullRaw method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct PullRawOutput {
    pub transfer: i64,
    pub progress: Option<i64>,
    pub done: Option<bool>,
}

/// Output parameters for the ListTransfers method.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct ListTransfersOutput {
    pub transfers: Vec<Transfer>,
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
    /// What else is known of the machine. Absent unless it was asked for.
    pub details: Option<MachineDetails>,
}

/// What is known of a machine beside what the list has. Each piece that could not be had is absent
/// and named in missing; one that a machine does not have is absent alone.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct MachineDetails {
    /// The 128-bit machine ID that was registered, as 32 hexadecimal digits.
    pub id: Option<String>,
    /// PID of the leader on this host, the init process of a container or the VMM of a virtual
    /// machine.
    pub leader: Option<i64>,
    /// Name of the systemd unit that the machine runs in.
    pub unit: Option<String>,
    /// Path of the machine's root directory on this host.
    pub root_directory: Option<String>,
    /// When the machine was registered, in microseconds since 1970-01-01 00:00 UTC (CLOCK_REALTIME).
    pub timestamp: Option<i64>,
    /// Whether the machine starts, runs or ends. Absent when it is another state.
    pub state: Option<String>,
    /// Indexes of the network interfaces on this host that belong to the machine.
    pub network_interfaces: Option<Vec<i64>>,
    /// IP addresses of the machine.
    pub addresses: Option<Vec<Address>>,
    /// What os-release(5) inside of the machine says, each NAME=VALUE.
    pub os_release: Option<Vec<String>>,
    /// The user ID of this host that is root inside of the container.
    pub uid_shift: Option<i64>,
    /// Where ssh(1) reaches the machine. Known from systemd 256 on.
    pub ssh_address: Option<String>,
    /// Path of the private key on this host that ssh(1) reaches the machine with. Known from systemd
    /// 256 on.
    pub ssh_private_key_path: Option<String>,
    /// The machine's address in AF_VSOCK, vsock(7). Known from systemd 256 on.
    pub vsock_cid: Option<i64>,
    /// PID of the process that supervises the machine. Known from systemd 258 on.
    pub supervisor: Option<i64>,
    /// The user that the machine belongs to. Known from systemd 258 on.
    pub owner_uid: Option<i64>,
    /// The pieces that could not be had; an empty list when there is none.
    pub missing: Vec<Missing>,
}

/// An IP address.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Address {
    /// Whether this is an address of IPv4 or of IPv6.
    pub family: String,
    /// The address as inet_ntop(3) writes it, for example 192.0.2.1.
    pub address: String,
}

/// A piece of the details that could not be had, and why.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Missing {
    /// Name of the field that is absent for it.
    pub piece: String,
    /// Name of the D-Bus error.
    pub error: String,
    /// What machined says about it, for a person to read.
    pub reason: String,
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
    /// What is not in the list. There only when it was asked for.
    pub details: Option<ImageDetails>,
}

/// What machined knows of an image beside what it lists, and what is written in it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct ImageDetails {
    /// Path of the directory, the file or the device on this host.
    pub path: Option<String>,
    /// Bytes that the image may take. Absent when there is no limit, or none is known.
    pub limit: Option<i64>,
    /// Bytes that the image shares with no other one. Absent when unknown.
    pub usage_exclusive: Option<i64>,
    /// Bytes that the image may take without sharing them. Absent when there is no limit, or none is
    /// known.
    pub limit_exclusive: Option<i64>,
    /// What is in its /etc/hostname. Absent when there is none.
    pub hostname: Option<String>,
    /// What is in its /etc/machine-id, 32 hexadecimal digits. Absent when there is none.
    pub machine_id: Option<String>,
    /// What is in its /etc/machine-info, each as NAME=VALUE. Empty when there is none.
    pub machine_info: Option<Vec<String>>,
    /// What is in its os-release file, each as NAME=VALUE. Empty when there is none.
    pub os_release: Option<Vec<String>>,
    /// The pieces that could not be had; an empty list when there is none. What is written in an
    /// image cannot be had while a machine uses it (System.Error.EBUSY), nor of a disk image without
    /// an operating system.
    pub missing: Vec<Missing>,
}

/// An image on its way.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Transfer {
    /// Number of the transfer. systemd-importd begins with 1 anew when it is started again.
    pub transfer: i64,
    /// Name of the image on this host.
    pub name: String,
    /// What is done. Absent when it is nothing of this.
    #[serde(rename = "type")]
    pub r#type: Option<String>,
    /// The URL of what is pulled. Absent for others.
    pub remote: Option<String>,
    /// How much of it is done, in thousandths. Absent when unknown, as it is to systemd 252.
    pub progress: Option<i64>,
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
    /// No machine has this process, or there is no such process.
    #[zlink(rename = "NoMachineForPID")]
    NoMachineForPid {
        /// The PID that was asked for.
        pid: i64,
    },
    /// The user ID belongs to no container, or the container has no such user.
    NoSuchUserMapping {
        /// The user ID that was asked for.
        uid: i64,
    },
    /// The group ID belongs to no container, or the container has no such group.
    NoSuchGroupMapping {
        /// The group ID that was asked for.
        gid: i64,
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
    /// No transfer of this number is under way. ListTransfers shows those that are.
    NoSuchTransfer {
        /// Number of the transfer.
        transfer: i64,
    },
    /// A transfer of which a call with the flag `more` tells has failed. What there was of the image is
    /// taken away.
    TransferFailed {
        /// Number of the transfer.
        transfer: i64,
        /// What systemd-importd has said last, for a person to read.
        reason: String,
    },
    /// A transfer of which a call with the flag `more` tells was canceled.
    TransferCanceled {
        /// Number of the transfer.
        transfer: i64,
    },
    /// systemd could not start the machine. The journal of systemd-nspawn@NAME.service on the host says
    /// why.
    StartFailed {
        /// The name of the image.
        name: String,
        /// What became of it: failed, timeout, canceled, dependency, or another result of a job of
        /// systemd, org.freedesktop.systemd1(5).
        result: String,
    },
    /// systemd-machined cannot do this with a machine or image of this kind, for example open a shell in
    /// a virtual machine, copy files from the host to itself, or terminate the host; or it is too old to
    /// do it for this service: the reason says from which version of systemd on it can.
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
    /// after all is not known: look before trying again. Of WaitMachine: what it waits for was not so
    /// within its timeout.
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

