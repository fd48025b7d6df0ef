//! Requests that come back where nobody took them.
//!
//! A connection takes a request in two steps: its head, then the messages from its body. As long as nothing was taken
//! from the body, the server has no message of the call, and a gRPC server acts on messages only. So such a call may
//! be made again elsewhere whatever went wrong and whatever it would have done. That is what happens to a call that
//! meets the notice of a server that ends (GOAWAY), a connection that just closed, or a server that is gone; tonic
//! reports the first two as CANCELLED and drops the request. On its way out the body puts itself aside here.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// Where a body is found that came back.
pub(super) struct Untaken(Arc<Mutex<Option<Body>>>);

impl Untaken {
    /// Takes the body that came back, if it did.
    pub(super) fn take(&self) -> Option<Body> {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        place.take()
    }
}

/// A body on loan to a connection.
pub(super) struct Lent {
    inner: Body,
    /// Whether the connection may have sent anything of it.
    taken: bool,
    place: Arc<Mutex<Option<Body>>>,
}

/// Makes a request's body one that comes back unless something is taken from it.
pub(super) fn lend(request: Request<Body>) -> (Parts, Lent, Untaken) {
    let (head, inner) = request.into_parts();
    let place = Arc::new(Mutex::new(None));
    let lent = Lent {
        // An empty body is all sent with the head.
        taken: inner.is_end_stream(),
        inner,
        place: Arc::clone(&place),
    };
    (head, lent, Untaken(place))
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        self.taken |= frame.is_ready();
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.taken {
            let body = std::mem::take(&mut self.inner);
            *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: Body) -> Request<Body> {
        Request::builder().uri("/kit/Call").body(body).unwrap()
    }

    fn full() -> Body {
        Body::new(axum::body::Body::from("message"))
    }

    async fn frame(lent: &mut Lent) -> Bytes {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *lent).poll_frame(cx)).await;
        frame.unwrap().unwrap().into_data().unwrap()
    }

    #[tokio::test]
    async fn a_body_that_nobody_read_comes_back_whole() {
        let (head, lent, back) = lend(request(full()));
        assert!(back.take().is_none());
        drop(lent);
        let again = Request::from_parts(head, back.take().unwrap());
        let (head, mut lent, _) = lend(again);
        assert_eq!(head.uri.path(), "/kit/Call");
        assert_eq!(frame(&mut lent).await, "message");
    }

    #[tokio::test]
    async fn a_body_of_which_anything_was_taken_is_gone() {
        let (_, mut lent, back) = lend(request(full()));
        frame(&mut lent).await;
        drop(lent);
        assert!(back.take().is_none());
    }

    #[test]
    fn an_empty_body_may_have_been_sent_with_the_head() {
        let (_, lent, back) = lend(request(Body::empty()));
        drop(lent);
        assert!(back.take().is_none());
    }
}
