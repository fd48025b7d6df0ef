//! Callbacks to send: a documented PassKit `installed` body, each about another pass, signed beforehand.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use pass_domain::delivery::{AuthScheme, AuthVerdict, Decoded, Delivery, Method, TraceContext};
use pass_domain::ids::DeliveryId;
use pass_sources::{AuthConfig, SecretConfig, Source, SourceConfig};
use pass_store::{SqlStore, SqliteOptions};
use sha2::Sha256;

/// The HMAC key of the benchmark's source: the text itself.
pub(crate) const SECRET: &str = "bench-0123456789abcdef0123456789abcdef";
/// The id in the documented body that is replaced.
const SAMPLE_ID: &str = "5u5EO18473CDVG0Vw0VgPV";
/// The install time in the documented body, in seconds, that is replaced.
const SAMPLE_SECONDS: &str = "1608644748";

/// Bodies and their signatures.
pub(crate) struct Corpus {
    template: String,
}

impl Corpus {
    /// Takes the documented callback.
    pub(crate) fn new() -> Result<Self> {
        let sample =
            pass_sources::samples::find("passkit", "installed").context("no PassKit sample")?;
        let value: serde_json::Value = serde_json::from_str(sample.body)?;
        let template = value.to_string();
        ensure!(
            template.contains(SAMPLE_ID) && template.contains(SAMPLE_SECONDS),
            "the sample changed"
        );
        Ok(Self { template })
    }

    /// The vendor id of the n-th pass: as long as a real one.
    pub(crate) fn pass_id(number: u64) -> String {
        format!("b{number:021}")
    }

    /// The n-th body.
    pub(crate) fn body(&self, number: u64) -> String {
        let seconds = (1_608_644_748 + number % 100_000_000).to_string();
        self.template
            .replace(SAMPLE_ID, &Self::pass_id(number))
            .replace(SAMPLE_SECONDS, &seconds)
    }

    /// The n-th callback as a whole HTTP/1.1 request.
    pub(crate) fn request(&self, path: &str, number: u64) -> Vec<u8> {
        let body = self.body(number);
        let signature = sign(body.as_bytes());
        format!(
            "PUT {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nx-passkit-signature: {signature}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    /// Callbacks `from` to `from + count`.
    pub(crate) fn requests(&self, path: &str, from: u64, count: u64) -> Vec<Vec<u8>> {
        (from..from + count)
            .map(|number| self.request(path, number))
            .collect()
    }
}

/// HMAC-SHA256 in hexadecimal.
pub(crate) fn sign(body: &[u8]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any key length fits HMAC");
    mac.update(body);
    mac.finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Callbacks `from` to `from + count` as the gateway would hand them on, decoded by the real adapter.
pub(crate) fn deliveries(corpus: &Corpus, from: u64, count: usize) -> Result<Vec<Arc<Delivery>>> {
    let config = SourceConfig {
        name: "bench".into(),
        vendor: "passkit".into(),
        auth: AuthConfig {
            scheme: "hmac".into(),
            secrets: vec![SecretConfig {
                id: "k".into(),
                value: Some(SECRET.into()),
                ..SecretConfig::default()
            }],
            ..AuthConfig::default()
        },
        ..SourceConfig::default()
    };
    let source = Source::build(&config, &mut |_| Ok(SECRET.as_bytes().to_vec()))
        .map_err(|faults| anyhow::anyhow!("the benchmark's source: {faults:?}"))?;
    let receive_time = Timestamp::from_second(1_700_000_000)?;
    let mut deliveries = Vec::with_capacity(count);
    for number in from..from + count as u64 {
        let body = corpus.body(number);
        let decoded = source.decode_stored(
            Method::Put,
            "/webhooks/bench",
            &[],
            body.as_bytes(),
            receive_time,
        );
        ensure!(
            matches!(decoded, Decoded::Facts(_)),
            "the adapter does not know the sample: {decoded:?}"
        );
        let mut id = [0_u8; 16];
        // Time-ordered, as a gateway's are.
        id[..6].copy_from_slice(&(1_700_000_000_000 + number).to_be_bytes()[2..]);
        id[6] = 0x70;
        id[8..].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        deliveries.push(Arc::new(Delivery {
            id: DeliveryId::from_bytes(id),
            source: source.uid().clone(),
            vendor: source.vendor().into(),
            organization: String::new(),
            receive_time,
            method: Method::Put,
            path: "/webhooks/bench".into(),
            headers: vec![("content-type".into(), "application/json".into())],
            body: body.into_bytes(),
            auth: AuthVerdict {
                scheme: AuthScheme::Hmac,
                key_id: "k".into(),
                detail: "hex,ascii".into(),
            },
            adapter_version: source.adapter_version().into(),
            trace: TraceContext::default(),
            decoded,
        }));
    }
    Ok(deliveries)
}

/// Opens a fresh store.
pub(crate) async fn open_store(path: &std::path::Path) -> Result<SqlStore> {
    Ok(SqlStore::open(SqliteOptions::new(path)).await?)
}
