//! Callbacks as the vendors send them, for demonstrations and tests.
//!
//! Those of Passworks' installs and PassKit's record changes are documented examples; the others are the
//! same pass in another moment. Names and addresses in them are invented.

use pass_domain::delivery::Method;

/// One callback.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// A name to ask for it by, unique within its vendor.
    pub name: &'static str,
    /// The vendor's name, as a source's configuration spells it.
    pub vendor: &'static str,
    /// The HTTP method the vendor uses.
    pub method: Method,
    /// The body. For `signed_envelope` it is the payload: sign it with [`crate::sign`] to get the body.
    pub body: &'static str,
}

macro_rules! samples {
    ($($vendor:literal / $name:literal $method:ident),* $(,)?) => {
        &[$(Sample {
            name: $name,
            vendor: $vendor,
            method: Method::$method,
            body: include_str!(concat!("../samples/", $vendor, "/", $name, ".json")),
        }),*]
    };
}

/// Every sample, in the order in which a pass would live through them.
pub const SAMPLES: &[Sample] = samples![
    "passworks" / "installed_rev2016-01" Post,
    "passworks" / "created" Post,
    "passworks" / "downloaded" Post,
    "passworks" / "installed_rev2016-08" Post,
    "passworks" / "fetched" Post,
    "passworks" / "redeemed" Post,
    "passworks" / "uninstalled" Post,
    "passkit" / "record_created" Post,
    "passkit" / "installed" Put,
    "passkit" / "record_updated" Put,
    "passkit" / "uninstalled_as_record_updated" Put,
    "passkit" / "uninstalled" Put,
    "passkit" / "invalidated" Put,
    "passkit" / "record_deleted" Delete,
    "signed_envelope" / "pass_installed" Post,
    "signed_envelope" / "pass_uninstalled" Post,
    "standard" / "installed" Post,
    "standard" / "batch" Post,
];

/// The samples of one vendor.
pub fn of_vendor(vendor: &str) -> impl Iterator<Item = &'static Sample> {
    SAMPLES.iter().filter(move |sample| sample.vendor == vendor)
}

/// Finds a sample.
#[must_use]
pub fn find(vendor: &str, name: &str) -> Option<&'static Sample> {
    of_vendor(vendor).find(|sample| sample.name == name)
}

/// The kinds table that makes the `signed_envelope` samples decode.
pub const ENVELOPE_KINDS: &[(&str, &str)] = &[
    ("event.pass.installed", "INSTALLED"),
    ("event.pass.uninstalled", "UNINSTALLED"),
];
