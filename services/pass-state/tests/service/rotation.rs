//! Long streams and old connections end by themselves, so that clients spread anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pass_proto::status::Reason;
use pass_proto::v1;
use pass_proto::v1::pass_service_client::PassServiceClient;
use pass_proto::v1::subscribe_response::Frame;
use pass_proto::v1::subscription_service_client::SubscriptionServiceClient;
use service_kit::config::Duration as Span;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt as _;

use crate::harness::*;
use crate::make::*;

/// A channel that counts its connections.
async fn counting(server: &Server) -> (Channel, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let (addr, count) = (server.addr, Arc::clone(&connections));
    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            let stream = tokio::net::TcpStream::connect(addr).await?;
            std::io::Result::Ok(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    (channel, connections)
}

/// Whether a call is answered; one that meets the connection's end is not.
async fn answers(channel: &Channel) -> bool {
    let mut passes = PassServiceClient::new(channel.clone());
    let asking = passes.get_log_info(v1::GetLogInfoRequest {});
    soon("an answer", asking).await.is_ok()
}

#[tokio::test]
async fn a_connection_at_its_age_takes_no_new_calls_and_its_streams_still_end_with_their_place() {
    let server = Server::with(|config| {
        config.grpc.limits.connection_age_max = Span::from_secs(1);
        // Shorter than a stream may live: it must not cut one.
        config.grpc.limits.connection_grace = Span::from_millis(1);
        config.subscriptions.stream_age_max = Span::from_secs(3);
        config.ingest.stream_age_max = Span::from_secs(2);
    })
    .await;
    let (channel, connections) = counting(&server).await;
    let mut subscriptions = SubscriptionServiceClient::new(channel.clone());
    let stream = subscriptions.subscribe(from_beginning()).await.unwrap();
    let mut live = Subscriber::of(stream.into_inner());
    let mut gateway = Gateway::with(&channel, hello(1)).await;
    gateway.deliver(installs(0..1)).await;
    assert_eq!(live.passes(1).await, ["pass-0"]);
    eventually("another connection for new calls", || async {
        answers(&channel).await && connections.load(Ordering::SeqCst) > 1
    })
    .await;
    // Those that were open go on where they are.
    gateway.deliver(installs(1..2)).await;
    assert_eq!(live.passes(1).await, ["pass-1"]);
    let status = gateway.end().await;
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), Reason::StreamRotated);
    assert!(status.get_details_retry_info().is_some());
    let (frames, status) = live.rest().await;
    let Some(Frame::Closing(closing)) = frames.last() else {
        panic!("{frames:?} {status:?}");
    };
    assert_eq!(closing.reason(), v1::ClosingReason::Rotated);
    assert_eq!(closing.cursor, server.log().await.head_cursor);
    let status = status.unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), Reason::StreamRotated);
    assert_eq!(metadata(&status, "cursor"), closing.cursor);
    assert!(status.get_details_retry_info().is_some());
    server.stop().await;
}

#[tokio::test]
async fn streams_opened_together_end_apart() {
    let server = Server::with(|config| {
        config.subscriptions.stream_age_max = Span::from_secs(2);
    })
    .await;
    let mut streams = Vec::new();
    let began = std::time::Instant::now();
    for _ in 0..8 {
        streams.push(server.subscribe(from_end()).await.unwrap());
    }
    let mut ends = Vec::new();
    for mut stream in streams {
        ends.push(tokio::spawn(async move {
            stream.rest().await;
            began.elapsed()
        }));
    }
    let mut ages = Vec::new();
    for end in ends {
        ages.push(soon("the end of a stream", end).await.unwrap());
    }
    ages.sort();
    assert!(ages[0] >= Duration::from_millis(1_700), "{ages:?}");
    assert!(ages[7] - ages[0] >= Duration::from_millis(10), "{ages:?}");
    server.stop().await;
}
