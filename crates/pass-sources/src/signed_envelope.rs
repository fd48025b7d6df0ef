//! Signed envelopes: vendors that put a signature and the signed JSON text inside the body.
//!
//! The layout is configuration ([`crate::EnvelopeConfig`]); the default is receeve's. Facts come from the
//! signed text alone. The readable copy beside it is not signed: it has to say the same, or the delivery
//! goes to quarantine. Only where the source does not use the `signed_envelope` scheme (something else
//! authenticates the sender) may the copy stand for a signed text that is missing.
//!
//! A message type ends in its version (`event.pass.installed.v1`): the version is split off before the
//! type is looked up, and kept as the attribute `message_version`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pass_domain::delivery::{Decoded, DecodedFacts, Undecodable};
use pass_domain::fact::{
    Assertion, Fact, IdentityBasis, InstallationRef, InstallationScope, Personal, Redemption, Refs,
    TimeBasis,
};
use pass_domain::identity::{IDENTITY_VERSION, Part, content_digest, event_id};
use pass_domain::kind::Kind;

use crate::clean::{
    Notes, duplicate, id, id_optional, invalid, kind_unknown, mismatch, missing, time,
};
use crate::config::Faults;
use crate::envelope_config::EnvelopeConfig;
use crate::json::readable;
use crate::raw;
use crate::source::Input;

/// Most entries of the table of kinds and of the list of control messages.
const TABLE_MAX: usize = 256;

/// A pointer, with its text for error details.
#[derive(Debug)]
struct Pointer {
    text: String,
    steps: Vec<String>,
}

/// A layout that was checked.
#[derive(Debug)]
pub(crate) struct Envelope {
    signed_field: String,
    copy_field: String,
    /// True if the signed text was authenticated, so that nothing may stand for it.
    needs_signed: bool,
    message_id: Pointer,
    message_type: Pointer,
    time: Pointer,
    pass: Pointer,
    installation: Pointer,
    /// In the order campaign, distribution, class, serial number, external id.
    refs: [Option<Pointer>; 5],
    kinds: BTreeMap<String, Kind>,
    control: Vec<String>,
}

impl Envelope {
    pub(crate) fn build(config: &EnvelopeConfig, needs_signed: bool, faults: &mut Faults) -> Self {
        let fields = [
            ("signed_field", &config.signed_field),
            ("signature_field", &config.signature_field),
            ("copy_field", &config.copy_field),
        ];
        for (index, (name, value)) in fields.iter().enumerate() {
            if value.is_empty() || fields[..index].iter().any(|(_, other)| other == value) {
                faults.add(
                    format!("envelope.{name}"),
                    "must be the name of a member, different from the other two",
                );
            }
        }
        let mut kinds = BTreeMap::new();
        if config.kinds.len() > TABLE_MAX || config.control.len() > TABLE_MAX {
            faults.add(
                "envelope.kinds",
                format!("and envelope.control may have at most {TABLE_MAX} entries each"),
            );
        }
        if config.kinds.is_empty() && config.control.is_empty() {
            faults.add(
                "envelope.kinds",
                "is empty, so every message would go to quarantine; map message types to kinds",
            );
        }
        for (message_type, kind) in &config.kinds {
            match Kind::from_name(kind).filter(|kind| *kind != Kind::Erased) {
                Some(kind) => drop(kinds.insert(message_type.clone(), kind)),
                None => faults.add(
                    format!("envelope.kinds.\"{message_type}\""),
                    "is not a kind; use one such as INSTALLED or UNINSTALLED",
                ),
            }
            if without_version(message_type).1.is_some() {
                faults.add(
                    format!("envelope.kinds.\"{message_type}\""),
                    "must be written without its version",
                );
            }
        }
        let mut pointer = |name: &str, text: &str| {
            let steps = raw::pointer_steps(text).unwrap_or_else(|| {
                faults.add(
                    format!("envelope.{name}"),
                    "must be a JSON pointer such as /details/passId",
                );
                Vec::new()
            });
            Pointer {
                text: text.to_owned(),
                steps,
            }
        };
        Self {
            signed_field: config.signed_field.clone(),
            copy_field: config.copy_field.clone(),
            needs_signed,
            message_id: pointer("message_id", &config.message_id),
            message_type: pointer("message_type", &config.message_type),
            time: pointer("time", &config.time),
            pass: pointer("pass", &config.pass),
            installation: pointer("installation", &config.installation),
            refs: [
                ("campaign", &config.campaign),
                ("distribution", &config.distribution),
                ("class", &config.class),
                ("serial_number", &config.serial_number),
                ("external_id", &config.external_id),
            ]
            .map(|(name, text)| text.as_ref().map(|text| pointer(name, text))),
            kinds,
            control: config.control.clone(),
        }
    }

    pub(crate) fn decode(&self, input: &Input<'_>) -> Result<Decoded, Undecodable> {
        let mut notes = Notes::default();
        let body = raw::checked(readable(input.body)?)
            .map_err(|_| crate::clean::not_json("the body is not JSON"))?;
        let signed = self.signed_text(body, &mut notes)?;
        let message = raw::checked(readable(signed.as_bytes())?).map_err(|_| {
            crate::clean::not_json(&format!("{} does not hold JSON", self.signed_field))
        })?;

        let message_type = required(&self.message_type, message)?;
        let (plain_type, version) = without_version(&message_type);
        if self.control.iter().any(|known| known == plain_type) {
            return Ok(Decoded::Control {
                vendor_kind: notes.text(&message_type),
            });
        }
        let kind = *self
            .kinds
            .get(plain_type)
            .ok_or_else(|| kind_unknown(&self.message_type.text))?;
        let message_id = id(
            &self.message_id.text,
            text_at(&self.message_id, message)?.as_deref(),
        )?;
        let pass = id(&self.pass.text, text_at(&self.pass, message)?.as_deref())?;
        let vendor_time = time(&self.time.text, text_at(&self.time, message)?.as_ref())?;
        let installation = id_optional(
            &self.installation.text,
            text_at(&self.installation, message)?.as_deref(),
        )?;
        let mut refs = self.refs.iter().map(|pointer| match pointer {
            Some(pointer) => Ok(notes.optional(text_at(pointer, message)?.as_deref())),
            None => Ok(String::new()),
        });
        let mut next_ref = || refs.next().unwrap_or(Ok(String::new()));
        let refs = Refs {
            campaign: next_ref()?,
            distribution: next_ref()?,
            class: next_ref()?,
            serial_number: next_ref()?,
            external_id: next_ref()?,
        };
        let mut attributes = BTreeMap::new();
        if let Some(version) = version {
            notes.attribute(&mut attributes, "message_version", version);
        }
        let personal = self.free_attributes(message, &mut notes)?;
        let digest = raw::digest(message).map_err(|fault| self.fault(fault))?;
        let parts = [
            Part::Text(message_id.as_str()),
            Part::Text(pass.as_str()),
            Part::Integer(0),
        ];
        let fact = Fact {
            id: event_id(input.source, "MESSAGE", &parts, None),
            identity_version: IDENTITY_VERSION,
            identity_basis: IdentityBasis::VendorId,
            pass,
            kind,
            vendor_kind: notes.text(&message_type),
            assertion: Assertion::Reported,
            occur_time: vendor_time.unwrap_or(input.receive_time),
            time_basis: if vendor_time.is_some() {
                TimeBasis::VendorEvent
            } else {
                TimeBasis::Received
            },
            installation: installation.map(|id| InstallationRef {
                id,
                scope: InstallationScope::Registration,
            }),
            wallet: None,
            refs,
            redemption: (kind == Kind::Redeemed).then(Redemption::default),
            attributes,
            content_digest: content_digest(&[Part::Bytes(&digest)]),
        };
        Ok(Decoded::Facts(Box::new(DecodedFacts {
            facts: vec![fact],
            snapshot: None,
            personal,
            notes: notes.into_vec(),
        })))
    }

    /// The signed text, once the readable copy beside it has been found to say the same.
    fn signed_text<'a>(
        &self,
        body: &'a str,
        notes: &mut Notes,
    ) -> Result<Cow<'a, str>, Undecodable> {
        let at = |name: &str| raw::find(body, &[name.to_owned()]).map_err(|_| duplicate(name));
        let copy = at(&self.copy_field)?;
        let Some(signed) = at(&self.signed_field)? else {
            if self.needs_signed {
                return Err(missing(&self.signed_field));
            }
            notes.add("PAYLOAD_COPY_USED");
            return copy
                .map(Cow::Borrowed)
                .ok_or_else(|| missing(&self.signed_field));
        };
        let signed =
            raw::string(signed).map_err(|_| invalid(&self.signed_field, "is not a string"))?;
        if let Some(copy) = copy {
            let said = raw::digest(copy).map_err(|fault| self.fault(fault))?;
            readable(signed.as_bytes())?;
            let inner = raw::checked(&signed).map_err(|_| {
                crate::clean::not_json(&format!("{} does not hold JSON", self.signed_field))
            })?;
            if said != raw::digest(inner).map_err(|fault| self.fault(fault))? {
                return Err(mismatch(&self.copy_field, &self.signed_field));
            }
        }
        Ok(signed)
    }

    /// What else stands beside the pass id. Its content is not known here, so it counts as personal.
    fn free_attributes(&self, message: &str, notes: &mut Notes) -> Result<Personal, Undecodable> {
        let mut personal = Personal::default();
        let Some((_, parent)) = self.pass.steps.split_last() else {
            return Ok(personal);
        };
        let Some(parent_json) = raw::find(message, parent).map_err(|fault| self.fault(fault))?
        else {
            return Ok(personal);
        };
        for (name, value) in raw::members(parent_json).map_err(|fault| self.fault(fault))? {
            let step = |pointer: &Pointer| {
                pointer
                    .steps
                    .split_last()
                    .is_some_and(|(last, rest)| rest == parent && *last == name)
            };
            let is_read = [
                &self.message_id,
                &self.message_type,
                &self.time,
                &self.pass,
                &self.installation,
            ]
            .into_iter()
            .chain(self.refs.iter().flatten())
            .any(step);
            if is_read || value.starts_with(['{', '[', 'n']) {
                continue;
            }
            let text = if value.starts_with('"') {
                raw::string(value).map_err(|fault| self.fault(fault))?
            } else {
                Cow::Borrowed(value)
            };
            notes.attribute(&mut personal.attributes, &name, &text);
        }
        Ok(personal)
    }

    fn fault(&self, fault: raw::Fault) -> Undecodable {
        match fault {
            raw::Fault::Duplicate => duplicate(&format!(
                "a member of {} or {}",
                self.signed_field, self.copy_field
            )),
            raw::Fault::Broken => invalid(&self.signed_field, "has a text that is not Unicode"),
        }
    }
}

fn text_at<'a>(pointer: &Pointer, message: &'a str) -> Result<Option<Cow<'a, str>>, Undecodable> {
    let found = raw::find(message, &pointer.steps).map_err(|fault| match fault {
        raw::Fault::Duplicate => duplicate(&pointer.text),
        raw::Fault::Broken => invalid(&pointer.text, "can't be read"),
    })?;
    match found {
        None => Ok(None),
        Some(value) if value.starts_with('"') => raw::string(value)
            .map(Some)
            .map_err(|_| invalid(&pointer.text, "is not Unicode")),
        // A number that is an id keeps all its digits.
        Some(value) if value.bytes().all(|b| b.is_ascii_digit()) => Ok(Some(Cow::Borrowed(value))),
        Some(_) => Err(invalid(&pointer.text, "is not a string")),
    }
}

fn required<'a>(pointer: &Pointer, message: &'a str) -> Result<Cow<'a, str>, Undecodable> {
    text_at(pointer, message)?
        .filter(|text| !text.is_empty())
        .ok_or_else(|| missing(&pointer.text))
}

/// Splits `.v1` off a message type.
fn without_version(message_type: &str) -> (&str, Option<&str>) {
    match message_type.rsplit_once(".v") {
        Some((plain, version))
            if !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()) =>
        {
            (plain, Some(version))
        }
        _ => (message_type, None),
    }
}
