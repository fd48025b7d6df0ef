//! The books of the log: what came in must equal what became of it.

use std::fmt::Write as _;

use pass_proto::v1::LogBooks;

use super::paint;

/// The books, each sum beside its parts.
pub(crate) fn books(books: &LogBooks) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "  {} deliveries = {} applied + {} duplicate + {} control + {} quarantined",
        books.deliveries, books.applied, books.duplicate, books.control, books.quarantined
    );
    let _ = writeln!(
        text,
        "  {} facts = {} events + {} known already + {} quarantined",
        books.facts, books.events, books.duplicate_facts, books.quarantined_facts
    );
    match imbalance(books) {
        None => {
            let _ = writeln!(text, "  {}", paint::good("the books balance"));
        }
        Some(fault) => {
            let _ = writeln!(text, "  {}", paint::bad(&fault));
        }
    }
    text
}

/// What is wrong with the books, if anything.
pub(crate) fn imbalance(books: &LogBooks) -> Option<String> {
    let deliveries = books.applied + books.duplicate + books.control + books.quarantined;
    let facts = books.events + books.duplicate_facts + books.quarantined_facts;
    if deliveries != books.deliveries {
        return Some(format!(
            "the books do not balance: {} deliveries came in, {deliveries} are accounted for",
            books.deliveries
        ));
    }
    (facts != books.facts).then(|| {
        format!(
            "the books do not balance: {} facts were decoded, {facts} are accounted for",
            books.facts
        )
    })
}
