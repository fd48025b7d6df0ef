//! Callbacks as vendors would send them, made up from a seed.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::dice::Dice;
use crate::sources::key_header;

/// 2026-01-01T00:00:00Z, from where made-up events count.
pub const BASE_SECOND: i64 = 1_767_225_600;

/// One callback, ready to be sent as often as one likes.
#[derive(Clone, Debug)]
pub struct Callback {
    /// The source's name, which is also its uid.
    pub source: &'static str,
    /// The HTTP method.
    pub method: Method,
    /// The request's headers, credentials included.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl Callback {
    /// A JSON callback with the source's API key.
    pub fn json(source: &'static str, body: &Value) -> Arc<Self> {
        Self::raw(source, Bytes::from(body.to_string()))
    }

    /// A callback of any bytes with the source's API key, declared as JSON.
    pub fn raw(source: &'static str, body: Bytes) -> Arc<Self> {
        Arc::new(Self {
            source,
            method: Method::POST,
            headers: vec![
                ("content-type".to_owned(), "application/json".to_owned()),
                key_header(source),
            ],
            body,
        })
    }

    /// The path it is sent to.
    pub fn path(&self) -> String {
        format!("/webhooks/{}", self.source)
    }
}

/// RFC 3339 of a second after [`BASE_SECOND`].
pub fn time_text(offset_seconds: i64) -> String {
    jiff::Timestamp::from_second(BASE_SECOND + offset_seconds)
        .expect("a small offset from 2026")
        .to_string()
}

/// What a Passworks callback says besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Passworks<'a> {
    /// The event's name.
    pub event: &'a str,
    /// The pass.
    pub pass: &'a str,
    /// Seconds after [`BASE_SECOND`].
    pub at: i64,
    /// The registration, on events that have one.
    pub registration: Option<&'a str>,
    /// The running count of redemptions.
    pub redeemed_count: i64,
    /// Whether the pass is void.
    pub voided: bool,
}

/// A Passworks callback of the revision with `event_at`.
pub fn passworks(say: &Passworks<'_>) -> Arc<Callback> {
    let mut extra = json!({ "pass_id": say.pass });
    if let Some(registration) = say.registration {
        extra["registration_id"] = registration.into();
        extra["device_os"] = "ios".into();
        extra["device_app_vendor"] = "passbook".into();
        extra["wallet_type"] = "apple_wallet".into();
        extra["ip"] = "192.0.2.7".into();
    }
    let redeemed_at = (say.event == "redeemed").then(|| time_text(say.at));
    Callback::json(
        "passworks",
        &json!({
            "event": say.event,
            "context": "pass",
            "campaign_id": "cbc3016c-4c55-4564-81e9-a21664817be2",
            "distribution_id": "723ed9c3-5909-4a12-9810-c58047d9feef",
            "pass_id": say.pass,
            "voided": say.voided,
            "serial_number": format!("serial-{}", say.pass),
            "redeemed_count": say.redeemed_count,
            "redeemed_at": redeemed_at,
            "created_at": time_text(0),
            "updated_at": time_text(say.at),
            "last_fetched_at": null,
            "event_at": time_text(say.at),
            "metadata": {},
            "event_extra": extra,
        }),
    )
}

/// What a PassKit callback says besides the defaults. Times are seconds after [`BASE_SECOND`].
#[derive(Clone, Debug, Default)]
pub struct Passkit<'a> {
    /// The event's name.
    pub event: &'a str,
    /// The pass.
    pub pass: &'a str,
    /// PassKit's status number.
    pub status: i64,
    /// When it was issued.
    pub issued: Option<i64>,
    /// First and last installation.
    pub installed: Option<(i64, i64)>,
    /// First and last removal.
    pub uninstalled: Option<(i64, i64)>,
    /// When it was last changed.
    pub updated: Option<i64>,
    /// Points of the member, so that contents differ.
    pub points: i64,
}

/// A PassKit callback.
pub fn passkit(say: &Passkit<'_>) -> Arc<Callback> {
    let stamp = |at: i64| json!({ "seconds": BASE_SECOND + at, "nanos": 43_410_000 });
    let mut metadata = json!({
        "status": say.status,
        "lifecycleEvents": [1, 2],
        "utm": {},
        "altId": say.pass,
        "issueIpAddress": "203.0.113.7",
    });
    let mut put = |key: &str, at: Option<i64>| {
        if let Some(at) = at {
            metadata[key] = stamp(at);
        }
    };
    put("issueAt", say.issued);
    put("firstInstalledAt", say.installed.map(|times| times.0));
    put("lastInstalledAt", say.installed.map(|times| times.1));
    put("firstUninstalledAt", say.uninstalled.map(|times| times.0));
    put("lastUninstalledAt", say.uninstalled.map(|times| times.1));
    put("lastUpdatedAt", say.updated);
    Callback::json(
        "passkit",
        &json!({
            "event": say.event,
            "pass": {
                "id": say.pass,
                "classId": "24hmYozRggBJTtPt0Y2e3X",
                "protocol": 100,
                "personDetails": { "displayName": "Sample Holder", "emailAddress": "holder@example.com" },
                "metadata": metadata,
                "recordData": {
                    "members.member.externalId": format!("member-{}", say.pass),
                    "members.member.points": say.points.to_string(),
                },
            },
        }),
    )
}

/// A callback in our own JSON format.
pub fn standard(kind: &str, pass: &str, at: i64, installation: Option<&str>) -> Arc<Callback> {
    let mut body = json!({ "kind": kind, "pass": pass, "occur_time": time_text(at) });
    if let Some(id) = installation {
        body["installation"] = json!({ "id": id, "scope": "DEVICE" });
    }
    Callback::json("standard", &body)
}

/// The callbacks of one made-up pass's life, in the order in which they happen: of a random vendor, with
/// repetitions left to the sender.
pub fn life(dice: &mut Dice, tag: &str) -> Vec<Arc<Callback>> {
    match dice.below(3) {
        0 => passworks_life(dice, tag),
        1 => passkit_life(dice, tag),
        _ => standard_life(dice, tag),
    }
}

/// A life by Passworks: created, then random steps of at most ten.
pub fn passworks_life(dice: &mut Dice, tag: &str) -> Vec<Arc<Callback>> {
    let pass = format!("pw-{tag}");
    let registrations = [format!("reg-a-{tag}"), format!("reg-b-{tag}")];
    let mut say = Passworks {
        event: "created",
        pass: &pass,
        ..Passworks::default()
    };
    let mut callbacks = vec![passworks(&say)];
    for _ in 0..1 + dice.below(9) {
        // Now and then two events share a second, as Passworks' clock has no finer step.
        say.at += i64::try_from(dice.below(3)).expect("below 3") * 60;
        let registration = Some(registrations[dice.index(2)].as_str());
        say.registration = None;
        say.event = match dice.below(6) {
            0 => "downloaded",
            1 => "fetched",
            2 => {
                say.redeemed_count += 1;
                "redeemed"
            }
            3 => {
                say.registration = registration;
                "uninstalled"
            }
            _ => {
                say.registration = registration;
                "installed"
            }
        };
        say.voided = dice.once_in(12);
        callbacks.push(passworks(&say));
    }
    callbacks
}

/// A life by PassKit: every callback shows all transition times so far.
pub fn passkit_life(dice: &mut Dice, tag: &str) -> Vec<Arc<Callback>> {
    let pass = format!("pk{tag}");
    let mut say = Passkit {
        event: "PASS_EVENT_RECORD_CREATED",
        pass: &pass,
        issued: Some(0),
        ..Passkit::default()
    };
    let mut callbacks = vec![passkit(&say)];
    let mut at = 0;
    for _ in 0..1 + dice.below(6) {
        at += 1 + i64::try_from(dice.below(400)).expect("below 400");
        match dice.below(3) {
            0 => {
                say.event = "PASS_EVENT_INSTALLED";
                say.status = 1;
                say.installed = Some((say.installed.map_or(at, |times| times.0), at));
            }
            1 if say.installed.is_some() => {
                say.event = "PASS_EVENT_UNINSTALLED";
                say.status = 2;
                say.uninstalled = Some((say.uninstalled.map_or(at, |times| times.0), at));
            }
            _ => {
                say.event = "PASS_EVENT_RECORD_UPDATED";
                say.updated = Some(at);
                say.points += 10;
            }
        }
        callbacks.push(passkit(&say));
    }
    callbacks
}

/// A life in our own format.
pub fn standard_life(dice: &mut Dice, tag: &str) -> Vec<Arc<Callback>> {
    let pass = format!("st-{tag}");
    let mut at = 0;
    let mut callbacks = vec![standard("CREATED", &pass, 0, None)];
    for _ in 0..1 + dice.below(6) {
        at += i64::try_from(dice.below(100)).expect("below 100");
        let device = format!("dev-{}-{tag}", dice.below(2));
        callbacks.push(match dice.below(8) {
            0 => standard("VOIDED", &pass, at, None),
            1 => standard("REINSTATED", &pass, at, None),
            2 => standard("UNINSTALLED", &pass, at, None),
            3 => standard("FETCHED", &pass, at, None),
            4 | 5 => standard("UNINSTALLED", &pass, at, Some(&device)),
            _ => standard("INSTALLED", &pass, at, Some(&device)),
        });
    }
    callbacks
}

/// An authentic callback that no adapter understands; `tag` keeps bodies apart.
pub fn undecodable(dice: &mut Dice, tag: &str) -> Arc<Callback> {
    match dice.below(3) {
        0 => Callback::raw("passworks", Bytes::from(format!("not json {tag}"))),
        1 => Callback::json(
            "passkit",
            &json!({ "event": "PASS_EVENT_FROM_THE_FUTURE", "pass": { "id": tag } }),
        ),
        _ => Callback::json("standard", &json!({ "kind": "TELEPORTED", "pass": tag })),
    }
}

/// Traffic of `passes` made-up lives, each kept in order, mixed with each other; one callback in ten comes
/// twice, one in thirty cannot be decoded.
pub fn traffic(dice: &mut Dice, tag: &str, passes: usize) -> Vec<Arc<Callback>> {
    let mut lives: Vec<_> = (0..passes)
        .map(|index| life(dice, &format!("{tag}-{index}")).into_iter())
        .collect();
    let mut all = Vec::new();
    while !lives.is_empty() {
        let at = dice.index(lives.len());
        let Some(callback) = lives[at].next() else {
            drop(lives.swap_remove(at));
            continue;
        };
        if dice.once_in(10) {
            all.push(Arc::clone(&callback));
        }
        all.push(callback);
        if dice.once_in(30) {
            let tag = format!("odd-{tag}-{}", all.len());
            all.push(undecodable(dice, &tag));
        }
    }
    all
}
