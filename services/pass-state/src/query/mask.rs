//! Read masks, applied to any message of the API by its descriptor.
//!
//! A mask is a tree of field numbers. To apply it, the message is encoded, the fields that are not in the
//! tree are left out of the bytes, and what is left is decoded. So no table of fields has to be kept by hand,
//! and masks reach as deep as messages do (AIP-157, AIP-161): through singular messages, not through
//! repeated ones and maps.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use prost::Message;
use prost::encoding::{self, DecodeContext, WireType};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldMask, FileDescriptorSet};

/// Most paths in one mask.
const PATHS_MAX: usize = 128;

/// The API's messages and their fields.
pub(crate) struct MessageTypes {
    fields: HashMap<String, HashMap<String, FieldType>>,
}

struct FieldType {
    number: u32,
    /// The message to descend into, if it is a singular one.
    message: Option<String>,
}

impl MessageTypes {
    /// Reads a descriptor set.
    ///
    /// # Panics
    /// If it is not one: it is compiled in.
    pub(crate) fn new(descriptors: &[u8]) -> Arc<Self> {
        let set = FileDescriptorSet::decode(descriptors)
            .expect("the descriptor set was written by our build script");
        let mut types = Self {
            fields: HashMap::new(),
        };
        for file in set.file {
            let package = format!(".{}", file.package());
            for message in file.message_type {
                types.add(&package, message);
            }
        }
        Arc::new(types)
    }

    fn add(&mut self, scope: &str, message: DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        let fields = message.field.into_iter().map(|field| {
            let singular = field.label() != Label::Repeated && field.r#type() == Type::Message;
            let field_type = FieldType {
                number: u32::try_from(field.number()).unwrap_or_default(),
                message: singular.then(|| field.type_name().to_owned()),
            };
            (field.name().to_owned(), field_type)
        });
        self.fields.insert(name.clone(), fields.collect());
        for nested in message.nested_type {
            self.add(&name, nested);
        }
    }

    /// The field numbers of a path.
    fn resolve(&self, path: &str, message: &str) -> Result<Vec<u32>, String> {
        let shown: String = path.chars().take(64).collect();
        let mut message = Some(message);
        let mut numbers = Vec::new();
        for part in path.split('.') {
            let Some(name) = message else {
                return Err(format!(
                    "path {shown:?} goes into a field that is repeated or has no fields of its own"
                ));
            };
            let fields = self.fields.get(name);
            let Some(field) = fields.and_then(|fields| fields.get(part)) else {
                let name = name.trim_start_matches('.');
                return Err(format!("path {shown:?} names no field of {name}"));
            };
            numbers.push(field.number);
            message = field.message.as_deref();
        }
        Ok(numbers)
    }
}

/// Which fields of a message to return.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mask {
    /// `None`: all of them.
    tree: Option<Tree>,
}

/// Field numbers, and what of each: `None` is all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tree(BTreeMap<u32, Option<Tree>>);

impl Mask {
    /// Reads a mask over a message such as `.passline.v1.Pass`. Absent, empty and `*` mean all.
    ///
    /// # Errors
    /// Says what is wrong with each bad path.
    pub(crate) fn parse(
        mask: Option<&FieldMask>,
        message: &str,
        types: &MessageTypes,
    ) -> Result<Self, Vec<String>> {
        let paths = mask.map_or(&[] as &[String], |mask| &mask.paths);
        if paths.is_empty() {
            return Ok(Self::default());
        }
        if paths.len() > PATHS_MAX {
            return Err(vec![format!(
                "has {} paths; at most {PATHS_MAX} are allowed",
                paths.len()
            )]);
        }
        let (mut tree, mut all, mut bad) = (Tree::default(), false, Vec::new());
        for path in paths {
            if path == "*" {
                all = true;
            } else if let Err(text) = tree.add(path, message, types) {
                bad.push(text);
            }
        }
        if !bad.is_empty() {
            return Err(bad);
        }
        Ok(Self {
            tree: (!all).then_some(tree),
        })
    }

    /// Leaves only the mask's fields in a message.
    pub(crate) fn apply<M: Message + Default>(&self, message: &mut M) {
        let Some(tree) = &self.tree else {
            return;
        };
        let whole = message.encode_to_vec();
        let mut kept = Vec::with_capacity(whole.len());
        tree.keep(&whole, &mut kept)
            .and_then(|()| M::decode(kept.as_slice()))
            .map(|masked| *message = masked)
            .expect("what was just encoded decodes, with or without some of its fields");
    }
}

impl Tree {
    fn add(&mut self, path: &str, message: &str, types: &MessageTypes) -> Result<(), String> {
        let numbers = types.resolve(path, message)?;
        let Some((last, parents)) = numbers.split_last() else {
            return Ok(());
        };
        let mut tree = self;
        for number in parents {
            let inner = tree.0.entry(*number);
            match inner.or_insert_with(|| Some(Tree::default())) {
                // All of it was asked for before.
                None => return Ok(()),
                Some(inner) => tree = inner,
            }
        }
        tree.0.insert(*last, None);
        Ok(())
    }

    fn keep(&self, mut from: &[u8], to: &mut Vec<u8>) -> Result<(), prost::DecodeError> {
        while !from.is_empty() {
            let field = from;
            let (number, wire_type) = encoding::decode_key(&mut from)?;
            let wanted = self.0.get(&number);
            if let (Some(Some(inner)), WireType::LengthDelimited) = (wanted, wire_type) {
                let length = encoding::decode_varint(&mut from)?;
                let length = usize::try_from(length)
                    .unwrap_or(usize::MAX)
                    .min(from.len());
                let (message, rest) = from.split_at(length);
                from = rest;
                let mut kept = Vec::with_capacity(length);
                inner.keep(message, &mut kept)?;
                encoding::encode_key(number, wire_type, to);
                encoding::encode_varint(kept.len() as u64, to);
                to.extend_from_slice(&kept);
                continue;
            }
            encoding::skip_field(wire_type, number, &mut from, DecodeContext::default())?;
            if wanted.is_some() {
                to.extend_from_slice(&field[..field.len() - from.len()]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pass_proto::v1;

    use super::*;

    fn mask(paths: &[&str]) -> Result<Mask, Vec<String>> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let types = MessageTypes::new(pass_proto::DESCRIPTORS);
        Mask::parse(Some(&FieldMask { paths }), ".passline.v1.PassEvent", &types)
    }

    fn event() -> v1::PassEvent {
        v1::PassEvent {
            id: "evt_1".into(),
            kind: 4,
            refs: Some(v1::PassRefs {
                campaign: "spring".into(),
                class: "gold".into(),
                ..v1::PassRefs::default()
            }),
            attributes: [("a".to_owned(), "b".to_owned())].into(),
            occur_time: Some(prost_types::Timestamp {
                seconds: 5,
                nanos: 6,
            }),
            notes: vec!["N".into(), "M".into()],
            ..v1::PassEvent::default()
        }
    }

    #[test]
    fn only_the_named_fields_stay() {
        let mut masked = event();
        mask(&[
            "id",
            "refs.campaign",
            "notes",
            "attributes",
            "occur_time.seconds",
        ])
        .unwrap()
        .apply(&mut masked);
        let expected = v1::PassEvent {
            kind: 0,
            refs: Some(v1::PassRefs {
                campaign: "spring".into(),
                ..v1::PassRefs::default()
            }),
            occur_time: Some(prost_types::Timestamp {
                seconds: 5,
                nanos: 0,
            }),
            ..event()
        };
        assert_eq!(masked, expected);
    }

    #[test]
    fn no_paths_and_a_star_mean_all_and_the_wider_path_wins() {
        for paths in [&[][..], &["*"], &["id", "*"]] {
            let mut masked = event();
            mask(paths).unwrap().apply(&mut masked);
            assert_eq!(masked, event(), "{paths:?}");
        }
        for paths in [["refs", "refs.campaign"], ["refs.campaign", "refs"]] {
            let mut masked = event();
            mask(&paths).unwrap().apply(&mut masked);
            assert_eq!(masked.refs, event().refs, "{paths:?}");
        }
    }

    #[test]
    fn every_bad_path_is_named() {
        let bad = mask(&[
            "id",
            "nme",
            "refs.nme",
            "id.x",
            "notes.x",
            "attributes.a",
            "",
        ]);
        let bad = bad.unwrap_err();
        assert_eq!(bad.len(), 6, "{bad:?}");
        assert!(bad[0].contains("\"nme\"") && bad[0].contains("passline.v1.PassEvent"));
        assert!(bad[1].contains("passline.v1.PassRefs"));
        assert_eq!(mask(&["id"; 129]).unwrap_err().len(), 1);
    }
}
