//! The layout of a signed envelope, as its operator writes it.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Where things are in a signed envelope. The pointers are RFC 6901 and start at the root of the JSON
/// inside the signed string. The defaults are receeve's layout.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct EnvelopeConfig {
    /// The top-level member whose string is signed.
    pub signed_field: String,
    /// The top-level member that holds the signature.
    pub signature_field: String,
    /// The top-level member that holds an unsigned copy; it must agree with the signed string if present.
    pub copy_field: String,
    /// Pointer to the message id.
    pub message_id: String,
    /// Pointer to the message type; a `.v1`-like suffix is its version.
    pub message_type: String,
    /// Pointer to the event's time, an RFC 3339 text.
    pub time: String,
    /// Pointer to the vendor's id of the pass.
    pub pass: String,
    /// Pointer to the installation id.
    pub installation: String,
    /// Pointer to the campaign; none by default.
    pub campaign: Option<String>,
    /// Pointer to the distribution; none by default.
    pub distribution: Option<String>,
    /// Pointer to the class or template; none by default.
    pub class: Option<String>,
    /// Pointer to the serial number; none by default.
    pub serial_number: Option<String>,
    /// Pointer to the issuer's own id; none by default.
    pub external_id: Option<String>,
    /// Message types (without version) and the kinds they stand for, such as
    /// `"event.pass.installed" = "INSTALLED"`. At most 256. Other types go to quarantine.
    pub kinds: BTreeMap<String, String>,
    /// Message types (without version) that are handshakes or tests: stored, without facts.
    pub control: Vec<String>,
}

impl Default for EnvelopeConfig {
    fn default() -> Self {
        Self {
            signed_field: "payloadAsString".to_owned(),
            signature_field: "signature".to_owned(),
            copy_field: "payload".to_owned(),
            message_id: "/messageId".to_owned(),
            message_type: "/details/messageType".to_owned(),
            time: "/timestamp".to_owned(),
            pass: "/details/passId".to_owned(),
            installation: "/details/installationId".to_owned(),
            campaign: None,
            distribution: None,
            class: None,
            serial_number: None,
            external_id: None,
            kinds: BTreeMap::new(),
            control: Vec::new(),
        }
    }
}
