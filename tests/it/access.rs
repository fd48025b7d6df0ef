//! Who may call pass-state, with the real processes: a gateway whose token is changed under load, and taken away.

use std::path::Path;
use std::time::Duration;

use pass_proto::v1;
use pass_proto::v1::pass_service_client::PassServiceClient;
use system_tests::callback::standard;
use system_tests::client::{Caller, Outcome};
use system_tests::fleet::{Fleet, Layout, Options};
use test_kit::pki::replace;
use test_kit::wait_for;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

use crate::programs;
use crate::token::Token;

/// Far above what any step takes.
const LIMIT: Duration = Duration::from_secs(40);

/// Lets the reader in, and the gateway by any of these tokens.
fn let_in(file: &Path, reader: &Token, gateway: &[&Token]) {
    let principal = |name: &str, scope: &str, tokens: &[&Token]| {
        let hashes: Vec<&str> = tokens.iter().map(|token| token.hash.as_str()).collect();
        format!(
            "[[principals]]\nname = \"{name}\"\ntoken_sha256 = {hashes:?}\nscopes = [\"{scope}\"]\n\
             sources = [\"*\"]\norganizations = []\n"
        )
    };
    let mut text = principal("reader", "read", &[reader]);
    if !gateway.is_empty() {
        text += &principal("gateway", "ingest", gateway);
    }
    replace(file, &text).unwrap();
}

/// The log as who has this token sees it.
async fn info(fleet: &Fleet, token: &Token) -> Result<v1::GetLogInfoResponse, Status> {
    let endpoint = format!("http://{}", fleet.states[0].address());
    let channel = Endpoint::from_shared(endpoint).unwrap().connect_lazy();
    let mut request = Request::new(v1::GetLogInfoRequest {});
    let bearer = format!("Bearer {}", token.token).parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let answered = PassServiceClient::new(channel).get_log_info(request).await;
    answered.map(tonic::Response::into_inner)
}

/// Waits until everything that was answered 200 is in the books.
async fn recorded(fleet: &Fleet, reader: &Token) {
    let stored = fleet.log.stored_count();
    wait_for("all deliveries in the books", LIMIT, async || {
        let books = info(fleet, reader).await.unwrap().books.unwrap();
        let recorded = usize::try_from(books.deliveries).unwrap();
        match recorded >= stored {
            true => Ok(()),
            false => Err(format!("{recorded} of {stored}")),
        }
    })
    .await
    .unwrap();
}

/// Waits until pass-state has taken the principals in so many times.
async fn taken_in(fleet: &Fleet, times: usize) {
    wait_for("the principals to be in force", LIMIT, async || {
        let logs = fleet.logs().unwrap();
        let lines = logs.lines().filter(|line| line.contains("reloaded"));
        let count = lines
            .filter(|line| line.contains("part=\"principals\""))
            .count();
        if count >= times { Ok(()) } else { Err(count) }
    })
    .await
    .unwrap();
}

/// Waits until the gateway has no stream to pass-state.
async fn disconnected(fleet: &Fleet) {
    wait_for("the stream to end", LIMIT, async || {
        let (_, text) = fleet.gateways[0].service().admin("/status").await.unwrap();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        match status["forward"]["connected"] == false {
            true => Ok(()),
            false => Err(status["forward"].clone()),
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateways_token_is_changed_and_taken_away_without_a_lost_callback() {
    let dir = tempfile::tempdir().unwrap();
    let (principals, token_file) = (dir.path().join("principals.toml"), dir.path().join("token"));
    let (old, new, reader) = (Token::new().await, Token::new().await, Token::new().await);
    let_in(&principals, &reader, &[&old]);
    replace(&token_file, &old.token).unwrap();
    let reload = "[reload]\ninterval = \"1s\"\n";
    let auth = format!("[auth]\nprincipals_file = {principals:?}\n");
    let layout = Layout {
        options: Options {
            channel_keys: format!("token = {{ file = {token_file:?} }}\n"),
            gateway_tables: reload.to_owned(),
            state_tables: format!("{auth}{reload}"),
            ..Options::default()
        },
        ..Layout::pair()
    };
    let mut fleet = Fleet::started(&programs(), &layout).await.unwrap();
    assert_eq!(
        info(&fleet, &old).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        info(&fleet, &new).await.unwrap_err().code(),
        Code::Unauthenticated
    );

    let senders = fleet.senders(91, "token", 2);
    let more = async |count: usize| {
        let enough = fleet.log.stored_count() + count;
        fleet.wait_for_stored(enough, LIMIT).await.unwrap();
    };
    more(50).await;
    let_in(&principals, &reader, &[&old, &new]);
    taken_in(&fleet, 1).await;
    replace(&token_file, &new.token).unwrap();
    more(50).await;
    recorded(&fleet, &reader).await;
    let_in(&principals, &reader, &[&new]);
    taken_in(&fleet, 2).await;
    more(50).await;
    recorded(&fleet, &reader).await;

    // Nobody lets the gateway in, and it answers all the same.
    let_in(&principals, &reader, &[]);
    taken_in(&fleet, 3).await;
    disconnected(&fleet).await;
    let before = info(&fleet, &reader).await.unwrap().books.unwrap();
    more(50).await;
    let callback = standard("FETCHED", "locked-out", 1, None);
    let answer = Caller::new(fleet.http_addresses()[0])
        .deliver(&callback, &fleet.log)
        .await;
    assert!(matches!(answer, Outcome::Stored(_)), "{answer:?}");
    let after = info(&fleet, &reader).await.unwrap().books.unwrap();
    assert_eq!(after, before, "who has no token changes nothing");
    let_in(&principals, &reader, &[&new]);
    assert!(senders.finish().await, "some callbacks were not stored");
    recorded(&fleet, &reader).await;

    let logs = fleet.logs().unwrap();
    for secret in [&old, &new, &reader] {
        assert!(!logs.contains(&secret.token), "a token is in the logs");
    }

    // The judge has no token.
    let state = &mut fleet.states[0];
    state.take().end().await.unwrap();
    state.edit_config(&auth, "").unwrap();
    state.start().await.unwrap();
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    fleet.finish().await.unwrap();
}
