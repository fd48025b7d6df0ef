//! What the demo sends, and what is to come of it.

use pass_proto::v1::EventKind::{
    self, Created, Downloaded, Fetched, Installed, Redeemed, Uninstalled, Updated,
};
use pass_proto::v1::{LogBooks, PassEvent};

use crate::post::Answer;
use crate::render::{self, words};

/// One delivery of the demo.
#[derive(Debug)]
pub(super) struct Step {
    /// The sample source's name.
    pub(super) source: &'static str,
    /// The sample of the source's vendor.
    pub(super) sample: &'static str,
    /// What is remarkable about it, for people.
    pub(super) note: &'static str,
    /// The kinds of the new events that it tells, in any order.
    pub(super) kinds: &'static [EventKind],
    /// Whether these sort before events recorded earlier.
    pub(super) late: bool,
}

/// A delivery and its answer.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) step: &'static Step,
    pub(super) answer: Answer,
}

const fn step(source: &'static str, sample: &'static str, kinds: &'static [EventKind]) -> Step {
    Step {
        source,
        sample,
        note: "",
        kinds,
        late: false,
    }
}

const fn again(source: &'static str, sample: &'static str, note: &'static str) -> Step {
    Step {
        source,
        sample,
        note,
        kinds: &[],
        late: false,
    }
}

const fn late(source: &'static str, sample: &'static str, kinds: &'static [EventKind]) -> Step {
    Step {
        source,
        sample,
        note: "out of order",
        kinds,
        late: true,
    }
}

/// Everything that is sent, in this order.
pub(super) static STEPS: &[Step] = &[
    step("passworks", "installed_rev2016-01", &[Installed]),
    step("passworks", "created", &[Created]),
    step("passworks", "installed_rev2016-08", &[Installed]),
    late("passworks", "downloaded", &[Downloaded]),
    step("passworks", "fetched", &[Fetched]),
    again("passworks", "installed_rev2016-08", "sent again"),
    step("passworks", "uninstalled", &[Uninstalled]),
    late("passworks", "redeemed", &[Redeemed]),
    step("passkit", "record_created", &[Created]),
    // PassKit's callbacks show the times of all transitions so far.
    Step {
        note: "tells of the install whose callback is missing",
        ..step("passkit", "record_updated", &[Installed, Updated])
    },
    again(
        "passkit",
        "installed",
        "the missing one; nothing new any more",
    ),
    step("passkit", "uninstalled", &[Uninstalled]),
    again(
        "passkit",
        "uninstalled",
        "a second subscription tells the same",
    ),
    step("envelope", "pass_uninstalled", &[Uninstalled]),
    late("envelope", "pass_installed", &[Installed]),
    again("envelope", "pass_installed", "sent again"),
    step("standard", "installed", &[Installed]),
    step("standard", "batch", &[Redeemed, Uninstalled]),
    again("standard", "installed", "a retry with the same webhook-id"),
];

/// The events that a delivery was the first to tell.
pub(super) fn of_delivery<'a>(
    events: &'a [PassEvent],
    answer: &Answer,
) -> impl Iterator<Item = &'a PassEvent> {
    let name = format!("deliveries/{}", answer.text("delivery"));
    events.iter().filter(move |event| event.delivery == name)
}

/// Everything that is not as expected.
pub(super) fn faults(sent: &[Sent], events: &[PassEvent], books: &LogBooks) -> Vec<String> {
    let mut faults = Vec::new();
    for Sent { step, answer } in sent {
        let name = format!("{} {}", step.source, step.sample);
        if !answer.is_accepted() {
            faults.push(format!("{name} was answered {}", answer.status));
            continue;
        }
        let mut expected: Vec<String> = step
            .kinds
            .iter()
            .map(|kind| words::kind(*kind as i32))
            .collect();
        let mut told: Vec<String> = of_delivery(events, answer)
            .map(|event| words::kind(event.kind))
            .collect();
        expected.sort_unstable();
        told.sort_unstable();
        if told != expected {
            faults.push(format!(
                "{name} told [{}] instead of [{}]",
                told.join(", "),
                expected.join(", ")
            ));
        }
        let is_late = |event: &PassEvent| event.effect.as_ref().is_some_and(|effect| effect.late);
        if step.late && !of_delivery(events, answer).all(is_late) {
            faults.push(format!("{name} was not seen to be out of order"));
        }
    }
    let expected: usize = sent.iter().map(|sent| sent.step.kinds.len()).sum();
    if events.len() != expected {
        faults.push(format!(
            "{} events were recorded instead of {expected}",
            events.len()
        ));
    }
    let positions: Vec<Option<u64>> = events
        .iter()
        .map(|event| words::position(&event.cursor))
        .collect();
    let gapless: Vec<Option<u64>> = (1..=events.len() as u64).map(Some).collect();
    if positions != gapless {
        faults.push("the subscription did not show every position once and in order".to_owned());
    }
    if usize::try_from(books.deliveries).is_ok_and(|deliveries| deliveries != sent.len()) {
        faults.push(format!(
            "{} deliveries are in the books instead of {}",
            books.deliveries,
            sent.len()
        ));
    }
    faults.extend(render::imbalance(books));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use pass_domain::cursor::Cursor;
    use pass_domain::event::Position;
    use pass_proto::v1::EventEffect;
    use pass_sources::samples;

    fn played() -> (Vec<Sent>, Vec<PassEvent>, LogBooks) {
        let mut sent = Vec::new();
        let mut events = Vec::new();
        for (number, step) in STEPS.iter().enumerate() {
            let body =
                serde_json::json!({ "delivery": format!("del_{number}"), "status": "stored" });
            sent.push(Sent {
                step,
                answer: Answer {
                    status: http::StatusCode::OK,
                    body,
                },
            });
            for kind in step.kinds {
                let position = Position(events.len() as u64 + 1);
                events.push(PassEvent {
                    kind: *kind as i32,
                    delivery: format!("deliveries/del_{number}"),
                    cursor: Cursor {
                        epoch: 1,
                        position,
                        digest: 1,
                    }
                    .to_string(),
                    effect: Some(EventEffect {
                        late: step.late,
                        ..EventEffect::default()
                    }),
                    ..PassEvent::default()
                });
            }
        }
        let known = STEPS.iter().filter(|step| step.kinds.is_empty()).count() as i64;
        let books = LogBooks {
            deliveries: STEPS.len() as i64,
            applied: STEPS.len() as i64 - known,
            duplicate: known,
            facts: events.len() as i64 + known,
            events: events.len() as i64,
            duplicate_facts: known,
            ..LogBooks::default()
        };
        (sent, events, books)
    }

    #[test]
    fn a_show_as_expected_has_no_faults() {
        let (sent, events, books) = played();
        assert_eq!(faults(&sent, &events, &books), Vec::<String>::new());
    }

    #[test]
    fn every_departure_is_named() {
        type Spoil = fn(&mut Vec<Sent>, &mut Vec<PassEvent>, &mut LogBooks);
        let cases: [(&str, Spoil); 7] = [
            ("was answered 503", |sent, _, _| {
                sent[0].answer.status = http::StatusCode::SERVICE_UNAVAILABLE
            }),
            ("told [VOIDED] instead of [INSTALLED]", |_, events, _| {
                events[0].kind = EventKind::Voided as i32
            }),
            ("told [] instead of [CREATED]", |_, events, _| {
                drop(events.remove(1))
            }),
            ("not seen to be out of order", |_, events, _| {
                events[3].effect = None
            }),
            ("every position once and in order", |_, events, _| {
                events.swap(0, 1)
            }),
            ("deliveries are in the books instead of", |_, _, books| {
                books.deliveries += 1
            }),
            ("the books do not balance", |_, _, books| books.facts += 1),
        ];
        for (fault, spoil) in cases {
            let (mut sent, mut events, mut books) = played();
            spoil(&mut sent, &mut events, &mut books);
            let found = faults(&sent, &events, &books);
            assert!(
                found.iter().any(|text| text.contains(fault)),
                "{fault}: {found:?}"
            );
        }
    }

    #[test]
    fn every_step_has_its_sample_and_every_passworks_event_is_shown() {
        let vendor = |source: &str| {
            if source == "envelope" {
                "signed_envelope"
            } else {
                source
            }
            .to_owned()
        };
        for step in STEPS {
            assert!(
                samples::find(&vendor(step.source), step.sample).is_some(),
                "{step:?}"
            );
        }
        for sample in samples::of_vendor("passworks") {
            let is_sent = |step: &Step| step.source == "passworks" && step.sample == sample.name;
            assert!(STEPS.iter().any(is_sent), "{}", sample.name);
        }
    }
}
