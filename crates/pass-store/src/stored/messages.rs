//! The messages. Tags are never reused.

use std::collections::BTreeMap;

/// An instant.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Time {
    #[prost(sint64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Refs {
    #[prost(string, tag = "1")]
    pub(super) campaign: String,
    #[prost(string, tag = "2")]
    pub(super) distribution: String,
    #[prost(string, tag = "3")]
    pub(super) class: String,
    #[prost(string, tag = "4")]
    pub(super) serial_number: String,
    #[prost(string, tag = "5")]
    pub(super) external_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Wallet {
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
    #[prost(string, tag = "2")]
    pub(super) native: String,
    #[prost(string, tag = "3")]
    pub(super) device_os: String,
    #[prost(string, tag = "4")]
    pub(super) device_app: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Redemption {
    #[prost(sint64, optional, tag = "1")]
    pub(super) count: Option<i64>,
    #[prost(message, optional, tag = "2")]
    pub(super) time: Option<Time>,
    #[prost(string, tag = "3")]
    pub(super) scanner: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Auth {
    #[prost(int32, tag = "1")]
    pub(super) scheme: i32,
    #[prost(string, tag = "2")]
    pub(super) key_id: String,
    #[prost(string, tag = "3")]
    pub(super) detail: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Trace {
    #[prost(string, tag = "1")]
    pub(super) traceparent: String,
    #[prost(string, tag = "2")]
    pub(super) tracestate: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct InstallationRef {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(int32, tag = "2")]
    pub(super) scope: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Effect {
    #[prost(int32, tag = "1")]
    pub(super) state_before: i32,
    #[prost(int32, tag = "2")]
    pub(super) state_after: i32,
    #[prost(string, repeated, tag = "3")]
    pub(super) opened: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(super) closed: Vec<String>,
    #[prost(bool, tag = "5")]
    pub(super) late: bool,
    #[prost(bool, tag = "6")]
    pub(super) changed: bool,
}

/// An event, without its columns.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Event {
    #[prost(string, tag = "1")]
    pub(super) source: String,
    #[prost(string, tag = "2")]
    pub(super) vendor: String,
    #[prost(string, tag = "3")]
    pub(super) organization: String,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) delivery_id: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    pub(super) receive_time: Option<Time>,
    #[prost(message, optional, tag = "6")]
    pub(super) auth: Option<Auth>,
    #[prost(string, tag = "7")]
    pub(super) adapter_version: String,
    #[prost(message, optional, tag = "8")]
    pub(super) trace: Option<Trace>,
    #[prost(string, repeated, tag = "9")]
    pub(super) notes: Vec<String>,
    #[prost(bool, tag = "10")]
    pub(super) time_suspect: bool,
    #[prost(message, optional, tag = "11")]
    pub(super) effect: Option<Effect>,
    #[prost(uint32, tag = "12")]
    pub(super) identity_version: u32,
    #[prost(int32, tag = "13")]
    pub(super) identity_basis: i32,
    #[prost(string, tag = "14")]
    pub(super) pass: String,
    #[prost(int32, tag = "15")]
    pub(super) kind: i32,
    #[prost(string, tag = "16")]
    pub(super) vendor_kind: String,
    #[prost(int32, tag = "17")]
    pub(super) assertion: i32,
    #[prost(message, optional, tag = "18")]
    pub(super) occur_time: Option<Time>,
    #[prost(int32, tag = "19")]
    pub(super) time_basis: i32,
    #[prost(message, optional, tag = "20")]
    pub(super) installation: Option<InstallationRef>,
    #[prost(message, optional, tag = "21")]
    pub(super) wallet: Option<Wallet>,
    #[prost(message, optional, tag = "22")]
    pub(super) refs: Option<Refs>,
    #[prost(message, optional, tag = "23")]
    pub(super) redemption: Option<Redemption>,
    #[prost(btree_map = "string, string", tag = "24")]
    pub(super) attributes: BTreeMap<String, String>,
    #[prost(fixed64, tag = "25")]
    pub(super) content_digest: u64,
}

/// Personal data of a delivery.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Personal {
    #[prost(string, tag = "1")]
    pub(super) display_name: String,
    #[prost(string, tag = "2")]
    pub(super) email_address: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(super) ip_addresses: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(super) user_agents: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(super) position: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(super) attributes: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Header {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

/// A fact of a delivery. `pass` is empty if it is that of the fact before.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FactOf {
    #[prost(string, tag = "1")]
    pub(super) pass: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) event_id: Vec<u8>,
}

/// A delivery, without its columns.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Delivery {
    #[prost(string, tag = "1")]
    pub(super) vendor: String,
    #[prost(string, tag = "2")]
    pub(super) organization: String,
    #[prost(message, optional, tag = "3")]
    pub(super) receive_time: Option<Time>,
    #[prost(int32, tag = "4")]
    pub(super) method: i32,
    #[prost(string, tag = "5")]
    pub(super) path: String,
    #[prost(message, repeated, tag = "6")]
    pub(super) headers: Vec<Header>,
    #[prost(message, optional, tag = "7")]
    pub(super) auth: Option<Auth>,
    #[prost(string, tag = "8")]
    pub(super) adapter_version: String,
    #[prost(message, optional, tag = "9")]
    pub(super) trace: Option<Trace>,
    #[prost(string, repeated, tag = "10")]
    pub(super) notes: Vec<String>,
    #[prost(string, optional, tag = "11")]
    pub(super) control_kind: Option<String>,
    #[prost(message, repeated, tag = "12")]
    pub(super) facts: Vec<FactOf>,
    #[prost(uint32, tag = "13")]
    pub(super) duplicate_facts: u32,
    #[prost(uint32, tag = "14")]
    pub(super) differing_duplicates: u32,
    #[prost(uint32, tag = "15")]
    pub(super) refused_facts: u32,
    #[prost(uint64, tag = "16")]
    pub(super) body_bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FactKey {
    #[prost(message, optional, tag = "1")]
    pub(super) occur_time: Option<Time>,
    #[prost(uint32, tag = "2")]
    pub(super) basis_rank: u32,
    #[prost(uint32, tag = "3")]
    pub(super) kind_rank: u32,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) id: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct KindTimes {
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) first_time: Option<Time>,
    #[prost(message, optional, tag = "3")]
    pub(super) last_time: Option<Time>,
    #[prost(uint64, tag = "4")]
    pub(super) count: u64,
}

/// `key` is empty for the anonymous installation.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Installation {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(int32, optional, tag = "2")]
    pub(super) scope: Option<i32>,
    #[prost(message, optional, tag = "3")]
    pub(super) wallet: Option<Wallet>,
    #[prost(bool, tag = "4")]
    pub(super) open: bool,
    #[prost(message, optional, tag = "5")]
    pub(super) open_time: Option<Time>,
    #[prost(message, optional, tag = "6")]
    pub(super) close_time: Option<Time>,
    #[prost(message, optional, tag = "7")]
    pub(super) transition_time: Option<Time>,
    #[prost(int32, tag = "8")]
    pub(super) transition_basis: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Validity {
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) time: Option<Time>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct VendorStatus {
    #[prost(sint64, optional, tag = "1")]
    pub(super) number: Option<i64>,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) attained: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Snapshot {
    #[prost(string, tag = "1")]
    pub(super) pass: String,
    #[prost(message, optional, tag = "2")]
    pub(super) update_time: Option<Time>,
    #[prost(fixed64, tag = "3")]
    pub(super) content_digest: u64,
    #[prost(bool, optional, tag = "4")]
    pub(super) voided: Option<bool>,
    #[prost(sint64, optional, tag = "5")]
    pub(super) redeemed_count: Option<i64>,
    #[prost(message, optional, tag = "6")]
    pub(super) vendor_status: Option<VendorStatus>,
    #[prost(message, optional, tag = "7")]
    pub(super) create_time: Option<Time>,
    #[prost(message, optional, tag = "8")]
    pub(super) refs: Option<Refs>,
}

/// What is known of a pass.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PassState {
    #[prost(message, optional, tag = "1")]
    pub(super) last: Option<FactKey>,
    #[prost(message, repeated, tag = "2")]
    pub(super) kinds: Vec<KindTimes>,
    #[prost(message, repeated, tag = "3")]
    pub(super) installations: Vec<Installation>,
    #[prost(bool, tag = "4")]
    pub(super) had_installation: bool,
    #[prost(message, optional, tag = "5")]
    pub(super) validity: Option<Validity>,
    #[prost(message, optional, tag = "6")]
    pub(super) last_redemption: Option<Redemption>,
    #[prost(message, optional, tag = "7")]
    pub(super) refs: Option<Refs>,
    #[prost(bool, tag = "8")]
    pub(super) installations_uncertain: bool,
    #[prost(bool, tag = "9")]
    pub(super) order_ambiguous: bool,
    #[prost(message, optional, tag = "10")]
    pub(super) snapshot: Option<Snapshot>,
}

/// A transition fact that the pass has seen lately.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RecentFact {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
    #[prost(fixed64, tag = "2")]
    pub(super) content_digest: u64,
}

/// A pass, without its columns. `state` is a [`PassState`] in bytes, so that it can be digested alone.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Pass {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) state: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    pub(super) recent: Vec<RecentFact>,
}
