//! Users who may not do everything.

use std::sync::{Arc, Mutex};

use super::super::options::{NatsCredentials, NatsLogin};
use super::*;

const USER: &str = "gateway";
const PASSWORD: &str = "s3cret";
/// Who may do everything.
const ADMIN: &str = "admin";

/// A server with a user who has these permissions, whom the gateways use.
async fn bench(permissions: &str) -> Bench {
    let more = format!(
        "authorization {{ users: [ {{ user: \"{ADMIN}\", password: \"{PASSWORD}\" }}, \
         {{ user: \"{USER}\", password: \"{PASSWORD}\", permissions: {permissions} }} ] }}\n"
    );
    let mut bench = Bench::with(NatsSettings {
        more,
        ..NatsSettings::default()
    })
    .await;
    bench.options.credentials = Some(user(USER, PASSWORD));
    bench
}

fn user(user: &str, password: &str) -> NatsLogin {
    let (user, password) = (user.to_owned(), password.to_owned());
    NatsCredentials::UserPassword { user, password }.into()
}

/// How servers are set up that want this.
fn wanting(authorization: &str) -> NatsSettings {
    NatsSettings {
        more: format!("authorization {{ {authorization} }}\n"),
        ..NatsSettings::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_replaced_is_the_next_connections() {
    let old = wanting("user: \"gateway\", password: \"old\"");
    let mut bench = Bench::with(old).await;
    let secret = Arc::new(Mutex::new(NatsCredentials::UserPassword {
        user: USER.into(),
        password: "old".into(),
    }));
    let read = Arc::clone(&secret);
    bench.options.credentials = Some(NatsLogin::new(move || Ok(read.lock().unwrap().clone())));
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=2).await;

    let pair = nkeys::KeyPair::new_user();
    let by_key = wanting(&format!("users: [ {{ nkey: {} }} ]", pair.public_key()));
    let seed = NatsCredentials::NkeySeed(pair.seed().expect("seed"));
    let by_token = NatsCredentials::Token("new".into());
    for (settings, credentials) in [(wanting("token: new"), by_token), (by_key, seed)] {
        bench.nats.restart_with(&settings).await.expect("restart");
        let refused = spool.append(fresh_id(), record(3)).await;
        assert!(refused.is_err(), "the old secret is good no more");
        *secret.lock().unwrap() = credentials;
        wait_for("appends", DEADLINE, async || {
            spool.append(fresh_id(), record(3)).await.map(|_| ())
        })
        .await
        .expect("the gateway is back with its new secret");
    }
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_cannot_be_deleted_skips_no_record_after_a_rewind() {
    let bench = bench("{ publish: { deny: \"$JS.API.CONSUMER.DELETE.>\" } }").await;
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=3).await;
    assert_eq!(lease_numbers(&spool, 3).await, [1, 2, 3]);
    spool.rewind(Sequence(0)).await.expect("rewind succeeds");
    append(&spool, 4..=4).await;
    assert_eq!(lease_numbers(&spool, 4).await, [1, 2, 3, 4]);
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_permissions_are_enough_and_none_is_missing() {
    let publish = [
        "PASSLINE.deliveries",
        "$KV.PASSLINE-turn.>",
        "$JS.ACK.PASSLINE.>",
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.*",
        "$JS.API.STREAM.CREATE.*",
        "$JS.API.STREAM.UPDATE.PASSLINE",
        "$JS.API.STREAM.PURGE.PASSLINE",
        "$JS.API.STREAM.MSG.GET.*",
        "$JS.API.DIRECT.GET.>",
        "$JS.API.CONSUMER.CREATE.PASSLINE.>",
        "$JS.API.CONSUMER.MSG.NEXT.PASSLINE.>",
        "$JS.API.CONSUMER.DELETE.PASSLINE.>",
    ];
    let documentation = include_str!("../../jetstream.rs");
    for subject in publish {
        assert!(
            documentation.contains(&format!("`{subject}`")),
            "{subject} is not documented"
        );
    }
    let allowed =
        format!("{{ publish: {{ allow: {publish:?} }}, subscribe: {{ allow: [\"_INBOX.>\"] }} }}");
    let mut bench = bench(&allowed).await;
    bench.open().await.close().await;
    // Raised, looked through, turned away from, made anew: whatever a gateway may have to do.
    bench.options.bytes_max *= 2;
    bench.options.retain_age = Duration::ZERO;
    let spool = bench.open_in_turn().await;
    assert_eq!(spool.status().disk_bytes_max, bench.options.bytes_max);
    append(&spool, 1..=5).await;
    assert_eq!(lease_numbers(&spool, 5).await, [1, 2, 3, 4, 5]);
    spool.rewind(Sequence(2)).await.expect("rewind succeeds");
    assert_eq!(lease_numbers(&spool, 5).await, [3, 4, 5]);
    spool.settle(Sequence(4)).await.expect("settle succeeds");
    let admin = async_nats::ConnectOptions::with_user_and_password(ADMIN.into(), PASSWORD.into())
        .connect(bench.nats.url())
        .await
        .expect("connected");
    let stream = async_nats::jetstream::new(admin)
        .get_stream_no_info("PASSLINE")
        .await
        .expect("stream");
    let consumer = consumer(&spool).await;
    wait_for("the acknowledgement", DEADLINE, async || {
        match stream.consumer_info(&consumer).await {
            Ok(info) if info.ack_floor.stream_sequence == 4 => Ok(()),
            info => Err(format!("{info:?}")),
        }
    })
    .await
    .expect("settled records are acknowledged");
    assert_eq!(spool.retention.sweep().await, Ok(4));
    spool.close().await;
    let gone = stream.consumer_info(&consumer).await;
    assert!(gone.is_err(), "{gone:?}");
    let spool = bench.open_in_turn().await;
    assert_eq!(lease_numbers(&spool, 5).await, [5]);
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_cannot_be_told_is_said_once_it_lasts_and_no_more_when_it_is_over() {
    // The bucket is there before, and can't be written.
    let mut bench = bench("{ publish: { deny: \"$KV.>\" } }").await;
    let restricted = std::mem::take(&mut bench.options.credentials);
    bench.options.credentials = Some(user(ADMIN, PASSWORD));
    bench.open().await.close().await;
    bench.options.credentials = restricted;
    let spool = bench.open().await;
    assert_eq!(spool.status().trouble, None);
    let mut waiting = Box::pin(spool.turn());
    let told = wait_for("trouble", DEADLINE, async || match spool.status().trouble {
        Some(trouble) if trouble.contains("PASSLINE-turn") => Ok(()),
        trouble => Err(format!("{trouble:?}")),
    });
    tokio::select! {
        told = told => told.expect("trouble is told"),
        given = &mut waiting => panic!("{given:?} although nobody can have it"),
    }
    assert_eq!(spool.status().health, SpoolHealth::Ok, "records are taken");
    append(&spool, 1..=1).await;
    // Nobody wants it any more, so nothing is written.
    drop(waiting);
    wait_for("the end of it", DEADLINE, async || {
        match spool.status().trouble {
            None => Ok(()),
            trouble => Err(format!("{trouble:?}")),
        }
    })
    .await
    .expect("trouble ends");
    spool.close().await;
}
