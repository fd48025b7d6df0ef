//! Guarantee 2: nothing authentic is thrown away, and what was not understood can be replayed after a fix.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pass_proto::v1;
use pass_sources::sign_envelope;
use system_tests::callback::Callback;
use system_tests::client::{Caller, Outcome};
use system_tests::sources::ENVELOPE_SECRET;
use system_tests::stand::{Options, Stand};
use test_kit::wait_for;

use crate::programs;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_that_was_not_understood_is_replayed_after_the_fix_as_of_its_receive_time() {
    let mut stand = Stand::new(&programs(), &Options::default()).unwrap();
    // The gateway does not know yet what this message means.
    let (known, unknown) = (r#""event.pass.installed" = "INSTALLED", "#, "");
    stand.edit_gateway_config(known, unknown).unwrap();
    stand.start_state().await.unwrap();
    stand.start_gateway().await.unwrap();
    let payload = r#"{"messageId":"m-1","timestamp":"2026-02-12T10:59:00.272Z","details":{"messageType":"event.pass.installed.v1","passId":"env-1","installationId":"inst-1"}}"#;
    let body = sign_envelope(payload, ENVELOPE_SECRET.as_bytes());
    let callback = Arc::new(Callback {
        source: "envelope",
        method: http::Method::POST,
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: Bytes::from(body.clone()),
    });
    let outcome = Caller::new(stand.http())
        .deliver(&callback, &stand.log)
        .await;
    let Outcome::Stored(receipt) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(receipt.status, "quarantined");
    let reader = stand.reader();
    reader
        .wait_for_deliveries(1, Duration::from_secs(20))
        .await
        .unwrap();

    let get = v1::GetDeliveryRequest {
        name: format!("deliveries/{}", receipt.delivery),
        view: v1::DeliveryView::Full.into(),
        read_mask: None,
    };
    let got = reader
        .deliveries
        .clone()
        .get_delivery(get)
        .await
        .unwrap()
        .into_inner()
        .delivery
        .unwrap();
    assert_eq!(got.outcome(), v1::DeliveryOutcome::Quarantined);
    assert_eq!(got.body, body, "the bytes are kept as they came");
    assert_eq!(
        got.quarantine.unwrap().reason(),
        v1::UndecodableReason::KindUnknown
    );

    stand.take_gateway().end().await.unwrap();
    stand
        .edit_gateway_config("kinds = { ", &format!("kinds = {{ {known}"))
        .unwrap();
    stand.start_gateway().await.unwrap();
    let replay = v1::ReplayDeliveryRequest {
        name: format!("deliveries/{}", receipt.delivery),
        request_id: String::new(),
    };
    // Until the gateway is connected there is nobody to ask.
    let replayed = wait_for("the replay", Duration::from_secs(20), async || {
        let answered = reader
            .deliveries
            .clone()
            .replay_delivery(replay.clone())
            .await;
        answered.map_err(|status| status.to_string())
    })
    .await
    .unwrap()
    .into_inner()
    .delivery
    .unwrap();
    assert_eq!(
        replayed.quarantine.unwrap().state(),
        v1::QuarantineState::Replayed
    );
    assert_eq!(replayed.receive_time, got.receive_time);
    let again = reader
        .deliveries
        .clone()
        .replay_delivery(replay)
        .await
        .unwrap()
        .into_inner()
        .delivery
        .unwrap();
    assert_eq!(again.events, replayed.events);

    let pass = reader.pass("sources/envelope/passes/env-1").await.unwrap();
    assert_eq!((pass.state(), pass.revision), (v1::PassState::Installed, 1));
    // The books move the delivery from quarantined to applied, so they agree with the lists as ever.
    let verdict = stand.verdict(Duration::from_secs(20)).await.unwrap();
    verdict.assert_clean();
    assert_eq!(verdict.events, 1);
    stand.finish().await.unwrap();
}

/// `ack = "applied"`: the answer says what became of it, and falls back to `stored` while pass-state is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_waits_for_the_commit_tells_applied_then_duplicate_and_stored_without_pass_state()
 {
    let options = Options {
        gateway_tables: "[ack]\nmode = \"applied\"\ntimeout = \"5s\"\n".to_owned(),
        ..Options::default()
    };
    let mut stand = Stand::started(&programs(), &options).await.unwrap();
    let callback = system_tests::callback::standard("CREATED", "waited-for", 0, None);
    let mut caller = Caller::new(stand.http());
    // Right after the start the stream may not be open yet, and then nothing is waited for.
    wait_for(
        "an answer of applied or duplicate",
        Duration::from_secs(20),
        async || match caller.deliver(&callback, &stand.log).await {
            Outcome::Stored(receipt) if receipt.status != "stored" => Ok(()),
            outcome => Err(format!("{outcome:?}")),
        },
    )
    .await
    .unwrap();
    for (callback, wanted) in [
        (
            system_tests::callback::standard("CREATED", "another", 0, None),
            "applied",
        ),
        (
            system_tests::callback::standard("CREATED", "another", 0, None),
            "duplicate",
        ),
    ] {
        match caller.deliver(&callback, &stand.log).await {
            Outcome::Stored(receipt) => assert_eq!(receipt.status, wanted),
            outcome => panic!("{outcome:?}"),
        }
    }
    stand.take_state().end().await.unwrap();
    let callback = system_tests::callback::standard("FETCHED", "another", 5, None);
    match caller.deliver(&callback, &stand.log).await {
        Outcome::Stored(receipt) => assert_eq!(receipt.status, "stored"),
        outcome => panic!("{outcome:?}"),
    }
    stand.start_state().await.unwrap();
    stand
        .verdict(Duration::from_secs(30))
        .await
        .unwrap()
        .assert_clean();
    stand.finish().await.unwrap();
}
