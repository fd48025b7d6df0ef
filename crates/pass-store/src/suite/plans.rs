//! What PostgreSQL's planner makes of each call: a large log without the time to append it, and the server's
//! own account of the plans that it ran.
//!
//! The plans are those of the calls themselves, with the statements, parameters and sessions of the store:
//! the server logs them (`auto_explain`), so nothing here repeats a query.

use std::collections::BTreeMap;

use pass_domain::delivery::{Decoded, Delivery};
use pass_domain::event::Position;
use pass_domain::ids::{PassKey, VendorId};
use pass_domain::kind::Kind;

use super::make::{Says, at, delivery, short, source};
use super::{Feed, hello};
use crate::contract::{AppendPart, EventParent, LookupKey, PassOrder, PassStore, Scope};

/// What the server must be started with.
pub const SETTINGS: [(&str, &str); 6] = [
    ("shared_preload_libraries", "auto_explain"),
    ("auto_explain.log_min_duration", "0"),
    ("auto_explain.log_analyze", "on"),
    ("auto_explain.log_buffers", "on"),
    ("log_min_messages", "log"),
    ("shared_buffers", "256MB"),
];

/// Rows of one page.
pub const PAGE: u32 = 100;

/// The tables of which nothing may be read whole.
const TABLES: [&str; 5] = [
    "event",
    "delivery",
    "delivery_personal",
    "pass",
    "quarantine",
];

/// The pass that a fifth of all events are about.
const BUSY: &str = "pass-1";

/// SQL that makes a log of so many events out of the one delivery that [`seed`] appended, in steps that are to
/// run one after the other. A fifth of the events are about one pass; each hundredth delivery was in quarantine,
/// each thousandth is. A third of the passes, and the one pass of source beta, share an external id. Then the
/// store's connections are cut, and it makes new ones.
#[must_use]
pub fn fill(events: u64, passes: u64) -> Vec<String> {
    const STEP: u64 = 500_000;
    let mut steps = vec![format!(
        "INSERT INTO pass SELECT n, CASE WHEN n = {passes} - 1 THEN 'beta' ELSE source END, 'pass-' || n, vendor,
             organization, convert_to('serial-' || n, 'UTF8'),
             convert_to(CASE WHEN n % 3 = 0 OR n = {passes} - 1 THEN 'shared' ELSE 'external-' || n % 1000 END, 'UTF8'),
             n + 1, last_digest, digest, body FROM pass, generate_series(2, {passes}) n WHERE number = 1;
         INSERT INTO quarantine SELECT n, CASE WHEN n % 1000 = 0 THEN 1 ELSE 2 END, 1, 'not JSON', 1, ''
             FROM generate_series(100, {events}, 100) n;
         UPDATE log_head SET position = {events}, last_delivery_number = {events}, last_pass_number = {passes},
             record_micros = record_micros + {events}, deliveries = {events}, applied = {events}, facts = {events},
             events = {events}, digest = 0"
    )];
    for first in (2..=events).step_by(usize::try_from(STEP).expect("small")) {
        let rows = format!(
            "generate_series({first}, {}) n",
            (first + STEP - 1).min(events)
        );
        steps.push(format!(
            "INSERT INTO delivery SELECT n, int8send(n) || substr(decode(md5(n::text), 'hex'), 9), source, record_micros + n,
                 CASE WHEN n % 1000 = 0 THEN 3 ELSE outcome END, body FROM delivery, {rows} WHERE number = 1;
             INSERT INTO delivery_personal SELECT n, personal, raw_body FROM delivery_personal, {rows} WHERE number = 1"
        ));
        steps.push(format!(
            "INSERT INTO event SELECT n, int8send(n) || substr(decode(md5((-n)::text), 'hex'), 9),
                 CASE WHEN n % 5 = 0 THEN 1 ELSE 2 + n % ({passes} - 1) END, n, record_micros + n, content_digest, body
                 FROM event, {rows} WHERE position = 1"
        ));
    }
    steps.extend(
        [
            "VACUUM ANALYZE",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        ]
        .map(str::to_owned),
    );
    steps
}

/// Appends the delivery that everything is a copy of.
pub async fn seed(store: &std::sync::Arc<dyn PassStore>) {
    let mut feed = Feed::open(store, 1).await;
    feed.append([about(1, 1, 1)]).await;
}

/// A delivery with one fact.
fn about(number: u64, pass: u64, seconds: i64) -> Delivery {
    let says = Says::Facts(vec![short(1, Kind::Updated, seconds)], None);
    let mut made = delivery("acme", number, &says);
    if let Decoded::Facts(facts) = &mut made.decoded {
        let fact = &mut facts.facts[0];
        fact.pass = VendorId::new(&format!("pass-{pass}")).expect("valid");
        fact.refs.serial_number = format!("serial-{pass}");
        fact.id = pass_domain::identity::event_id(
            &made.source,
            "UPDATED",
            &[
                pass_domain::identity::Part::Text(fact.pass.as_str()),
                pass_domain::identity::Part::Time(fact.occur_time),
            ],
            Some(fact.occur_time),
        );
    }
    made
}

/// One scan of a table in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Such as `Index Scan`.
    pub node: String,
    /// The table.
    pub table: String,
    /// The index, if any.
    pub index: String,
    /// Rows that it gave or threw away, over all its loops.
    pub examined: u64,
}

/// One plan that the server ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// As the server says it.
    pub text: String,
    /// How long it took, in milliseconds.
    pub millis: f64,
    /// Pages touched, in memory or not.
    pub buffers: u64,
    /// What it scanned of our tables.
    pub scans: Vec<Scan>,
}

impl Plan {
    /// True if a table is read whole.
    #[must_use]
    pub fn reads_a_table_whole(&self) -> bool {
        self.scans
            .iter()
            .any(|scan| scan.node.ends_with("Seq Scan") && TABLES.contains(&scan.table.as_str()))
    }

    /// Rows examined, in all scans.
    #[must_use]
    pub fn examined(&self) -> u64 {
        self.scans.iter().map(|scan| scan.examined).sum()
    }
}

/// A call and its plans.
#[derive(Clone, Debug)]
pub struct Called {
    /// The RPC or what it does.
    pub call: &'static str,
    /// In the order in which they ran.
    pub plans: Vec<Plan>,
}

impl Called {
    /// Tables and indexes in short, the most used first met.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for scan in self.plans.iter().flat_map(|plan| &plan.scans) {
            let through = match scan.index.as_str() {
                "" => String::new(),
                index => format!(" by {index}"),
            };
            *counts
                .entry(format!("{} {}{through}", scan.node, scan.table))
                .or_default() += 1;
        }
        let parts: Vec<String> = counts
            .into_iter()
            .map(|(scan, times)| match times {
                1 => scan,
                _ => format!("{times} × {scan}"),
            })
            .collect();
        parts.join("; ")
    }
}

/// Reads plans from a part of the server's log.
#[must_use]
pub fn plans(log: &str) -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((before, "plan:")) = line.rsplit_once("  ") else {
            continue;
        };
        let mut text = String::new();
        while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
            text.push_str(&line[1..]);
            text.push('\n');
        }
        let millis = before
            .rsplit_once("duration: ")
            .and_then(|(_, rest)| rest.trim_end_matches(" ms").parse().ok());
        plans.push(Plan {
            millis: millis.unwrap_or(f64::NAN),
            buffers: buffers(&text),
            scans: scans(&text),
            text,
        });
    }
    plans
}

/// The number after a word, such as `rows=`.
fn after(text: &str, word: &str) -> Option<u64> {
    let (_, rest) = text.split_once(word)?;
    let end = rest
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Pages of the topmost node, which includes those below.
fn buffers(text: &str) -> u64 {
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with("Buffers: shared"))
        .unwrap_or_default();
    after(line, "hit=").unwrap_or(0) + after(line, "read=").unwrap_or(0)
}

fn scans(text: &str) -> Vec<Scan> {
    let mut scans: Vec<Scan> = Vec::new();
    let mut loops = 0;
    for line in text.lines() {
        let line = line.trim_start().trim_start_matches("->  ");
        if let Some((what, costs)) = line.split_once("  (cost=") {
            loops = 0;
            let Some((node, rest)) = what.split_once(" Scan") else {
                continue;
            };
            let Some((_, actual)) = costs.split_once("(actual ") else {
                continue;
            };
            let on = rest.split_once(" on ").map_or("", |(_, on)| on);
            let table = on.split(' ').next().unwrap_or_default().to_owned();
            let using = rest.split_once(" using ").map_or("", |(_, using)| using);
            let index = using.split(' ').next().unwrap_or_default().to_owned();
            loops = after(actual, "loops=").unwrap_or(0);
            let examined = after(actual, "rows=").unwrap_or(0) * loops;
            if matches!(node, "Function" | "Subquery" | "CTE" | "Values") {
                loops = 0;
                continue;
            }
            let node = format!("{node} Scan");
            scans.push(Scan {
                node,
                table,
                index,
                examined,
            });
        } else if line.starts_with("Rows Removed by")
            && let Some(scan) = scans.last_mut()
        {
            scan.examined += after(line, ": ").unwrap_or(0) * loops;
        }
    }
    scans
}

/// Makes every call once on a log that [`fill`] made, and gives the plans of each. `log` gives what the server
/// has logged so far.
pub async fn calls(
    store: &dyn PassStore,
    events: u64,
    passes: u64,
    log: impl Fn() -> String,
) -> Vec<Called> {
    let everything = Scope::everything();
    let key = |pass: u64| PassKey {
        source: source("acme"),
        pass: VendorId::new(&format!("pass-{pass}")).expect("valid"),
    };
    let busy = EventParent::Pass(PassKey {
        source: source("acme"),
        pass: VendorId::new(BUSY).expect("valid"),
    });
    let rare = EventParent::Pass(key(passes / 2));
    let mut called = Vec::new();
    // Where the server's log ended when the call began.
    let mut length = log().len();
    macro_rules! call {
        ($name:literal, $call:expr) => {
            let _ = $call.await.expect($name);
            let text = log();
            called.push(Called {
                call: $name,
                plans: plans(&text[length..]),
            });
            length = text.len();
        };
    }
    // Connections are made, which is not part of any call.
    store.head().await.expect("read");
    store.spool_open(&hello(2)).await.expect("opened");
    length = length.max(log().len());
    let middle = events / 2;
    let serial = LookupKey::SerialNumber(format!("serial-{}", passes / 3));
    let external = LookupKey::ExternalId("external-7".to_owned());
    let shared = LookupKey::ExternalId("shared".to_owned());
    let acme = source("acme");
    let found = store
        .events_after(&everything, Position(middle), 1)
        .await
        .expect("read");
    let event = found.rows[0].fact.id;
    let newest = store
        .deliveries_list(&everything, false, 0, 1)
        .await
        .expect("read");
    let newest = newest.rows[0].delivery.id;
    length = length.max(log().len());
    call!("head (polling, min_cursor)", store.head());
    call!("GetLogInfo", store.log_info());
    call!(
        "cursor check of Subscribe",
        store.digest_at(Position(middle))
    );
    call!(
        "Subscribe from a time",
        store.position_before_time(at(1_000_000))
    );
    call!(
        "Subscribe, a batch",
        store.events_after(&everything, Position(middle), PAGE)
    );
    call!("GetEvent", store.event_find(&everything, event));
    call!(
        "ListEvents of a busy pass, early",
        store.events_list(&everything, &busy, false, 10, PAGE)
    );
    call!(
        "ListEvents of a busy pass, late",
        store.events_list(&everything, &busy, false, events - events / 50, PAGE)
    );
    call!(
        "ListEvents of a busy pass, newest first",
        store.events_list(&everything, &busy, true, 0, PAGE)
    );
    call!(
        "ListEvents of a rare pass",
        store.events_list(&everything, &rare, false, 0, PAGE)
    );
    call!(
        "ListEvents of a rare pass, newest first",
        store.events_list(&everything, &rare, true, middle, PAGE)
    );
    call!(
        "ListEvents of all, newest first",
        store.events_list(&everything, &EventParent::All, true, middle, PAGE)
    );
    call!("GetPass", store.passes_find(&everything, &[key(7)]));
    let keys: Vec<PassKey> = (0..u64::from(PAGE))
        .map(|at| key(at * passes / u64::from(PAGE) + 2))
        .collect();
    call!("BatchGetPasses, 100", store.passes_find(&everything, &keys));
    call!(
        "ListPasses, first seen first",
        store.passes_list(&everything, None, PassOrder::FirstSeen, passes / 2, PAGE)
    );
    call!(
        "ListPasses, newest event first",
        store.passes_list(
            &everything,
            Some(&acme),
            PassOrder::LastEventDescending,
            passes / 2,
            PAGE
        )
    );
    call!(
        "LookupPasses by serial number",
        store.passes_lookup(&everything, None, &serial, PAGE)
    );
    call!(
        "LookupPasses by external id, one source",
        store.passes_lookup(&everything, Some(&acme), &external, 10)
    );
    call!(
        "LookupPasses by external id that many share, one source",
        store.passes_lookup(&everything, Some(&source("beta")), &shared, PAGE)
    );
    call!(
        "LookupPasses by external id that many share",
        store.passes_lookup(&everything, None, &shared, PAGE)
    );
    // The organization of all passes, and one that has none of those that share the id.
    let ours = Scope::limited([], ["acme".to_owned()]);
    let theirs = Scope::limited([source("beta")], ["nobody".to_owned()]);
    call!(
        "LookupPasses by serial number, one organization",
        store.passes_lookup(&ours, None, &serial, PAGE)
    );
    call!(
        "LookupPasses by external id that many share, one organization",
        store.passes_lookup(&ours, None, &shared, PAGE)
    );
    call!(
        "LookupPasses by external id that many of others share",
        store.passes_lookup(&theirs, None, &shared, PAGE)
    );
    call!(
        "LookupPasses by external id that many of others share, one source",
        store.passes_lookup(&theirs, Some(&acme), &shared, PAGE)
    );
    call!(
        "ListEvents of a pass of others",
        store.events_list(&theirs, &busy, false, 0, PAGE)
    );
    call!(
        "GetDelivery",
        store.delivery_find(&everything, newest, true)
    );
    call!(
        "ListDeliveries",
        store.deliveries_list(&everything, false, middle, PAGE)
    );
    call!(
        "ListDeliveries, open quarantine",
        store.deliveries_list(&everything, true, middle, PAGE)
    );
    let opened = store.spool_open(&hello(2)).await.expect("opened");
    length = length.max(log().len());
    let part = AppendPart {
        spool: hello(2).spool,
        generation: opened.generation,
        deliveries: (opened.committed_sequence + 1..)
            .take(PAGE as usize)
            .map(|number| {
                let pass = passes + number;
                let seconds = i64::try_from(number).expect("small");
                (
                    number,
                    std::sync::Arc::new(about(events + number, pass, seconds)),
                )
            })
            .collect(),
    };
    call!(
        "Ingest, 100 deliveries",
        store.append(&[part], at(2_000_000))
    );
    let _ = length;
    called
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_from_the_log() {
        let log = "2026-11-22 04:00:00.000 UTC [7] passline LOG:  duration: 1.250 ms  plan:\n\
            \tQuery Text: SELECT 1\n\
            \tLimit  (cost=0.42..9.00 rows=10 width=9) (actual time=0.010..0.020 rows=10 loops=1)\n\
            \t  Buffers: shared hit=4 read=3\n\
            \t  ->  Nested Loop Left Join  (cost=0.42..9.00 rows=10 width=9) (actual time=0.01..0.02 rows=10 loops=1)\n\
            \t        ->  Index Scan Backward using event_pkey on event e  (cost=0.42..9.00 rows=10 width=9) (actual time=0.01..0.02 rows=10 loops=1)\n\
            \t              Rows Removed by Filter: 5\n\
            \t              Buffers: shared hit=2\n\
            \t        ->  Seq Scan on pass p  (cost=0.42..9.00 rows=10 width=9) (actual time=0.01..0.02 rows=2 loops=10)\n\
            2026-11-22 04:00:00.000 UTC [7] passline LOG:  other\n";
        let found = plans(log);
        assert_eq!(found.len(), 1);
        let plan = &found[0];
        assert_eq!((plan.millis, plan.buffers, plan.examined()), (1.25, 7, 35));
        assert_eq!(
            (plan.scans[0].index.as_str(), plan.scans[0].table.as_str()),
            ("event_pkey", "event")
        );
        assert!(plan.reads_a_table_whole());
    }
}
