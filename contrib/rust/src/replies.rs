// SPDX-License-Identifier: LGPL-2.1-or-later
//! The replies to a call with `more`.

use std::fmt::Debug;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde_json::json;

use crate::error::AnyError;
use crate::{Client, Result};

/// The replies to a call with `more`, see [`Client::more`].
#[derive(Debug)]
pub struct Replies<'a, R> {
    client: &'a mut Client,
    ended: bool,
    reply: PhantomData<fn() -> R>,
}

impl<'a, R: DeserializeOwned + Debug> Replies<'a, R> {
    pub(crate) fn new(client: &'a mut Client) -> Self {
        Self { client, ended: false, reply: PhantomData }
    }

    /// The next reply as soon as it comes; `None` after the last one, and after an error, which ends the stream.
    pub async fn next(&mut self) -> Option<Result<R>> {
        if self.ended {
            return None;
        }
        let received = self.client.connection.receive_reply::<R, AnyError>().await;
        let mut continues = false;
        let received = received.map(|(reply, _)| {
            reply.map(|reply| {
                continues = reply.continues() == Some(true);
                reply.into_parameters()
            })
        });
        let result = self.client.outcome(received).and_then(|parameters| {
            // None and an empty object are the same.
            parameters
                .map_or_else(|| serde_json::from_value(json!({})), Ok)
                .map_err(|error| zlink::Error::from(error).into())
        });
        if !continues || result.is_err() {
            self.ended = true;
            if let Err(error) = self.client.finish(&result) {
                return Some(Err(error));
            }
        }
        Some(result)
    }
}
