//! Requests that come back where no server acted on them.
//!
//! There are two ways to know that:
//!
//! - A connection takes a request in two steps: its head, then the messages from its body. As long as nothing was taken
//!   from the body, the server has no message of the call, and a gRPC server acts on messages only. So it is with a
//!   call on a connection that just closed, that has got the good-bye (GOAWAY), or that can't be made.
//! - A server that ends says in its good-bye which calls are the last that it takes. What was on its way then and is
//!   none of those was not looked at (RFC 9113, section 6.8).
//!
//! Such a call may be made again elsewhere, whatever it would have done. tonic reports it as CANCELLED, INTERNAL or
//! UNAVAILABLE and drops the request; on its way out the body puts itself aside here, with what was taken from it.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// How much of a body is kept to be sent again, in bytes: more than any unary request of ours.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Where a body is found that came back.
pub(super) struct Returned(Arc<Mutex<Option<Lent>>>);

impl Returned {
    /// Takes the body that came back after `error`, if the server can't have acted on the call.
    pub(super) fn take(&self, error: &(dyn StdError + 'static)) -> Option<Body> {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lent = place.take()?;
        (!lent.taken || (lent.kept.is_some() && was_refused(error)))
            .then(|| Body::new(lent.again()))
    }
}

/// Whether the server has said that it did not and will not look at the call.
fn was_refused(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_go_away()
                && error.is_remote()
                && error.reason() == Some(h2::Reason::NO_ERROR);
        }
        cause = error.source();
    }
    false
}

/// A body on loan to a connection.
pub(super) struct Lent {
    inner: Body,
    /// What was taken from another loan of the same body.
    before: VecDeque<Bytes>,
    /// Whether the connection may have sent anything of it.
    taken: bool,
    /// What was taken, as long as it is not too much and nothing but data.
    kept: Option<VecDeque<Bytes>>,
    kept_bytes: usize,
    place: Option<Arc<Mutex<Option<Lent>>>>,
}

/// Makes a request's body one that comes back.
pub(super) fn lend(request: Request<Body>) -> (Parts, Lent, Returned) {
    let (head, inner) = request.into_parts();
    let place = Arc::new(Mutex::new(None));
    let lent = Lent {
        before: VecDeque::new(),
        // An empty body is all sent with the head.
        taken: inner.is_end_stream(),
        inner,
        kept: Some(VecDeque::new()),
        kept_bytes: 0,
        place: Some(Arc::clone(&place)),
    };
    (head, lent, Returned(place))
}

impl Lent {
    /// The same body from its beginning, not on loan.
    fn again(mut self) -> Self {
        let mut before = self.kept.take().unwrap_or_default();
        before.append(&mut self.before);
        Self {
            inner: std::mem::take(&mut self.inner),
            before,
            taken: false,
            kept: None,
            kept_bytes: 0,
            place: None,
        }
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        self.kept_bytes += frame.data_ref().map_or(0, Bytes::len);
        match frame.data_ref() {
            Some(data) if self.kept_bytes <= KEPT_BYTES_MAX => {
                if let Some(kept) = &mut self.kept {
                    kept.push_back(data.clone());
                }
            }
            _ => self.kept = None,
        }
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match self.before.pop_front() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None => Pin::new(&mut self.inner).poll_frame(cx),
        };
        self.taken |= frame.is_ready();
        match &frame {
            Poll::Ready(Some(Ok(frame))) if self.kept.is_some() => self.keep(frame),
            Poll::Ready(Some(Err(_))) => self.kept = None,
            Poll::Ready(_) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.before.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.before.is_empty() {
            true => self.inner.size_hint(),
            false => SizeHint::default(),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else {
            return;
        };
        let back = Self {
            inner: std::mem::take(&mut self.inner),
            before: std::mem::take(&mut self.before),
            taken: self.taken,
            kept: self.kept.take(),
            kept_bytes: 0,
            place: None,
        };
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: Body) -> Request<Body> {
        Request::builder().uri("/kit/Call").body(body).unwrap()
    }

    fn full(size: usize) -> Body {
        Body::new(axum::body::Body::from("m".repeat(size)))
    }

    async fn frame(lent: &mut Lent) -> Bytes {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *lent).poll_frame(cx)).await;
        frame.unwrap().unwrap().into_data().unwrap()
    }

    fn broken() -> std::io::Error {
        std::io::ErrorKind::BrokenPipe.into()
    }

    #[tokio::test]
    async fn a_body_that_nobody_read_comes_back_whole_whatever_went_wrong() {
        let (head, lent, back) = lend(request(full(7)));
        assert!(back.take(&broken()).is_none());
        drop(lent);
        let again = Request::from_parts(head, back.take(&broken()).unwrap());
        let (head, mut lent, _) = lend(again);
        assert_eq!(head.uri.path(), "/kit/Call");
        assert_eq!(frame(&mut lent).await, "mmmmmmm");
    }

    /// Where the server said that it did not look at the call it does: no such error can be made here, see
    /// `a_call_that_the_servers_good_bye_leaves_out_is_made_again` of the edges.
    #[tokio::test]
    async fn a_body_of_which_anything_was_taken_does_not_come_back_after_any_other_error() {
        let ours = h2::Error::from(h2::Reason::NO_ERROR);
        for error in [&broken() as &(dyn StdError + 'static), &ours] {
            let (_, mut lent, back) = lend(request(full(7)));
            frame(&mut lent).await;
            drop(lent);
            assert!(back.take(error).is_none(), "{error}");
        }
    }

    #[tokio::test]
    async fn what_was_taken_is_kept_as_long_as_it_is_small() {
        for (size, kept) in [(KEPT_BYTES_MAX, true), (KEPT_BYTES_MAX + 1, false)] {
            let (_, mut lent, back) = lend(request(full(size)));
            frame(&mut lent).await;
            drop(lent);
            let lent = back.0.lock().unwrap().take().unwrap();
            assert_eq!(lent.kept.is_some(), kept, "{size}");
            if kept {
                assert_eq!(frame(&mut lent.again()).await.len(), size);
            }
        }
    }

    #[test]
    fn an_empty_body_may_have_been_sent_with_the_head() {
        let (_, lent, back) = lend(request(Body::empty()));
        drop(lent);
        assert!(back.take(&broken()).is_none());
    }
}
