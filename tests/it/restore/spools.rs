//! Spools that were put back to an earlier copy give new deliveries numbers under which pass-state has others.

use std::collections::HashMap;

use system_tests::fleet::committed;

use super::*;

/// In every text that says so.
const PUT_BACK: &str = "was put back to an earlier moment, and callbacks are refused";

/// Waits until a gateway says that a person has to act.
async fn blocked(fleet: &Fleet) -> String {
    wait_for("a blocked gateway", LIMIT, async || {
        for gateway in &fleet.gateways {
            let status = status(gateway).await.map_err(|error| error.to_string())?;
            if let Value::String(text) = &status["forward"]["blocked"] {
                let (code, readiness) = gateway.service().admin("/readyz").await.unwrap();
                assert_eq!(code, 503, "{readiness}");
                let told: Value = serde_json::from_str(&readiness).unwrap();
                assert!(told.to_string().contains(PUT_BACK), "{told}");
                return Ok(text.clone());
            }
        }
        Err("none is".to_owned())
    })
    .await
    .unwrap()
}

/// Checks that a gateway answers no callback with 200, not even one, and says why.
async fn assert_takes_nothing(fleet: &Fleet, gateway: usize) {
    let mut caller = Caller::new(fleet.gateways[gateway].address());
    for number in 0..20 {
        let callback = standard("CREATED", &format!("refused-{gateway}-{number}"), 0, None);
        match caller.deliver(&callback, &fleet.log).await {
            Outcome::Indeterminate(answer) => assert!(answer.contains("503"), "{answer}"),
            other => panic!("{other:?}"),
        }
    }
    let status = status(&fleet.gateways[gateway]).await.unwrap();
    assert_eq!(status["forward"]["spool_restored"], true, "{status}");
    let restored: u64 = status["sources"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|source| source["requests"]["restored"].as_u64())
        .sum();
    assert!(restored >= 20, "{status}");
}

/// Checks that everything is recorded once, of which so many deliveries were committed under another sequence, too.
async fn assert_clean_with_repeated(fleet: &Fleet, repeated: u64) {
    fleet.drained(LIMIT).await.unwrap();
    let books = fleet.reader().info().await.unwrap().books.unwrap();
    let verdict = fleet.verdict(LIMIT).await.unwrap();
    let sequences = books.deliveries + i64::try_from(repeated).unwrap();
    let expected = format!(
        "spools say {sequences} committed sequences, the books {} deliveries",
        books.deliveries
    );
    assert_eq!(verdict.broken, [expected], "{verdict}");
    assert_eq!(
        (
            verdict.lost.len(),
            verdict.duplicated.len(),
            verdict.phantom.len()
        ),
        (0, 0, 0),
        "{verdict}"
    );
}

/// Sequence of the last record of the spool.
async fn last_durable(fleet: &Fleet) -> u64 {
    fleet.spools().await.unwrap()[0].last_durable
}

/// A pair whose gateway is stopped and has an older copy of its spool, of so many records; pass-state has everything.
async fn with_an_older_spool(seed: u64) -> (Fleet, Dice, u64) {
    let mut fleet = Fleet::started(&programs(), &Layout::pair()).await.unwrap();
    // The database stays whole, so cursors must stay good: the verdict looks.
    fleet.note_epoch().await.unwrap();
    let mut dice = Dice::new(seed);
    load(&fleet, &mut dice, "kept").await;
    assert_clean(&fleet).await;
    let copied = last_durable(&fleet).await;
    end(&mut fleet.gateways).await;
    let spool = spool_dir(&fleet.gateways[0]);
    let copy = fleet.dir().join("copy");
    copy_tree(&spool, &copy);
    start(&mut fleet.gateways).await;
    load(&fleet, &mut dice, "later").await;
    assert_clean(&fleet).await;
    fleet.gateways[0].take().kill().await.unwrap();
    put_back(&copy, &spool);
    (fleet, dice, copied)
}

/// Does what the gateway's text says, the import twice; tells how many records that took over.
async fn rescue(fleet: &mut Fleet, text: &str) -> u64 {
    for step in [
        "stop the gateway",
        "move the spool's directory aside",
        "`webhook-gateway spool import`",
        "start the gateway",
    ] {
        assert!(text.contains(step), "{text}");
    }
    end(&mut fleet.gateways).await;
    let spool = spool_dir(&fleet.gateways[0]);
    let aside = fleet.dir().join("aside");
    fs::rename(&spool, &aside).unwrap();
    let aside = aside.to_str().unwrap();
    let mut imported = 0;
    for _ in 0..2 {
        let told = fleet.gateways[0]
            .command(&["spool", "import", aside])
            .await
            .unwrap();
        let (count, _) = told
            .split_once(" deliveries imported into spool ")
            .unwrap_or_else(|| panic!("{told}"));
        imported += count.parse::<u64>().unwrap();
    }
    let own = spool.to_str().unwrap();
    let refused = fleet.gateways[0].command(&["spool", "import", own]).await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("64") && refused.contains("configured spool itself"),
        "{refused}"
    );
    start(&mut fleet.gateways).await;
    imported
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_spool_was_put_back_refuses_callbacks_and_loses_none_that_it_took_before_it_knew()
 {
    let (mut fleet, mut dice, copied) = with_an_older_spool(75).await;
    // Some of this is answered 200 before pass-state has said where it stands.
    let senders = fleet.senders(76, "more", 4);
    fleet.gateways[0].launch().await.unwrap();
    let text = blocked(&fleet).await;
    assert!(text.contains("of this spool, which ends at"), "{text}");
    assert_takes_nothing(&fleet, 0).await;

    let imported = rescue(&mut fleet, &text).await;
    some_traffic(&fleet, 100).await;
    assert!(senders.finish().await);
    load(&fleet, &mut dice, "again").await;
    // The second import, and of the first what was in the copy.
    assert_clean_with_repeated(&fleet, imported / 2 + copied).await;
    fleet.finish_with_errors(&[PUT_BACK]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_that_was_put_back_and_outgrew_pass_state_while_that_was_away_loses_nothing() {
    let (mut fleet, mut dice, copied) = with_an_older_spool(77).await;
    let info = fleet.reader().info().await.unwrap();
    end(&mut fleet.states).await;
    start(&mut fleet.gateways).await;
    load(&fleet, &mut dice, "more").await;
    load(&fleet, &mut dice, "evenmore").await;
    let spool = &fleet.spools().await.unwrap()[0];
    let recorded = committed(&info, spool).unwrap();
    assert!(spool.last_durable > recorded, "{spool:?} {recorded}");

    for state in &mut fleet.states {
        state.launch().await.unwrap();
    }
    let text = blocked(&fleet).await;
    let expected = format!("as sequence {recorded} of this spool, which has del_");
    assert!(text.contains(&expected), "{text}");
    assert_takes_nothing(&fleet, 0).await;

    let imported = rescue(&mut fleet, &text).await;
    load(&fleet, &mut dice, "again").await;
    assert_clean_with_repeated(&fleet, imported / 2 + copied).await;
    fleet.finish_with_errors(&[PUT_BACK]).await.unwrap();
}

/// As `nats stream edit PASSLINE --metadata=passline.spool_id=…` does.
async fn give_another_id(nats: &TestNats) {
    let client = async_nats::connect(nats.url()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let mut stream = context.get_stream("PASSLINE").await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    let id = "0123456789abcdef".repeat(2);
    config.metadata = HashMap::from([("passline.spool_id".to_owned(), id)]);
    context.update_stream(config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_copied_to_a_fresh_server_goes_on_and_an_older_copy_of_it_loses_nothing_as_another_spool()
 {
    let mut nats = TestNats::start(NatsSettings::default()).await.unwrap();
    let layout = Layout {
        gateways: 2,
        states: 1,
        spool: SpoolKind::on(&nats),
        ..Layout::default()
    };
    let mut fleet = Fleet::started(&programs(), &layout).await.unwrap();
    fleet.note_epoch().await.unwrap();
    let mut dice = Dice::new(78);
    load(&fleet, &mut dice, "kept").await;
    assert_clean(&fleet).await;
    let copied = last_durable(&fleet).await;
    end(&mut fleet.gateways).await;
    nats.stop().await.unwrap();
    let copy = fleet.dir().join("copy");
    copy_tree(&nats.store_dir(), &copy);

    let mut fresh = TestNats::start(NatsSettings::default()).await.unwrap();
    fresh.stop().await.unwrap();
    put_back(&copy, &fresh.store_dir());
    fresh.restart().await.unwrap();
    for gateway in &fleet.gateways {
        gateway.edit_config(&nats.url(), &fresh.url()).unwrap();
        gateway
            .edit_config(&nats.monitoring_url(), &fresh.monitoring_url())
            .unwrap();
    }
    start(&mut fleet.gateways).await;
    load(&fleet, &mut dice, "later").await;
    assert_clean(&fleet).await;

    // The same copy is too old by now, and outgrows pass-state while that is away.
    end(&mut fleet.gateways).await;
    end(&mut fleet.states).await;
    fresh.stop().await.unwrap();
    put_back(&copy, &fresh.store_dir());
    fresh.restart().await.unwrap();
    start(&mut fleet.gateways).await;
    load(&fleet, &mut dice, "more").await;
    load(&fleet, &mut dice, "evenmore").await;
    for state in &mut fleet.states {
        state.launch().await.unwrap();
    }
    let text = blocked(&fleet).await;
    assert!(
        text.contains("nats stream edit STREAM --metadata=passline.spool_id=")
            && text.contains("restart all gateways"),
        "{text}"
    );
    // The one that hears it first leaves the stream to the other one, which hears it as well.
    wait_for("both to know", LIMIT, async || {
        for gateway in &fleet.gateways {
            let status = status(gateway).await.map_err(|error| error.to_string())?;
            if status["forward"]["spool_restored"] != true {
                return Err(status["forward"].to_string());
            }
        }
        Ok(())
    })
    .await
    .unwrap();
    for gateway in 0..2 {
        assert_takes_nothing(&fleet, gateway).await;
    }

    end(&mut fleet.gateways).await;
    give_another_id(&fresh).await;
    start(&mut fleet.gateways).await;
    load(&fleet, &mut dice, "again").await;
    assert_clean_with_repeated(&fleet, copied).await;
    fleet.finish_with_errors(&[PUT_BACK]).await.unwrap();
}
