//! gRPC messages are never compressed, either way: whoever unpacks them can be made to unpack far more than came.

use std::future::poll_fn;
use std::pin::Pin;

use tonic::body::Body;
use tonic::codegen::{Body as _, Service as _, http};
use tonic::{Code, Status};

use crate::harness::*;

/// What a message begins with, whose length is zero.
const PLAIN: &str = "\0\0\0\0\0";
const COMPRESSED: &str = "\u{1}\0\0\0\0";

async fn get_log_info(server: &Server, header: &str, message: &str) -> http::Response<Body> {
    let request = http::Request::post("/passline.v1.PassService/GetLogInfo")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(header, "gzip")
        .body(Body::new(message.to_owned()))
        .unwrap();
    let mut channel = server.channel.clone();
    soon("answer", async {
        poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
        channel.call(request).await.unwrap()
    })
    .await
}

#[tokio::test]
async fn a_compressed_request_is_refused() {
    let server = Server::start().await;
    server.log().await;
    let answer = get_log_info(&server, "grpc-encoding", COMPRESSED).await;
    let status = Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
}

#[tokio::test]
async fn an_answer_is_not_compressed_though_the_client_would_take_it() {
    let server = Server::start().await;
    server.log().await;
    let answer = get_log_info(&server, "grpc-accept-encoding", PLAIN).await;
    assert!(
        !answer.headers().contains_key("grpc-encoding"),
        "{answer:?}"
    );
    let mut body = answer.into_body();
    let frame = soon("message", poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))).await;
    let message = frame.unwrap().unwrap().into_data().unwrap();
    assert!(message.len() > 5, "{message:?}");
    assert_eq!(message[0], 0, "{message:?}");
}
