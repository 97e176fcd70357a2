// SPDX-License-Identifier: LGPL-2.1-or-later
//! What a call can end in besides a reply.

use std::{fmt, io};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::Machine1Error;

/// Why a call has no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An error of io.machine1.
    Machine1(Machine1Error),
    /// An error of org.varlink.service, which any method can end in.
    Service(ServiceError),
    /// io.systemd.InteractiveAuthenticationRequired: the caller could do this after entering a password, but did not
    /// set `allow_interactive_authentication`.
    InteractiveAuthenticationRequired,
    /// An error that this crate does not know: of a newer service, or of another one.
    Other {
        /// Its qualified name.
        name: String,
        /// What it carries.
        parameters: Map<String, Value>,
    },
    /// The service cannot be reached, a file descriptor of the reply was lost, or one of the call cannot be duplicated.
    Io(io::Error),
    /// The service closed the connection.
    Closed,
    /// An earlier call or stream of this client was dropped or failed before its last reply came. What comes next on the
    /// connection is not known: connect again.
    Unfinished,
    /// The service said something that is no reply to the call.
    Malformed(String),
}

/// An error of the interface org.varlink.service.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceError {
    /// The service does not have this interface.
    InterfaceNotFound { interface: String },
    /// The interface does not have this method.
    MethodNotFound { method: String },
    /// The service does not offer this method of the interface.
    MethodNotImplemented { method: String },
    /// A parameter is missing, unknown or not as the interface says.
    InvalidParameter {
        /// The path of the parameter, as in `args[2]`.
        parameter: String,
        /// What it must be, for a person to read. io.machine1 always says so; the standard has no such field.
        reason: Option<String>,
    },
    /// The policy of the socket or polkit does not let the caller do this.
    PermissionDenied,
    /// The method has more than one reply.
    ExpectedMore,
}

/// Any error, for zlink to tell one from a reply; which one it is, [`Error::of_reply`] says.
#[derive(Debug, Deserialize)]
pub(crate) struct AnyError {
    error: String,
}

#[derive(Deserialize)]
struct Reply {
    error: Option<String>,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
}

impl Error {
    /// The error that a message is, if it is one.
    pub(crate) fn of_reply(message: &[u8]) -> Option<Self> {
        let Reply { error, parameters } = serde_json::from_slice(message).ok()?;
        let name = error?;
        let parameters = parameters.unwrap_or_default();
        let text = |key| parameters.get(key).and_then(Value::as_str).map(str::to_owned);
        let service = match name.as_str() {
            "org.varlink.service.InterfaceNotFound" => {
                text("interface").map(|interface| ServiceError::InterfaceNotFound { interface })
            }
            "org.varlink.service.MethodNotFound" => {
                text("method").map(|method| ServiceError::MethodNotFound { method })
            }
            "org.varlink.service.MethodNotImplemented" => {
                text("method").map(|method| ServiceError::MethodNotImplemented { method })
            }
            "org.varlink.service.InvalidParameter" => {
                text("parameter").map(|parameter| ServiceError::InvalidParameter { parameter, reason: text("reason") })
            }
            "org.varlink.service.PermissionDenied" => Some(ServiceError::PermissionDenied),
            "org.varlink.service.ExpectedMore" => Some(ServiceError::ExpectedMore),
            "io.systemd.InteractiveAuthenticationRequired" => return Some(Self::InteractiveAuthenticationRequired),
            _ => None,
        };
        Some(match service {
            Some(error) => Self::Service(error),
            None => match of_interface(&name, Some(&parameters)).or_else(|| of_interface(&name, None)) {
                Some(error) => Self::Machine1(error),
                None => Self::Other { name, parameters },
            },
        })
    }
}

/// What was derived takes no parameters at all where there are none, not even an empty object.
fn of_interface(error: &str, parameters: Option<&Map<String, Value>>) -> Option<Machine1Error> {
    let reply = match parameters {
        Some(parameters) => json!({"error": error, "parameters": parameters}),
        None => json!({"error": error}),
    };
    serde_json::from_value(reply).ok()
}

impl From<AnyError> for Error {
    fn from(AnyError { error }: AnyError) -> Self {
        Self::Other { name: error, parameters: Map::new() }
    }
}

impl From<zlink::Error> for Error {
    fn from(error: zlink::Error) -> Self {
        match error {
            zlink::Error::Io(error) => Self::Io(error),
            zlink::Error::UnexpectedEof => Self::Closed,
            other => Self::Malformed(other.to_string()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Machine1(error) => Some(error),
            Self::Service(error) => Some(error),
            _ => None,
        }
    }
}

impl std::error::Error for Machine1Error {}
impl std::error::Error for ServiceError {}

/// An error's name without its interface, and what it carries.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine1(error) => error.fmt(f),
            Self::Service(error) => error.fmt(f),
            Self::InteractiveAuthenticationRequired => f.write_str("InteractiveAuthenticationRequired"),
            Self::Other { name, parameters } => in_words(f, name, parameters),
            Self::Io(error) => error.fmt(f),
            Self::Closed => f.write_str("the service closed the connection"),
            Self::Unfinished => f.write_str("an earlier call on this connection did not come to its end"),
            Self::Malformed(what) => write!(f, "what the service said makes no sense: {what}"),
        }
    }
}

impl fmt::Display for Machine1Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reply = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        let none = Map::new();
        in_words(f, reply["error"].as_str().unwrap_or_default(), reply["parameters"].as_object().unwrap_or(&none))
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InterfaceNotFound { interface } => write!(f, "InterfaceNotFound: {interface}"),
            Self::MethodNotFound { method } => write!(f, "MethodNotFound: {method}"),
            Self::MethodNotImplemented { method } => write!(f, "MethodNotImplemented: {method}"),
            Self::InvalidParameter { parameter, reason: None } => write!(f, "InvalidParameter: {parameter}"),
            Self::InvalidParameter { parameter, reason: Some(reason) } => {
                write!(f, "InvalidParameter: {parameter}, {reason}")
            }
            Self::PermissionDenied => f.write_str("PermissionDenied"),
            Self::ExpectedMore => f.write_str("ExpectedMore"),
        }
    }
}

fn in_words(f: &mut fmt::Formatter<'_>, name: &str, parameters: &Map<String, Value>) -> fmt::Result {
    f.write_str(name.rsplit('.').next().unwrap_or(name))?;
    for (index, value) in parameters.values().enumerate() {
        f.write_str(if index == 0 { ": " } else { ", " })?;
        match value {
            Value::String(text) => f.write_str(text)?,
            other => write!(f, "{other}")?,
        }
    }
    Ok(())
}
