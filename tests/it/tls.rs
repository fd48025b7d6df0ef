//! TLS between everybody: certificates and authorities that change under load, and callers that are not let in.

use std::sync::Arc;
use std::time::Duration;

use pass_proto::v1;
use system_tests::callback::standard;
use system_tests::client::Outcome;
use system_tests::fleet::{Fleet, Layout, Options};
use system_tests::history::Reader;
use system_tests::tls::Pki;
use test_kit::pki::TestCa;
use test_kit::wait_for;

use crate::programs;

/// Far above what any step takes.
const LIMIT: Duration = Duration::from_secs(40);

/// A pair with TLS on the gateway's listener and mutual TLS on the hop, whose connections live for seconds, so
/// that there are handshakes all the time.
async fn pair(ca: &TestCa) -> (Arc<Pki>, Fleet) {
    let pki = Arc::new(Pki::new(ca).unwrap());
    let layout = Layout {
        options: Options {
            tls: Some(Arc::clone(&pki)),
            state_tables: "[ingest]\nstream_age_max = \"1s\"\n\
                           [grpc.limits]\nconnection_age_max = \"1s\"\n"
                .to_owned(),
            ..Options::default()
        },
        ..Layout::pair()
    };
    let fleet = Fleet::started(&programs(), &layout).await.unwrap();
    fleet.note_epoch().await.unwrap();
    (pki, fleet)
}

/// How often a part has said so in the logs.
fn said(fleet: &Fleet, what: &str, part: &str) -> usize {
    let part = format!("part=\"{part}\"");
    let logs = fleet.logs().unwrap();
    logs.lines()
        .filter(|line| line.contains(what) && line.contains(&part))
        .count()
}

/// Changes files and waits until these parts have taken them in.
async fn reloaded(fleet: &Fleet, parts: &[&str], change: impl FnOnce()) {
    let before: Vec<usize> = parts
        .iter()
        .map(|part| said(fleet, "reloaded", part))
        .collect();
    change();
    wait_for("the new files to be in use", LIMIT, async || {
        let now: Vec<usize> = parts
            .iter()
            .map(|part| said(fleet, "reloaded", part))
            .collect();
        match now.iter().zip(&before).all(|(now, before)| now > before) {
            true => Ok(()),
            false => Err(format!("{parts:?}: {before:?} -> {now:?}")),
        }
    })
    .await
    .unwrap();
}

/// The gateway's `/status`, as far as it tells of the hop.
async fn hop(fleet: &Fleet) -> serde_json::Value {
    let (_, text) = fleet.gateways[0].service().admin("/status").await.unwrap();
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    status["forward"].clone()
}

/// Waits until the gateway has opened so many further streams.
async fn streams(fleet: &Fleet, more: u64) {
    let count = |hop: &serde_json::Value| hop["streams"].as_u64().unwrap();
    let wanted = count(&hop(fleet).await) + more;
    wait_for("streams over new connections", LIMIT, async || {
        let hop = hop(fleet).await;
        match count(&hop) >= wanted && hop["connected"] == true {
            true => Ok(()),
            false => Err(hop),
        }
    })
    .await
    .unwrap();
}

/// Whether pass-state answers a client that shows the certificate of this name.
async fn answers(fleet: &Fleet, pki: &Pki, name: Option<&str>) -> bool {
    let connector = pki.connector(name).unwrap();
    let reader = Reader::over(fleet.states[0].address(), connector);
    reader.info().await.is_ok()
}

fn assert_all_stored(fleet: &Fleet) {
    let attempts = fleet.log.attempts();
    let failed: Vec<&Outcome> = attempts
        .iter()
        .map(|attempt| &attempt.outcome)
        .filter(|outcome| !matches!(outcome, Outcome::Stored(_)))
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {}: {failed:?}",
        failed.len(),
        attempts.len()
    );
}

/// The rotation that the README describes, of everything at once: the authority, and by it the certificates of
/// both services' listeners and of the gateway as a client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authority_and_all_certificates_are_rotated_under_load_without_one_failed_callback() {
    let (old, new) = (TestCa::new("old").unwrap(), TestCa::new("new").unwrap());
    let (pki, fleet) = pair(&old).await;
    let senders = fleet.senders(81, "rotated", 4);
    fleet.wait_for_stored(200, LIMIT).await.unwrap();
    streams(&fleet, 2).await;

    let of_the_hop = ["grpc.tls", "pass_state.tls"];
    reloaded(&fleet, &of_the_hop, || pki.trust(&[&old, &new]).unwrap()).await;
    let everywhere = ["grpc.tls", "pass_state.tls", "http.tls"];
    reloaded(&fleet, &everywhere, || pki.issue(&new).unwrap()).await;
    streams(&fleet, 2).await;
    reloaded(&fleet, &of_the_hop, || pki.trust(&[&new]).unwrap()).await;
    streams(&fleet, 3).await;
    let enough = fleet.log.stored_count() + 200;
    fleet.wait_for_stored(enough, LIMIT).await.unwrap();

    assert!(senders.finish().await, "some callbacks were not stored");
    assert_all_stored(&fleet);
    assert!(answers(&fleet, &pki, Some("reader")).await);
    pki.issue_one("reader", &old).unwrap();
    assert!(!answers(&fleet, &pki, Some("reader")).await, "the old one");
    pki.issue_one("reader", &new).unwrap();
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    fleet.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_certificate_or_a_strangers_is_refused_and_the_gateway_keeps_what_it_took() {
    let (ca, stranger) = (TestCa::new("own").unwrap(), TestCa::new("own").unwrap());
    let (pki, fleet) = pair(&ca).await;
    assert!(answers(&fleet, &pki, Some("reader")).await);
    assert!(!answers(&fleet, &pki, None).await);

    // A pair that fits, so the gateway takes it; pass-state does not.
    reloaded(&fleet, &["pass_state.tls"], || {
        pki.issue_one("gateway", &stranger).unwrap();
    })
    .await;
    wait_for("the gateway to be refused", LIMIT, async || {
        let hop = hop(&fleet).await;
        let told = fleet.logs().unwrap().contains("TLS handshake failed");
        match hop["connected"] == false && told {
            true => Ok(()),
            false => Err(format!("{hop} {told}")),
        }
    })
    .await
    .unwrap();
    let callbacks = (1..=20)
        .map(|number| standard("CREATED", &format!("kept-{number}"), 0, None))
        .collect();
    fleet.load(callbacks, 2, LIMIT).await.unwrap();
    assert_all_stored(&fleet);
    let books = fleet.reader().info().await.unwrap().books.unwrap();
    assert_eq!(books.deliveries, 0, "nothing came through");

    pki.issue_one("gateway", &ca).unwrap();
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    fleet.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_certificate_is_refused_as_a_whole_and_the_old_one_serves_on() {
    let ca = TestCa::new("own").unwrap();
    let (pki, fleet) = pair(&ca).await;
    let senders = fleet.senders(82, "broken", 2);
    // The new certificate is good; its key is another one's.
    let good = ca.issue(&["127.0.0.1"]).unwrap();
    let other = ca.issue(&["127.0.0.1"]).unwrap();
    test_kit::pki::replace(&pki.file("state.key"), &other.key).unwrap();
    test_kit::pki::replace(&pki.file("state.crt"), &good.cert).unwrap();
    wait_for("the refusal", LIMIT, async || {
        match said(&fleet, "a new state was refused", "grpc.tls") {
            1 => Ok(()),
            count => Err(count),
        }
    })
    .await
    .unwrap();
    streams(&fleet, 3).await;
    assert!(answers(&fleet, &pki, Some("reader")).await);
    reloaded(&fleet, &["grpc.tls"], || {
        test_kit::pki::replace(&pki.file("state.key"), &good.key).unwrap();
    })
    .await;
    assert_eq!(said(&fleet, "a new state was refused", "grpc.tls"), 1);
    streams(&fleet, 2).await;
    assert!(senders.finish().await, "some callbacks were not stored");
    assert_all_stored(&fleet);
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    fleet
        .finish_with_errors(&["grpc.tls.key_file"])
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn healthcheck_asks_an_admin_listener_with_tls_and_probes_need_none() {
    let ca = TestCa::new("own").unwrap();
    let pki = Pki::new(&ca).unwrap();
    let health = test_kit::PortLease::take().unwrap();
    let layout = Layout {
        options: Options {
            gateway_tables: format!("[admin.tls]\n{}", pki.listener("http")),
            // A client certificate is wanted: its own one serves.
            state_tables: format!("[admin.tls]\n{}{}", pki.listener("state"), pki.mutual()),
            ..Options::default()
        },
        ..Layout::pair()
    };
    let mut fleet = Fleet::new(&programs(), &layout).unwrap();
    fleet.states[0]
        .edit_config(
            "[grpc]\n",
            &format!("[grpc]\nhealth_listen = \"{}\"\n", health.address()),
        )
        .unwrap();
    for member in fleet.states.iter_mut().chain(&mut fleet.gateways) {
        member.launch().await.unwrap();
        wait_for("readiness", LIMIT, async || {
            let asked = member.command(&["healthcheck"]).await;
            asked.map(|_| ()).map_err(|error| format!("{error:#}"))
        })
        .await
        .unwrap();
    }
    let plain = fleet.gateways[0].service().admin("/readyz").await;
    assert!(plain.is_err(), "{plain:?}");

    let endpoint = format!("http://{}", health.address());
    let channel = tonic::transport::Endpoint::from_shared(endpoint)
        .unwrap()
        .connect()
        .await
        .unwrap();
    for (service, known) in [
        ("liveness", true),
        ("readiness", true),
        ("", true),
        ("other", false),
    ] {
        let mut client = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        let request = tonic_health::pb::HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = client.check(request).await;
        assert_eq!(
            answer.is_ok_and(|answer| answer.get_ref().status == 1),
            known,
            "{service}"
        );
    }
    // Health alone.
    let info = v1::pass_service_client::PassServiceClient::new(channel)
        .get_log_info(v1::GetLogInfoRequest {})
        .await;
    assert_eq!(info.unwrap_err().code(), tonic::Code::Unimplemented);
    for member in fleet.gateways.iter_mut().chain(&mut fleet.states) {
        member.take().end().await.unwrap();
    }
}
