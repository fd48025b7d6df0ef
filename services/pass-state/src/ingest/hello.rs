//! A gateway's first message, checked.

use pass_domain::ids::SourceUid;
use pass_proto::status::{Fault, Reason};
use pass_proto::v1;
use pass_store::{Scope, SpoolHello, SpoolId};

use super::PROTOCOL_VERSION;
use crate::config::{IngestConfig, message_bytes};

/// Longest gateway id, in bytes.
const GATEWAY_BYTES_MAX: usize = 128;
/// Most sources of one gateway.
const SOURCES_MAX: usize = 1_000;
/// Most faults that one answer names.
const FAULTS_MAX: usize = 64;

/// A hello that was checked.
pub(super) struct Hello {
    pub(super) spool: SpoolHello,
    pub(super) sources: Vec<SourceUid>,
}

/// A source whose deliveries the caller is not to send, or not as those of the organization (if any).
pub(super) fn not_allowed(source: &SourceUid, organization: &str) -> Fault {
    let of = if organization.is_empty() {
        String::new()
    } else {
        format!(" and organization {organization}")
    };
    Fault::new(
        Reason::PermissionDenied,
        format!("the caller is not to send deliveries of source {source}{of}"),
    )
    .with("source", source.as_str())
}

/// Checks a hello; names every bad field at once.
pub(super) fn check(
    hello: v1::IngestHello,
    config: &IngestConfig,
    scope: &Scope,
) -> Result<Hello, Fault> {
    if hello.protocol_version != PROTOCOL_VERSION {
        return Err(Fault::new(
            Reason::ProtocolMismatch,
            format!(
                "protocol version {} is not spoken here; upgrade the older one",
                hello.protocol_version
            ),
        )
        .with("supported", PROTOCOL_VERSION.to_string()));
    }
    let mut bad: Vec<(String, String)> = Vec::new();
    let mut note = |field: &str, text: String| bad.push((format!("hello.{field}"), text));
    if hello.gateway_id.is_empty() || hello.gateway_id.len() > GATEWAY_BYTES_MAX {
        note(
            "gateway_id",
            format!(
                "has {} bytes; 1 to {GATEWAY_BYTES_MAX} are allowed",
                hello.gateway_id.len()
            ),
        );
    }
    let spool = parse_spool_id(&hello.spool_id);
    if spool.is_none() {
        note(
            "spool_id",
            "must be 32 lower-case hexadecimal digits".to_owned(),
        );
    }
    if hello.sources.len() > SOURCES_MAX {
        note(
            "sources",
            format!(
                "has {} entries; at most {SOURCES_MAX} are allowed",
                hello.sources.len()
            ),
        );
    }
    let mut sources = Vec::new();
    for (at, source) in hello.sources.iter().take(SOURCES_MAX).enumerate() {
        match SourceUid::new(source) {
            Ok(source) => sources.push(source),
            Err(error) => note(&format!("sources[{at}]"), error.to_string()),
        }
    }
    for (field, sequence) in [
        ("settled_sequence", hello.settled_sequence),
        ("oldest_sequence", hello.oldest_sequence),
    ] {
        if sequence >= i64::MAX as u64 {
            note(
                field,
                format!("is {sequence}; less than 2^63 - 1 is allowed"),
            );
        }
    }
    let body_bytes = usize::try_from(hello.body_bytes_max).unwrap_or_default();
    if hello.body_bytes_max < 0 || message_bytes(body_bytes) > config.message_bytes_max() {
        note(
            "body_bytes_max",
            format!(
                "is {}, but this service takes bodies of at most {} bytes; lower the gateway's limit or raise ingest.body_bytes_max",
                hello.body_bytes_max,
                config.body_bytes_max.bytes()
            ),
        );
    }
    bad.truncate(FAULTS_MAX);
    if bad.is_empty()
        && let Some(source) = sources.iter().find(|source| !scope.allows_source(source))
    {
        return Err(not_allowed(source, ""));
    }
    match (spool, Fault::fields(bad)) {
        (Some(spool), None) => Ok(Hello {
            spool: SpoolHello {
                spool,
                gateway: hello.gateway_id,
                settled_sequence: hello.settled_sequence,
                oldest_sequence: hello.oldest_sequence,
                may_change_epoch: scope.allows_all(),
            },
            sources,
        }),
        (_, Some(fault)) => Err(fault),
        (None, None) => Err(Fault::field("hello.spool_id", "is not a spool id")),
    }
}

fn parse_spool_id(text: &str) -> Option<SpoolId> {
    let hex = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() != 32 || !hex {
        return None;
    }
    u128::from_str_radix(text, 16)
        .ok()
        .map(|number| SpoolId(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spool_ids_are_read_strictly() {
        assert_eq!(parse_spool_id(&"0a".repeat(16)), Some(SpoolId([10; 16])));
        for bad in [
            "",
            "0a",
            &"0A".repeat(16),
            &"+a".repeat(16),
            &"é".repeat(16),
        ] {
            assert_eq!(parse_spool_id(bad), None, "{bad}");
        }
    }
}
