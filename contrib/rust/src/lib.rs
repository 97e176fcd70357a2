// SPDX-License-Identifier: LGPL-2.1-or-later
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]

mod client;
mod error;
#[rustfmt::skip]
#[allow(clippy::too_many_arguments)]
mod generated;
mod replies;
mod socket;

pub use client::{Client, Result, Shell, ShellOptions};
pub use error::{Error, ServiceError};
pub use generated::{
    CheckOutput, ExportRawOutput, ExportTarOutput, GetMachineOutput, Image, ImportRawOutput, ImportTarOutput,
    ListImagesOutput, ListMachinesOutput, Machine, Machine1Error, OpenMachineShellOutput,
};
pub use replies::Replies;

/// Where the service listens, unless it is a sandbox that it listens for.
pub const SOCKET: &str = "/run/machine1/io.machine1";
