//! Who the client is, where proxies stand between it and us.
//!
//! A proxy adds the address that it saw to the end of a header; what stood there before is what somebody else says. So
//! the list is read from the right: addresses of trusted proxies are passed over, and the first other one is the
//! client. Only a header that a trusted proxy sent is looked at. Whatever can't be read ends the search, and the client
//! is nobody: on no allow-list, and held against the proxy where addresses are counted.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// Longest list of addresses that is read, in bytes; over it the client is nobody.
const LIST_BYTES_MAX: usize = 4_096;

/// The proxies that are believed, and where they say for whom they speak.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Proxies {
    trusted: Vec<IpNet>,
    header: HeaderName,
}

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// This address.
    Known(IpAddr),
    /// Somebody behind this proxy, which does not say whom in a form that can be read.
    Unknown {
        /// The proxy's address.
        proxy: IpAddr,
    },
}

impl Client {
    /// The address that allow-lists are asked about; nobody has none and is on no list.
    pub(crate) fn allowed_as(self) -> Option<IpAddr> {
        match self {
            Client::Known(address) => Some(address),
            Client::Unknown { .. } => None,
        }
    }

    /// The address that requests and failures are counted under.
    pub(crate) fn counted_as(self) -> IpAddr {
        match self {
            Client::Known(address) | Client::Unknown { proxy: address } => address,
        }
    }
}

impl Proxies {
    pub(crate) fn new(trusted: &[IpNet], header: HeaderName) -> Self {
        Self {
            trusted: trusted.to_vec(),
            header,
        }
    }

    /// The client of a request that came from `peer`.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Client {
        let peer = peer.to_canonical();
        if !self.trusts(peer) || !headers.contains_key(&self.header) {
            return Client::Known(peer);
        }
        let unknown = Client::Unknown { proxy: peer };
        let Some(list) = self.list(headers) else {
            return unknown;
        };
        let hops = if self.header == http::header::FORWARDED {
            forwarded(&list)
        } else {
            list.split(',').map(address).collect()
        };
        let mut client = peer;
        for hop in hops.into_iter().rev() {
            let Some(hop) = hop else { return unknown };
            client = hop;
            if !self.trusts(hop) {
                break;
            }
        }
        Client::Known(client)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted
            .iter()
            .any(|network| network.contains(&address))
    }

    /// All lines of the header as one; `None` if it is too long or not text.
    fn list(&self, headers: &HeaderMap) -> Option<String> {
        let mut list = String::new();
        for line in headers.get_all(&self.header) {
            if list.len() + line.len() >= LIST_BYTES_MAX {
                return None;
            }
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(line.to_str().ok()?);
        }
        Some(list)
    }
}

/// An address as proxies write it: alone, with a port, in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|with_port| with_port.ip()))
        .ok()
        .or_else(|| {
            let inner = text.strip_prefix('[')?.strip_suffix(']')?;
            inner.parse().map(IpAddr::V6).ok()
        })?;
    Some(address.to_canonical())
}

/// The `for` of each element of a `Forwarded` header (RFC 7239). An element without one, with two, or with one that is no
/// address (`unknown`, `_hidden`) is a hop that can't be read.
///
/// A quoted string that a client left open takes in what the proxy adds, up to the next quote. So where one stands out of
/// place nothing of the list is read.
fn forwarded(list: &str) -> Vec<Option<IpAddr>> {
    if !quotes_fit(list) {
        return vec![None];
    }
    split_unquoted(list, ',')
        .into_iter()
        .map(|element| {
            let mut found = None;
            for pair in split_unquoted(element, ';') {
                let Some((name, value)) = pair.split_once('=') else {
                    continue;
                };
                if !name.trim().eq_ignore_ascii_case("for") {
                    continue;
                }
                if found.is_some() {
                    return None;
                }
                let value = value.trim();
                let unquoted = value
                    .strip_prefix('"')
                    .map_or(Some(value), |rest| rest.strip_suffix('"'));
                found = Some(unquoted.and_then(address)?);
            }
            found
        })
        .collect()
}

/// Says whether each quoted string is a whole value: right behind a `=`, and before a `;`, a `,` or the end.
fn quotes_fit(list: &str) -> bool {
    let (mut quoted, mut escaped, mut before) = (false, false, None);
    for (index, c) in list.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if quoted => {
                quoted = false;
                let rest = list[index + 1..].trim_start();
                if !(rest.is_empty() || rest.starts_with([';', ','])) {
                    return false;
                }
            }
            '"' if before == Some('=') => quoted = true,
            '"' => return false,
            _ => {}
        }
        before = Some(c);
    }
    !quoted
}

/// Splits at a character where it is not inside a quoted string.
fn split_unquoted(text: &str, at: char) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            c if c == at && !quoted => {
                parts.push(&text[start..index]);
                start = index + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn proxies(header: &'static str) -> Proxies {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"].map(|text| text.parse().unwrap());
        Proxies::new(&trusted, HeaderName::from_static(header))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn ask(header: &'static str, peer: &str, lines: &[&str]) -> Client {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header, line.parse().unwrap());
        }
        proxies(header).client(ip(peer), &headers)
    }

    #[track_caller]
    fn check(header: &'static str, peer: &str, lines: &[&str], client: &str) {
        let wanted = Client::Known(ip(client));
        assert_eq!(ask(header, peer, lines), wanted, "{peer} {lines:?}");
    }

    #[track_caller]
    fn check_unknown(header: &'static str, lines: &[&str]) {
        let client = ask(header, PROXY, lines);
        assert_eq!(client, Client::Unknown { proxy: ip(PROXY) }, "{lines:?}");
        assert_eq!(client.allowed_as(), None);
        assert_eq!(client.counted_as(), ip(PROXY));
    }

    #[test]
    fn the_first_address_from_the_right_that_is_no_trusted_proxy_is_the_client() {
        let header = "x-forwarded-for";
        check(header, PROXY, &["198.51.100.7"], "198.51.100.7");
        // What a client claims of itself stands left of what the proxy saw.
        check(header, PROXY, &["192.0.2.1, 198.51.100.7"], "198.51.100.7");
        check(
            header,
            PROXY,
            &["198.51.100.7, 10.9.9.9 , 10.0.0.2"],
            "198.51.100.7",
        );
        check(
            header,
            PROXY,
            &["192.0.2.1", "198.51.100.7,10.0.0.2"],
            "198.51.100.7",
        );
        check(header, PROXY, &["198.51.100.7:4711"], "198.51.100.7");
        check(header, PROXY, &["2001:db9::1"], "2001:db9::1");
        check(header, PROXY, &["[2001:db9::1]:443"], "2001:db9::1");
        check(header, PROXY, &["[2001:db9::1]"], "2001:db9::1");
        check(header, PROXY, &["::ffff:198.51.100.7"], "198.51.100.7");
        check(header, "::ffff:10.0.0.1", &["198.51.100.7"], "198.51.100.7");
        check(header, "2001:db8::5", &["198.51.100.7"], "198.51.100.7");
        // What is left of the client is nobody's business.
        check(header, PROXY, &["rubbish, 198.51.100.7"], "198.51.100.7");
    }

    #[test]
    fn whoever_is_no_trusted_proxy_speaks_for_itself() {
        check(
            "x-forwarded-for",
            "198.51.100.9",
            &["192.0.2.1"],
            "198.51.100.9",
        );
        check(
            "x-forwarded-for",
            "198.51.100.9",
            &["rubbish"],
            "198.51.100.9",
        );
        let nobody = Proxies::new(&[], HeaderName::from_static("x-forwarded-for"));
        let headers = [("x-forwarded-for", "192.0.2.1")];
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let client = nobody.client(ip(PROXY), &headers.into_iter().collect());
        assert_eq!(client, Client::Known(ip(PROXY)));
    }

    #[test]
    fn a_proxy_that_speaks_for_nobody_or_for_another_proxy_is_the_client() {
        check("x-forwarded-for", PROXY, &[], PROXY);
        check(
            "x-forwarded-for",
            PROXY,
            &["10.0.0.3, 10.0.0.2"],
            "10.0.0.3",
        );
        check("forwarded", PROXY, &[], PROXY);
    }

    #[test]
    fn what_cannot_be_read_is_nobody() {
        let long = "1".repeat(LIST_BYTES_MAX);
        for bad in [
            "",
            "rubbish",
            "198.51.100.7,",
            "198.51.100.7, rubbish",
            "198.51.100.7, 1.2.3",
            "198.51.100.7, 010.1.2.3",
            "198.51.100.7, 10.0.0.2:",
            "unknown",
            &long,
        ] {
            check_unknown("x-forwarded-for", &[bad]);
        }
        let half = "1".repeat(LIST_BYTES_MAX / 2);
        check_unknown("x-forwarded-for", &[&half, &half, "198.51.100.7"]);
        let mut headers = HeaderMap::new();
        let bytes = http::HeaderValue::from_bytes(b"198.51.100.7\xff").unwrap();
        headers.insert("x-forwarded-for", bytes);
        let client = proxies("x-forwarded-for").client(ip(PROXY), &headers);
        assert_eq!(client, Client::Unknown { proxy: ip(PROXY) });
    }

    #[test]
    fn the_standard_header_is_read_as_its_rfc_says() {
        let header = "forwarded";
        check(header, PROXY, &["for=198.51.100.7"], "198.51.100.7");
        check(
            header,
            PROXY,
            &["For=192.0.2.1, by=10.0.0.1;FOR=\"198.51.100.7:80\";proto=https"],
            "198.51.100.7",
        );
        check(
            header,
            PROXY,
            &["for=\"[2001:db9::1]:4711\""],
            "2001:db9::1",
        );
        check(
            header,
            PROXY,
            &["for=198.51.100.7;host=\"a,b;for=192.0.2.1\""],
            "198.51.100.7",
        );
        check(
            header,
            PROXY,
            &["for=198.51.100.7", "for=10.0.0.2"],
            "198.51.100.7",
        );
        for bad in [
            "for=unknown",
            "for=_hidden",
            "proto=https",
            "198.51.100.7",
            "for=\"198.51.100.7",
            "for=198.51.100.7;for=198.51.100.8",
            "for=198.51.100.7, host=\"unclosed, for=192.0.2.1",
        ] {
            check_unknown(header, &[bad]);
        }
    }

    /// What a client leaves open would swallow what the trusted proxy says of it.
    #[test]
    fn a_quote_that_the_client_leaves_open_hides_nothing() {
        let header = "forwarded";
        let added = [
            "for=198.51.100.7",
            "for=\"198.51.100.7:4711\"",
            "for=\"[2001:db9::7]\";proto=https",
            "by=\"10.0.0.1\";for=198.51.100.7;host=\"callbacks.example\"",
        ];
        for claimed in [
            "for=192.0.2.1;host=\"x",
            "for=192.0.2.1;host=\"x\\",
            "for=192.0.2.1;host=\"x\\\"",
            "for=192.0.2.1;host=x\"",
            "for=192.0.2.1;\"",
            "for=192.0.2.1;host=\"x\"y",
            "for=\"192.0.2.1",
        ] {
            for added in added {
                check_unknown(header, &[claimed, added]);
                check_unknown(header, &[&format!("{claimed}, {added}")]);
            }
        }
        check(
            header,
            PROXY,
            &["for=192.0.2.1;host=\"a\\\"b\" , for=\"198.51.100.7\""],
            "198.51.100.7",
        );
    }

    /// Whatever the client sends, an address that the proxy saw and added is the client, or nobody is.
    #[test]
    fn no_claim_of_a_client_is_believed() {
        use proptest::prelude::*;
        let claimed = proptest::collection::vec(
            prop_oneof![
                Just("for=192.0.2.1"),
                Just("host="),
                Just("\""),
                Just("\\"),
                Just(","),
                Just(";"),
                Just(" "),
                Just("x"),
            ],
            0..12,
        );
        let added = prop_oneof![
            Just("for=198.51.100.7"),
            Just("for=\"198.51.100.7\""),
            Just("for=\"198.51.100.7:80\";host=\"a;b,c\""),
        ];
        proptest!(|(claimed in claimed, added in added, lines in any::<bool>())| {
            let claimed = claimed.concat();
            let one = format!("{claimed}, {added}");
            let client = if lines {
                ask("forwarded", PROXY, &[&claimed, added])
            } else {
                ask("forwarded", PROXY, &[&one])
            };
            prop_assert!(
                [Some(ip("198.51.100.7")), None].contains(&client.allowed_as()),
                "{one}: {client:?}"
            );
        });
    }

    #[test]
    fn any_header_gives_an_answer() {
        use proptest::prelude::*;
        let bytes = proptest::collection::vec(any::<u8>(), 0..200);
        proptest!(|(bytes in bytes, standard in any::<bool>())| {
            let header = if standard { "forwarded" } else { "x-forwarded-for" };
            if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(header, value);
                proxies(header).client(ip(PROXY), &headers);
            }
        });
    }
}
