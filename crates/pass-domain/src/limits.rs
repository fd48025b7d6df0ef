//! Bounds on everything that comes from outside. One place, so that both services and both stores agree.

/// Longest vendor pass id, installation id or other identifier, in bytes of visible ASCII.
pub const ID_BYTES_MAX: usize = 256;
/// Longest source uid or name, in bytes.
pub const SOURCE_BYTES_MAX: usize = 63;
/// Longest ordinary text (a reference, a vendor kind, an attribute value), in bytes; longer ones are cut and noted.
pub const TEXT_BYTES_MAX: usize = 1_024;
/// Longest attribute name, in bytes; longer ones are dropped and noted.
pub const ATTRIBUTE_NAME_BYTES_MAX: usize = 128;
/// Most attributes on one fact; further ones are dropped and noted.
pub const ATTRIBUTES_MAX: usize = 64;
/// Most facts one delivery may yield.
pub const FACTS_PER_DELIVERY_MAX: usize = 32;
/// Most installations a pass remembers; past it the oldest closed one is forgotten first.
pub const INSTALLATIONS_MAX: usize = 256;
/// Most notes an adapter may leave on one delivery.
pub const NOTES_MAX: usize = 16;
/// Deepest JSON nesting that is decoded.
pub const JSON_DEPTH_MAX: usize = 32;
/// Most allow-listed headers stored with a delivery.
pub const HEADERS_MAX: usize = 16;
/// Longest stored path with query, in bytes.
pub const PATH_BYTES_MAX: usize = 2_048;
