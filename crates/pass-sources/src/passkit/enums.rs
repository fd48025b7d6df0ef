//! PassKit's numbers and names. All of these lists have grown before: what is unknown keeps its number.

use std::borrow::Cow;

use pass_domain::fact::WalletKind;
use pass_domain::kind::Kind;

/// What a callback's `event` names, and the kind of fact it is.
pub(super) fn event_kind(event: &str) -> Option<Kind> {
    Some(match event {
        "PASS_EVENT_RECORD_CREATED" | "MEMBER_EVENT_ENROLLED" | "COUPON_EVENT_CREATED" => {
            Kind::Created
        }
        "PASS_EVENT_INSTALLED" => Kind::Installed,
        "PASS_EVENT_RECORD_UPDATED" | "MEMBER_EVENT_UPDATED" | "COUPON_EVENT_UPDATED" => {
            Kind::Updated
        }
        "PASS_EVENT_UNINSTALLED" => Kind::Uninstalled,
        "PASS_EVENT_INVALIDATED" => Kind::Voided,
        "PASS_EVENT_RECORD_DELETED" | "COUPON_EVENT_DELETED" => Kind::Deleted,
        "COUPON_EVENT_REDEEMED" => Kind::Redeemed,
        _ => return None,
    })
}

/// `Status`: the vendor's best guess of what the pass is. Absent means 0.
const STATUS: &[(i64, &str)] = &[
    (0, "PASS_ISSUED"),
    (1, "PASS_INSTALLED"),
    (2, "PASS_UNINSTALLED"),
    (3, "PASS_INVALIDATED"),
];

/// `LifecycleEvents`: what the pass has ever attained. The set only grows, so a bit says "once", not "now".
const LIFECYCLE: &[(i64, &str)] = &[
    (0, "NO_STATUS"),
    (1, "RENDERED"),
    (2, "INSTALLED_APPLE"),
    (4, "INSTALLED_GOOGLE"),
    (8, "INSTALLED_ANDROID_OTHER"),
    (1_024, "UNINSTALLED_APPLE"),
    (2_048, "UNINSTALLED_GOOGLE"),
    (4_096, "UNINSTALLED_ANDROID_OTHER"),
    (8_192, "APPLE_PASS_CREATED"),
    (16_384, "GOOGLE_PAY_RECORD_CREATED"),
    (262_144, "INVALIDATE_REQUESTED"),
    (524_288, "INVALIDATE_CONFIRMED"),
    (1_048_576, "PASS_PERSONALISATION_REQUESTED"),
    (2_097_152, "PASS_PERSONALISED"),
    (4_194_304, "PASS_ICLOUD_BOUND"),
    (8_388_608, "PASS_EMAIL_BOUNCED"),
    (16_777_216, "PASS_EMAIL_COMPLAINED"),
];

/// `PassProtocol`: which product the pass belongs to. 1000 and up are proprietary.
const PROTOCOL: &[(i64, &str)] = &[
    (0, "PASS_PROTOCOL_DO_NOT_USE"),
    (1, "RAW_PROTOCOL"),
    (2, "V1_PROTOCOL"),
    (3, "FLIGHT_PROTOCOL"),
    (100, "MEMBERSHIP"),
    (101, "SINGLE_USE_COUPON"),
    (102, "EVENT_TICKETING"),
];

/// `DeviceAttributes`: what kind of device it is.
const DEVICE: &[(i64, &str)] = &[
    (0, "NoAttributes"),
    (1, "Ios"),
    (2, "Android"),
    (4, "SupportWallet"),
    (8, "WalletScanner"),
    (16, "WalletDaemon"),
    (32, "WalletPasses"),
    (64, "Windows"),
    (128, "OSX"),
    (256, "Linux"),
    (512, "Mobile"),
    (1_024, "Desktop"),
    (2_048, "Tablet"),
    (4_096, "UnsupportedIos"),
];

/// An enum value as sent: a number, or (by other encoders of the same messages) its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Code<'a> {
    Number(i64),
    Name(Cow<'a, str>),
}

fn name(table: &'static [(i64, &'static str)], number: i64) -> Option<&'static str> {
    table
        .iter()
        .find(|(known, _)| *known == number)
        .map(|(_, name)| *name)
}

/// The status' number, if known, and name; the number as text where the name is not known.
pub(super) fn status(code: &Code<'_>) -> (Option<i64>, String) {
    match code {
        Code::Number(number) => (
            Some(*number),
            name(STATUS, *number).map_or_else(|| number.to_string(), str::to_owned),
        ),
        Code::Name(text) => (
            STATUS
                .iter()
                .find(|(_, known)| known == text)
                .map(|(number, _)| *number),
            text.to_string(),
        ),
    }
}

/// A life-cycle event's name, or `LIFECYCLE_` and its number.
pub(super) fn lifecycle(code: &Code<'_>) -> String {
    match code {
        Code::Number(number) => {
            name(LIFECYCLE, *number).map_or_else(|| format!("LIFECYCLE_{number}"), str::to_owned)
        }
        Code::Name(text) => text.to_string(),
    }
}

/// A protocol's name, or `PROTOCOL_` and its number.
pub(super) fn protocol(code: &Code<'_>) -> String {
    match code {
        Code::Number(number) => {
            name(PROTOCOL, *number).map_or_else(|| format!("PROTOCOL_{number}"), str::to_owned)
        }
        Code::Name(text) => text.to_string(),
    }
}

/// Device attributes' names, joined by commas; unknown ones as `DEVICE_` and their number.
pub(super) fn devices(codes: &[Code<'_>]) -> String {
    let names: Vec<Cow<'_, str>> = codes
        .iter()
        .map(|code| match code {
            Code::Number(number) => name(DEVICE, *number)
                .map_or_else(|| Cow::Owned(format!("DEVICE_{number}")), Cow::Borrowed),
            Code::Name(text) => Cow::Borrowed(&**text),
        })
        .collect();
    names.join(",")
}

/// The wallet, if only one was ever installed: with several there is no telling which one a time is about.
pub(super) fn only_wallet(attained: &[String]) -> Option<(WalletKind, &'static str)> {
    let mut ever = [
        ("INSTALLED_APPLE", WalletKind::Apple),
        ("INSTALLED_GOOGLE", WalletKind::Google),
        ("INSTALLED_ANDROID_OTHER", WalletKind::AndroidOther),
    ]
    .into_iter()
    .filter(|(name, _)| attained.iter().any(|known| known == name));
    match (ever.next(), ever.next()) {
        (Some((name, kind)), None) => Some((kind, name)),
        _ => None,
    }
}
