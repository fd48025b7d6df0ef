//! The whole way, as a user sees it: documented callbacks in, answers and a stream out.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pass_proto::v1;
use pass_sources::samples::SAMPLES;
use service_kit::clock::{Clock as _, SystemClock};
use system_tests::callback::{Callback, standard};
use system_tests::client::{Caller, Outcome};
use system_tests::dice::Dice;
use system_tests::sources::{
    ENVELOPE_SECRET, HOOKS_SECRET, PASSKIT_KEY, PASSKIT_SECRET, PASSWORKS_KEY, STANDARD_KEY,
    source_config,
};
use system_tests::stand::{Options, Stand};
use test_kit::{tool, wait_for};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tonic::transport::Endpoint;

use crate::programs;

/// Every line that our own code could log.
const LOG_EVERYTHING: &str = "[telemetry]\nlog_filter = \"info,webhook_gateway=trace,pass_state=trace,pass_store=trace,\
                              pass_spool=trace,pass_sources=trace,service_kit=trace\"\n";

/// The documented callbacks, signed as their vendors sign.
pub(crate) fn documented() -> Vec<Arc<Callback>> {
    SAMPLES
        .iter()
        .map(|sample| {
            let (source, secret) = match sample.vendor {
                "passworks" => ("passworks", PASSWORKS_KEY),
                "passkit" => ("passkit-signed", PASSKIT_SECRET),
                "signed_envelope" => ("envelope", ENVELOPE_SECRET),
                "standard" => ("hooks", HOOKS_SECRET),
                other => panic!("a vendor without a source: {other}"),
            };
            let config = source_config(source).unwrap();
            let id = format!("msg-{}", sample.name);
            let signed = pass_sources::sign(
                &config,
                secret.as_bytes(),
                sample.body.as_bytes(),
                &id,
                SystemClock.now(),
            )
            .unwrap();
            assert_eq!(signed.url_secret, None);
            let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
            headers.extend(signed.headers);
            Arc::new(Callback {
                source,
                method: sample.method.name().parse().unwrap(),
                headers,
                body: Bytes::from(signed.body),
            })
        })
        .collect()
}

/// The passes with what a repetition may change taken out: nothing but the place of their last event.
async fn passes(stand: &Stand) -> Vec<v1::Pass> {
    let mut passes = stand.reader().history().await.unwrap().passes;
    for pass in &mut passes {
        let alone = stand.reader().pass(&pass.name).await.unwrap();
        assert_eq!(&alone, pass, "GetPass and ListPasses differ");
        pass.cursor.clear();
    }
    passes.sort_by(|a, b| a.name.cmp(&b.name));
    passes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_callback_is_answered_200_once_and_for_all() {
    let options = Options {
        gateway_tables: LOG_EVERYTHING.to_owned(),
        state_tables: LOG_EVERYTHING.to_owned(),
        ..Options::default()
    };
    let stand = Stand::started(&programs(), &options).await.unwrap();
    let mut caller = Caller::new(stand.http());
    let callbacks = documented();
    for callback in &callbacks {
        let outcome = caller.deliver(callback, &stand.log).await;
        let Outcome::Stored(receipt) = &outcome else {
            panic!(
                "{} {}: {outcome:?}",
                callback.source,
                String::from_utf8_lossy(&callback.body)
            )
        };
        assert_eq!(
            receipt.status,
            "stored",
            "{}",
            String::from_utf8_lossy(&callback.body)
        );
        assert!(
            !receipt.events.is_empty(),
            "{}",
            String::from_utf8_lossy(&callback.body)
        );
    }
    let verdict = stand.verdict(Duration::from_secs(30)).await.unwrap();
    verdict.assert_clean();
    assert!(verdict.passes_compared >= 4, "{verdict}");
    let before = passes(&stand).await;
    let info = stand.reader().info().await.unwrap();
    let (events, duplicates) = (info.head_position, info.books.unwrap().duplicate);

    // Again, backwards, and mixed.
    let mut again = callbacks.clone();
    again.extend(callbacks.iter().rev().cloned());
    let mut mixed = [callbacks.clone(), callbacks].concat();
    Dice::new(3).shuffle(&mut mixed);
    again.extend(mixed);
    for callback in &again {
        let outcome = caller.deliver(callback, &stand.log).await;
        assert!(matches!(outcome, Outcome::Stored(_)), "{outcome:?}");
    }
    let verdict = stand.verdict(Duration::from_secs(30)).await.unwrap();
    verdict.assert_clean();
    let info = stand.reader().info().await.unwrap();
    assert_eq!(info.head_position, events, "a repetition became an event");
    assert_eq!(
        usize::try_from(info.books.unwrap().duplicate - duplicates).unwrap(),
        again.len()
    );
    assert_eq!(passes(&stand).await, before);

    let logs = stand.logs().unwrap();
    assert!(
        logs.lines().count() > 10,
        "too few lines to prove anything:\n{logs}"
    );
    for secret in [
        PASSWORKS_KEY,
        PASSKIT_KEY,
        STANDARD_KEY,
        PASSKIT_SECRET,
        ENVELOPE_SECRET,
        HOOKS_SECRET,
        "marker-",
        "Holder",
        "holder@",
        "203.0.113.",
        "192.168.1.206",
        "Mozilla",
        "Islington",
    ] {
        let line = logs.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret:?} is in the logs");
    }
    stand.finish().await.unwrap();
}

/// Runs grpcurl to its end and returns what it prints.
async fn grpcurl(stand: &Stand, arguments: &[&str]) -> String {
    let output = Command::new(tool("PASSLINE_GRPCURL").unwrap())
        .arg("-plaintext")
        .arg(stand.grpc().to_string())
        .args(arguments)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(30), output)
        .await
        .expect("grpcurl ends")
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bare_grpcurl_lists_describes_and_streams_events_as_they_come() {
    let stand = Stand::started(&programs(), &Options::default())
        .await
        .unwrap();
    // The pinned grpcurl asks reflection v1alpha; v1 is asked below.
    let services = grpcurl(&stand, &["list"]).await;
    let names = [
        "PassService",
        "SubscriptionService",
        "DeliveryService",
        "IngestService",
    ];
    for name in names {
        assert!(
            services.contains(&format!("passline.v1.{name}")),
            "{services}"
        );
    }
    let described = grpcurl(&stand, &["describe", "passline.v1.SubscriptionService"]).await;
    assert!(
        described.contains("stream .passline.v1.SubscribeResponse"),
        "{described}"
    );
    let by_v1 = services_by_reflection_v1(&stand).await;
    for name in names {
        assert!(by_v1.contains(&format!("passline.v1.{name}")), "{by_v1:?}");
    }

    let mut child = Command::new(tool("PASSLINE_GRPCURL").unwrap())
        .args(["-plaintext", "-d", r#"{"from_beginning": true}"#])
        .arg(stand.grpc().to_string())
        .arg("passline.v1.SubscriptionService/Subscribe")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().expect("piped");
    let mut printed = String::new();
    let mut caller = Caller::new(stand.http());
    for at in 0..3 {
        // The next one is posted only when the last one has come out: they come as they are posted.
        let pass = format!("streamed-{at}");
        let outcome = caller
            .deliver(&standard("CREATED", &pass, at, None), &stand.log)
            .await;
        let Outcome::Stored(receipt) = outcome else {
            panic!("{outcome:?}")
        };
        let wanted = receipt.events[0].clone();
        tokio::time::timeout(Duration::from_secs(30), async {
            let mut bytes = vec![0; 64 << 10];
            while !printed.contains(&wanted) {
                let read = out.read(&mut bytes).await.unwrap();
                assert!(read > 0, "grpcurl ended after {printed}");
                printed.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{wanted} did not come out of {printed}"));
    }
    child.kill().await.unwrap();
    stand
        .verdict(Duration::from_secs(20))
        .await
        .unwrap()
        .assert_clean();
    stand.finish().await.unwrap();
}

async fn services_by_reflection_v1(stand: &Stand) -> Vec<String> {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let endpoint = Endpoint::from_shared(format!("http://{}", stand.grpc())).unwrap();
    let mut client = ServerReflectionClient::new(endpoint.connect().await.unwrap());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    match answers
        .message()
        .await
        .unwrap()
        .and_then(|answer| answer.message_response)
    {
        Some(MessageResponse::ListServicesResponse(list)) => list
            .service
            .into_iter()
            .map(|service| service.name)
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// An operator's mistake must not be found out by what it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_gateway_on_the_same_spool_ends_with_an_error_that_names_the_directory() {
    let mut stand = Stand::new(&programs(), &Options::default()).unwrap();
    stand.start_gateway().await.unwrap();
    let first = stand.take_gateway();
    // The spool is opened before the port is bound, so its lock is what a second one meets.
    stand.launch_gateway().await.unwrap();
    let (status, log) = stand.take_gateway().ended().await.unwrap();
    assert!(
        !status.success() && log.contains("in use") && log.contains("spool"),
        "{status}: {log}"
    );
    wait_for(
        "the first one to be served still",
        Duration::from_secs(10),
        async || match first.admin("/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await
    .unwrap();
    first.end().await.unwrap();
}
