//! A source, ready to use: its credentials, its adapter, and the one way from bytes to facts.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;
use pass_domain::Timestamp;
use pass_domain::delivery::{AuthVerdict, Decoded, Method, Undecodable};
use pass_domain::ids::SourceUid;
use pass_domain::limits::{HEADERS_MAX, PATH_BYTES_MAX, TEXT_BYTES_MAX};

use crate::auth::{ID_HEADERS, Refusal, RefusalCause, Scheme, TIMESTAMP_HEADERS};
use crate::clean::cut;
use crate::config::{ConfigFault, Faults, SecretRef, SourceConfig, UndecodablePolicy};
use crate::signed_envelope::Envelope;
use crate::{passkit, passworks, standard};

/// Longest organization, in bytes.
const ORGANIZATION_BYTES_MAX: usize = 256;

/// Headers stored with every delivery. Credentials and signatures are not among them, whatever they are called.
const STORED_HEADERS: [&str; 2] = ["content-type", "user-agent"];

const REDACTED: &str = "[REDACTED]";

/// A callback as it came in. Nothing in it is to be believed before [`Source::verify`].
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The HTTP method.
    pub method: &'a http::Method,
    /// Path and query as received.
    pub path_and_query: &'a str,
    /// The third path segment, percent-decoded, if there is one.
    pub url_secret: Option<&'a str>,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The body, verbatim.
    pub body: &'a [u8],
    /// The address of the sender; `None` if nobody knows it: it is on no allow-list.
    pub peer: Option<IpAddr>,
    /// When the gateway received it.
    pub receive_time: Timestamp,
}

/// A callback whose sender was authenticated. Only [`Source::verify`] makes one.
#[derive(Clone, Debug)]
pub struct Verified<'a> {
    method: Method,
    body: &'a [u8],
    receive_time: Timestamp,
    verdict: AuthVerdict,
    message_id: Option<&'a str>,
}

impl<'a> Verified<'a> {
    /// How the sender was authenticated.
    #[must_use]
    pub fn verdict(&self) -> &AuthVerdict {
        &self.verdict
    }

    /// The delivery's own id, where the scheme signs one (`webhook-id`). The same for every retry.
    #[must_use]
    pub fn message_id(&self) -> Option<&'a str> {
        self.message_id
    }

    /// The HTTP method.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// The body, verbatim.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// When the gateway received it.
    #[must_use]
    pub fn receive_time(&self) -> Timestamp {
        self.receive_time
    }
}

/// What an adapter gets to see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    pub(crate) source: &'a SourceUid,
    pub(crate) method: Method,
    pub(crate) body: &'a [u8],
    pub(crate) receive_time: Timestamp,
    pub(crate) message_id: Option<&'a str>,
}

/// The vendors that are understood.
#[derive(Debug)]
enum Adapter {
    Passworks,
    Passkit,
    SignedEnvelope(Box<Envelope>),
    Standard,
}

/// One configured connection to a vendor, ready to verify and decode. `Debug` shows no secret.
#[derive(Debug)]
pub struct Source {
    uid: SourceUid,
    name: String,
    organization: String,
    scheme: Scheme,
    allow_from: Vec<IpNet>,
    undecodable: UndecodablePolicy,
    adapter: Adapter,
    warnings: Vec<String>,
}

impl Source {
    /// Checks a configuration and makes a source of it. `resolve` turns a reference into a secret's bytes;
    /// its error text becomes the fault's message and must not hold the secret.
    ///
    /// # Errors
    /// Every fault of the configuration at once, each with its key and the fix.
    pub fn build(
        config: &SourceConfig,
        resolve: &mut dyn FnMut(&SecretRef) -> Result<Vec<u8>, String>,
    ) -> Result<Self, Vec<ConfigFault>> {
        let mut faults = Faults::default();
        if let Err(error) = SourceUid::new(&config.name) {
            faults.add("name", error.to_string());
        }
        let uid = match SourceUid::new(config.uid.as_deref().unwrap_or(&config.name)) {
            Ok(uid) => Some(uid),
            Err(error) => {
                if config.uid.is_some() {
                    faults.add("uid", error.to_string());
                }
                None
            }
        };
        if config.organization.len() > ORGANIZATION_BYTES_MAX
            || config.organization.contains(char::is_control)
        {
            faults.add(
                "organization",
                format!(
                    "must be at most {ORGANIZATION_BYTES_MAX} bytes without control characters"
                ),
            );
        }
        if config.envelope.is_some() && config.vendor != "signed_envelope" {
            faults.add("envelope", "is used only by vendor = \"signed_envelope\"");
        }
        let layout = config.envelope.clone().unwrap_or_default();
        let scheme = Scheme::build(config, &layout, resolve, &mut faults);
        let adapter = match config.vendor.as_str() {
            "passworks" => Some(Adapter::Passworks),
            "passkit" => Some(Adapter::Passkit),
            "signed_envelope" => {
                let signed = matches!(scheme, Some(Scheme::SignedEnvelope(_)));
                Some(Adapter::SignedEnvelope(Box::new(Envelope::build(
                    &layout,
                    signed,
                    &mut faults,
                ))))
            }
            "standard" => Some(Adapter::Standard),
            other => {
                let what = if other.is_empty() {
                    "is missing"
                } else {
                    "is not a known vendor"
                };
                faults.add(
                    "vendor",
                    format!("{what}; use passworks, passkit, signed_envelope or standard"),
                );
                None
            }
        };
        let mut warnings = Vec::new();
        if matches!(scheme, Some(Scheme::None)) {
            warnings.push(format!(
                "source {} accepts callbacks without any credential from {} network(s); whoever can send from there can forge events",
                config.name,
                config.allow_from.len()
            ));
        }
        match (uid, scheme, adapter) {
            (Some(uid), Some(scheme), Some(adapter)) if faults.0.is_empty() => Ok(Self {
                uid,
                name: config.name.clone(),
                organization: config.organization.clone(),
                scheme,
                allow_from: config.allow_from.clone(),
                undecodable: config.undecodable,
                adapter,
                warnings,
            }),
            _ => Err(faults.0),
        }
    }

    /// The immutable uid that ids are built from.
    #[must_use]
    pub fn uid(&self) -> &SourceUid {
        &self.uid
    }

    /// The name in the URL.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The vendor, as configured.
    #[must_use]
    pub fn vendor(&self) -> &'static str {
        match self.adapter {
            Adapter::Passworks => "passworks",
            Adapter::Passkit => "passkit",
            Adapter::SignedEnvelope(_) => "signed_envelope",
            Adapter::Standard => "standard",
        }
    }

    /// The organization; may be empty.
    #[must_use]
    pub fn organization(&self) -> &str {
        &self.organization
    }

    /// Which version of which adapter decodes, such as `passkit/1`.
    #[must_use]
    pub fn adapter_version(&self) -> &'static str {
        match self.adapter {
            Adapter::Passworks => "passworks/1",
            Adapter::Passkit => "passkit/1",
            Adapter::SignedEnvelope(_) => "signed_envelope/1",
            Adapter::Standard => "standard/1",
        }
    }

    /// The HTTP methods the vendor uses; any other is answered 405.
    #[must_use]
    pub fn methods(&self) -> &'static [Method] {
        match self.adapter {
            Adapter::Passkit => &[Method::Post, Method::Put, Method::Delete],
            Adapter::Passworks | Adapter::SignedEnvelope(_) | Adapter::Standard => &[Method::Post],
        }
    }

    /// What becomes of authentic deliveries that can't be decoded.
    #[must_use]
    pub fn undecodable(&self) -> UndecodablePolicy {
        self.undecodable
    }

    /// What the operator should know, to be logged at start.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// True if the URL has to carry the secret as its third segment.
    #[must_use]
    pub fn expects_url_secret(&self) -> bool {
        matches!(self.scheme, Scheme::UrlSecret(_))
    }

    /// Checks the sender's address and credential on the raw bytes.
    ///
    /// # Errors
    /// A refusal with one text for every cause.
    pub fn verify<'a>(&self, request: Request<'a>) -> Result<Verified<'a>, Refusal> {
        let allowed = |peer: IpAddr| {
            let peer = peer.to_canonical();
            self.allow_from
                .iter()
                .any(|network| network.contains(&peer))
        };
        if !self.allow_from.is_empty() && !request.peer.is_some_and(allowed) {
            return Err(Refusal {
                cause: RefusalCause::AddressNotAllowed,
            });
        }
        let accepted = self
            .scheme
            .verify(&request)
            .map_err(|cause| Refusal { cause })?;
        Ok(Verified {
            // A method no vendor uses is answered before this; POST stands for it here.
            method: method_from_http(request.method).unwrap_or(Method::Post),
            body: request.body,
            receive_time: request.receive_time,
            verdict: accepted.verdict,
            message_id: accepted.message_id,
        })
    }

    /// Decodes a verified delivery. Depends on nothing but its bytes, method and receive time.
    #[must_use]
    pub fn decode(&self, verified: &Verified<'_>) -> Decoded {
        self.decode_input(Input {
            source: &self.uid,
            method: verified.method,
            body: verified.body,
            receive_time: verified.receive_time,
            message_id: verified.message_id,
        })
    }

    /// Decodes a stored delivery again, as of its receive time. It was verified before it was stored and is
    /// not verified again. `headers` are those that [`Source::stored_headers`] gave; `path` is of no use to
    /// any adapter yet.
    #[must_use]
    pub fn decode_stored(
        &self,
        method: Method,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
        receive_time: Timestamp,
    ) -> Decoded {
        let _ = path;
        // An id header is stored only if it was signed, so it can be believed under whatever scheme the source has now.
        let header = |name: &str| {
            headers
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        let message_id = ID_HEADERS.iter().find_map(|name| header(name));
        self.decode_input(Input {
            source: &self.uid,
            method,
            body,
            receive_time,
            message_id,
        })
    }

    fn decode_input(&self, input: Input<'_>) -> Decoded {
        let decoded: Result<Decoded, Undecodable> = match &self.adapter {
            Adapter::Passworks => passworks::decode(&input),
            Adapter::Passkit => passkit::decode(&input),
            Adapter::SignedEnvelope(envelope) => envelope.decode(&input),
            Adapter::Standard => standard::decode(&input),
        };
        decoded.unwrap_or_else(Decoded::Undecodable)
    }

    /// The headers to store with a delivery: an allow-list, names in lower case. Never a credential or a
    /// signature. A Standard Webhooks id and timestamp are stored only where they are signed.
    #[must_use]
    pub fn stored_headers(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        let mut stored = Vec::new();
        let mut keep = |name: &str| {
            if let Some(value) = headers.get(name).and_then(|value| value.to_str().ok())
                && stored.len() < HEADERS_MAX
            {
                stored.push((name.to_owned(), cut(value, TEXT_BYTES_MAX).to_owned()));
            }
        };
        STORED_HEADERS.into_iter().for_each(&mut keep);
        if matches!(self.scheme, Scheme::StandardWebhooks(_)) {
            let family = usize::from(!headers.contains_key(ID_HEADERS[0]));
            keep(ID_HEADERS[family]);
            keep(TIMESTAMP_HEADERS[family]);
        }
        // The credential's header may have been configured to be one of these.
        if let Some(secret) = self.scheme.header() {
            stored.retain(|(name, _)| name != secret);
        }
        stored
    }

    /// The path and query to store: everything after `/webhooks/{source}` and every query value is
    /// replaced, since senders put tokens in both.
    #[must_use]
    pub fn redact_path(&self, path_and_query: &str) -> String {
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        let mut redacted: String = match path.match_indices('/').nth(2) {
            Some((third, _)) if third + 1 < path.len() => format!("{}/{REDACTED}", &path[..third]),
            _ => path.to_owned(),
        };
        for (index, pair) in query
            .into_iter()
            .flat_map(|query| query.split('&'))
            .enumerate()
        {
            redacted.push(if index == 0 { '?' } else { '&' });
            if let Some((name, _)) = pair.split_once('=') {
                redacted.push_str(name);
                redacted.push('=');
            }
            if !pair.is_empty() {
                redacted.push_str(REDACTED);
            }
        }
        cut(&redacted, PATH_BYTES_MAX).to_owned()
    }
}

/// The method, if any vendor uses it.
#[must_use]
pub fn method_from_http(method: &http::Method) -> Option<Method> {
    [Method::Post, Method::Put, Method::Delete]
        .into_iter()
        .find(|known| known.name() == method.as_str())
}
