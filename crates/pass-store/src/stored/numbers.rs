//! The numbers of words in stored forms. Released numbers never change; 0 is never used.

use pass_domain::delivery::{AuthScheme, Method, Outcome, UndecodableReason};
use pass_domain::fact::{Assertion, IdentityBasis, InstallationScope, TimeBasis, WalletKind};
use pass_domain::fold::State;
use pass_domain::kind::Kind;

use crate::contract::QuarantineState;

/// A word that is stored as a number.
pub(crate) trait Numbered: Copy {
    /// The word's number.
    fn number(self) -> i32;
    /// The word with that number.
    fn from_number(number: i32) -> Option<Self>;
}

macro_rules! numbered {
    ($($name:ident { $($variant:ident = $number:literal),* $(,)? })*) => {
        $(impl Numbered for $name {
            fn number(self) -> i32 {
                match self { $($name::$variant => $number),* }
            }

            fn from_number(number: i32) -> Option<Self> {
                match number { $($number => Some($name::$variant),)* _ => None }
            }
        })*
    };
}

numbered! {
    Assertion { Reported = 1, Derived = 2 }
    IdentityBasis { VendorId = 1, TransitionTime = 2, EventFields = 3, Content = 4, Heuristic = 5 }
    TimeBasis { VendorEvent = 1, VendorState = 2, Received = 3 }
    WalletKind {
        Apple = 1, Google = 2, Samsung = 3, Huawei = 4, WalletPasses = 5, Pass2u = 6, PassWallet = 7, Vendor = 8,
        AndroidOther = 9, Unknown = 10,
    }
    InstallationScope { Registration = 1, Device = 2, Account = 3 }
    AuthScheme { ApiKey = 1, Hmac = 2, StandardWebhooks = 3, SignedEnvelope = 4, UrlSecret = 5, None = 6 }
    Method { Post = 1, Put = 2, Delete = 3 }
    Outcome { Applied = 1, Duplicate = 2, Quarantined = 3, Control = 4 }
    UndecodableReason {
        NotJson = 1, TooDeep = 2, FieldMissing = 3, FieldInvalid = 4, FieldDuplicate = 5, KindUnknown = 6,
        ContentMismatch = 7, StoreRefused = 8,
    }
    QuarantineState { Open = 1, Replayed = 2, Discarded = 3 }
}

impl Numbered for Kind {
    fn number(self) -> i32 {
        Kind::number(self)
    }

    fn from_number(number: i32) -> Option<Self> {
        Kind::from_number(number)
    }
}

impl Numbered for State {
    fn number(self) -> i32 {
        State::number(self)
    }

    fn from_number(number: i32) -> Option<Self> {
        State::from_number(number)
    }
}
