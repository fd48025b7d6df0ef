//! Every method of the descriptor × every set of scopes without the one that it requires × every way to have no
//! credential: the same refusal whatever is asked for, and nothing changes.

use std::collections::{BTreeMap, BTreeSet};

use pass_proto::access::{SCOPES, Scope, required_scopes, scope_name};
use pass_proto::status::Reason;
use tonic::Code;

use super::requests::{About, Asked, requests};
use super::{Who, World, call, principal, together, write};
use crate::harness::*;

/// All methods, and what each requires.
fn methods() -> BTreeMap<String, Scope> {
    required_scopes(pass_proto::DESCRIPTORS).unwrap()
}

/// Every set of scopes.
fn subsets() -> Vec<Vec<Scope>> {
    (0..1_usize << SCOPES.len())
        .map(|bits| {
            let scopes = SCOPES.into_iter().enumerate();
            scopes
                .filter(|(at, _)| bits >> at & 1 == 1)
                .map(|(_, scope)| scope)
                .collect()
        })
        .collect()
}

fn asked(world: &World, path: &str) -> Vec<Asked> {
    let asked = requests(world, path);
    asked.unwrap_or_else(|| panic!("{path} is new: say in requests.rs how it is called"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_method_does_anything_without_the_scope_that_it_requires() {
    let all_seeing = Who::all("all-seeing");
    // Without any scope there is nobody: a principal has at least one.
    let holders: Vec<(Vec<Scope>, Who)> = (subsets().into_iter().enumerate())
        .filter(|(_, scopes)| !scopes.is_empty())
        .map(|(at, scopes)| {
            let who = Who::new(&format!("holder-{at}"), &scopes, &["*"], &[]);
            (scopes, who)
        })
        .collect();
    let principals: Vec<&Who> = (holders.iter().map(|(_, who)| who))
        .chain([&all_seeing])
        .collect();
    let world = World::start(&principals).await;
    let before = world.state(&all_seeing).await;
    let (mut refused, mut allowed) = (0, 0);
    for (path, required) in methods() {
        let asked = asked(&world, &path);
        for (scopes, who) in &holders {
            if scopes.contains(&required) {
                // Allowed: about nothing, or nonsense, so that nothing happens.
                let harmless = asked.iter().filter(|one| {
                    matches!(one.about, About::Nothing(_) | About::Nonsense)
                        || (one.about == About::All && required != Scope::Admin)
                });
                for one in harmless {
                    let answer = world.call(&path, &who.bearer(), one.messages.clone()).await;
                    let code = answer.status.code();
                    assert!(
                        !matches!(code, Code::Unauthenticated | Code::PermissionDenied),
                        "{path} {scopes:?} {one:?} {code:?}"
                    );
                    allowed += 1;
                }
                continue;
            }
            let mut answers = BTreeSet::new();
            for one in &asked {
                let answer = world.call(&path, &who.bearer(), one.messages.clone()).await;
                assert_eq!(answer.messages.len(), 0, "{path} {scopes:?} {one:?}");
                assert_eq!(
                    reason(&answer.status),
                    Reason::PermissionDenied,
                    "{path} {scopes:?}"
                );
                assert_eq!(metadata(&answer.status, "scope"), scope_name(required));
                answers.insert(format!("{:?}", answer.ended()));
                refused += 1;
            }
            assert_eq!(answers.len(), 1, "{path} tells what there is: {answers:?}");
        }
    }
    assert!(
        refused > 500 && allowed > 200,
        "{refused} refused, {allowed} allowed"
    );
    let counted: BTreeMap<&str, u64> = world.failures().counts().collect();
    assert_eq!(counted["scope"], refused);
    assert_eq!(world.state(&all_seeing).await, before);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_method_does_anything_without_a_valid_credential() {
    let (all_seeing, gone) = (Who::all("all-seeing"), Who::all("gone"));
    let world = World::start(&[&all_seeing, &gone]).await;
    let before = world.state(&all_seeing).await;
    let check = "/passline.v1.PassService/GetLogInfo";
    let works = world
        .call(check, &gone.bearer(), vec![bytes::Bytes::new()])
        .await;
    assert_eq!(works.status.code(), Code::Ok);
    write(&world.principals, &[&all_seeing]);
    eventually("the token is revoked", || async {
        let answer = world
            .call(check, &gone.bearer(), vec![bytes::Bytes::new()])
            .await;
        answer.status.code() == Code::Unauthenticated
    })
    .await;

    let good = all_seeing.bearer();
    let last = if good.ends_with('A') { "B" } else { "A" };
    let credentials = [
        String::new(),
        "Bearer".to_owned(),
        "Bearer plt_0000000000000000000000000000000000000000000".to_owned(),
        format!("{}{last}", &good[..good.len() - 1]),
        format!("{good}A"),
        format!("Basic {}", all_seeing.token),
        all_seeing.token.clone(),
        gone.bearer(),
    ];
    let mut calls = Vec::new();
    let paths: Vec<String> = (methods().into_keys())
        .chain(["/passline.v1.PassService/NoSuchMethod", "/x.Y/Z"].map(str::to_owned))
        .chain(["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".to_owned()])
        .collect();
    for path in &paths {
        let known = path.starts_with("/passline") && !path.ends_with("NoSuchMethod");
        let bodies: Vec<_> = if known {
            asked(&world, path)
                .into_iter()
                .map(|one| one.messages)
                .collect()
        } else {
            vec![Vec::new()]
        };
        for messages in bodies {
            for credential in &credentials {
                calls.push((path.clone(), credential.clone(), messages.clone()));
            }
        }
    }
    let count = calls.len();
    let channel = world.server.channel.clone();
    // Side by side: most of them are answered late.
    let answers = together(calls.into_iter().map(|(path, credential, messages)| {
        let channel = channel.clone();
        async move { call(&channel, &path, &credential, messages).await }
    }))
    .await;
    let told: BTreeSet<String> = answers.iter().map(|answer| format!("{answer:?}")).collect();
    let kinds: BTreeSet<String> = (answers.iter())
        .map(|answer| format!("{:?} {}", answer.ended(), answer.messages.len()))
        .collect();
    assert_eq!(kinds.len(), 1, "{told:?}");
    assert_eq!(reason(&answers[0].status), Reason::Unauthenticated);
    assert!(count > 400, "{count}");
    assert_eq!(world.state(&all_seeing).await, before);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_take_no_place_from_others_on_their_connection() {
    let reader = Who::new("reader", &[Scope::Read], &["*"], &[]);
    let world = World::with(&[&reader], |config| {
        config.grpc.limits.concurrency_max = 64;
    })
    .await;
    let path = "/passline.v1.PassService/GetLogInfo";
    let channel = world.server.channel.clone();
    let failing = tokio::spawn(together((0..200).map(move |_| {
        let channel = channel.clone();
        async move {
            call(
                &channel,
                path,
                "Bearer plt_wrong",
                vec![bytes::Bytes::new()],
            )
            .await
        }
    })));
    let failures = world.failures();
    eventually("most of them are refused", || {
        let count: u64 = failures.counts().map(|(_, count)| count).sum();
        std::future::ready(count > 100)
    })
    .await;
    for _ in 0..50 {
        let answer = world
            .call(path, &reader.bearer(), vec![bytes::Bytes::new()])
            .await;
        assert_eq!(answer.status.code(), Code::Ok, "{:?}", answer.status);
    }
    for answer in failing.await.unwrap() {
        assert_eq!(reason(&answer.status), Reason::Unauthenticated);
    }
    world.stop().await;
}

#[tokio::test]
async fn what_is_left_open_to_other_machines_is_told() {
    let (logged, _collecting) = Logged::start();
    let server = Server::with(|config| {
        config.grpc.listen = ([0, 0, 0, 0], 0).into();
        config.grpc.insecure = true;
        config.admin.listen = ([0, 0, 0, 0], 0).into();
    })
    .await;
    assert_eq!(
        server.log().await.insecure,
        ["PLAINTEXT", "UNAUTHENTICATED", "ADMIN_PLAINTEXT"]
    );
    server.stop().await;
    let warnings = logged.with("open to other machines");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings.iter().all(|line| line.contains(" WARN ")));
    assert!(
        warnings[0].contains("PLAINTEXT, UNAUTHENTICATED"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("[admin.tls]"), "{warnings:?}");
}

#[tokio::test]
async fn the_log_names_who_lacks_which_scope_for_what() {
    let (logged, _collecting) = Logged::start();
    let reader = Who::new("reader", &[Scope::Read], &["*"], &[]);
    let world = World::start(&[&reader]).await;
    assert!(logged.with("WARN").is_empty(), "{:?}", logged.with("WARN"));
    let path = "/passline.v1.SubscriptionService/Subscribe";
    let wish = vec![bytes::Bytes::new()];
    for _ in 0..20 {
        let answer = world.call(path, &reader.bearer(), wish.clone()).await;
        assert_eq!(reason(&answer.status), Reason::PermissionDenied);
    }
    world.stop().await;
    let lines = logged.with("WARN");
    assert!((1..20).contains(&lines.len()), "{lines:?}");
    for part in [
        "principal=\"reader\"",
        "scope=\"consume\"",
        path,
        "refused=1",
    ] {
        assert!(lines[0].contains(part), "{part} in {lines:?}");
    }
}

#[tokio::test]
async fn names_of_certificates_that_nobody_verifies_are_told_of() {
    let (logged, _collecting) = Logged::start();
    let named = Who {
        token: String::new(),
        text: principal("named", "client_names = [\"a.test\"]", &SCOPES, &["*"], &[]),
    };
    World::start(&[&named]).await.stop().await;
    let lines = logged.with("client_names");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in [" WARN ", "named", "grpc.tls.client_ca_file"] {
        assert!(lines[0].contains(part), "{part} in {lines:?}");
    }
}

#[tokio::test]
async fn health_is_for_everyone_and_reflection_for_every_principal() {
    let ingester = Who::new("ingester", &[Scope::Ingest], &["*"], &[]);
    let world = World::start(&[&ingester]).await;
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let old = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
    let health = "/grpc.health.v1.Health/Check";
    for path in [reflection, old, "/passline.v1.PassService/NoSuchMethod"] {
        let answer = world.call(path, "", Vec::new()).await;
        assert_eq!(answer.status.code(), Code::Unauthenticated, "{path}");
    }
    for path in [reflection, old] {
        let answer = world.call(path, &ingester.bearer(), Vec::new()).await;
        assert_eq!(answer.status.code(), Code::Ok, "{path}");
    }
    let unknown = "/passline.v1.PassService/NoSuchMethod";
    let answer = world.call(unknown, &ingester.bearer(), Vec::new()).await;
    assert_eq!(answer.status.code(), Code::Unimplemented);
    let answer = world.call(health, "", vec![bytes::Bytes::new()]).await;
    assert_eq!((answer.status.code(), answer.messages.len()), (Code::Ok, 1));
    world.stop().await;

    let closed = World::with(&[&ingester], |config| {
        config.auth.health = pass_state::config::Openness::Authenticated;
        config.auth.reflection = pass_state::config::Openness::Open;
    })
    .await;
    let answer = closed.call(reflection, "", Vec::new()).await;
    assert_eq!(answer.status.code(), Code::Ok);
    let answer = closed.call(health, "", vec![bytes::Bytes::new()]).await;
    assert_eq!(answer.status.code(), Code::Unauthenticated);
    closed.stop().await;
}
