//! Answers to records that were published: one inbox for all of them.
//!
//! The client's own requests keep a place for every answer that never came, for as long as the process lives. Here a
//! place ends with the question.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::oneshot;

/// Who waits for which answer.
#[derive(Default)]
struct Places {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Message>>,
}

/// The inbox.
#[derive(Clone)]
pub(super) struct Answers {
    client: Client,
    inbox: String,
    places: Arc<Mutex<Places>>,
}

/// A place in the inbox; given up when dropped.
struct Place<'a> {
    number: u64,
    places: &'a Mutex<Places>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(self.places).waiting.remove(&self.number);
    }
}

impl Answers {
    pub(super) fn new(client: Client) -> Self {
        let inbox = client.new_inbox();
        Self {
            client,
            inbox,
            places: Arc::default(),
        }
    }

    /// Subscribes to the inbox. The returned future hands out what comes, for as long as the client lives.
    ///
    /// # Errors
    ///
    /// If the client can't subscribe any more.
    pub(super) async fn listen(
        &self,
    ) -> Result<impl Future<Output = ()> + use<>, async_nats::SubscribeError> {
        let mut answers = self.client.subscribe(format!("{}.*", self.inbox)).await?;
        let places = self.places.clone();
        Ok(async move {
            while let Some(answer) = answers.next().await {
                let number = answer
                    .subject
                    .rsplit('.')
                    .next()
                    .and_then(|token| token.parse().ok());
                let place = number.and_then(|number: u64| lock(&places).waiting.remove(&number));
                if let Some(place) = place {
                    // Whoever asked may have gone away in between.
                    let _ = place.send(answer);
                }
            }
        })
    }

    /// How many answers are waited for.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        lock(&self.places).waiting.len()
    }

    /// Publishes and waits for the answer, without a limit of its own; `None` if there can be none.
    pub(super) async fn ask(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Option<Message> {
        let (sender, receiver) = oneshot::channel();
        let number = {
            let mut places = lock(&self.places);
            places.next += 1;
            let number = places.next;
            places.waiting.insert(number, sender);
            number
        };
        let _place = Place {
            number,
            places: &self.places,
        };
        let reply = format!("{}.{number}", self.inbox);
        self.client
            .publish_with_reply_and_headers(subject, reply, headers, payload)
            .await
            .ok()?;
        receiver.await.ok()
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    // Every change leaves the places whole.
    places.lock().unwrap_or_else(PoisonError::into_inner)
}
