//! Endpoints as people write them, and what is behind the text.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tonic::transport::Endpoint;

use super::Credentials;
use crate::config::{Faults, Validate};
use crate::tls::{self, Connector};

/// Most endpoints of one channel.
const ENDPOINTS_MAX: usize = 64;
/// Ports where none is written.
const PORT_PLAIN: u16 = 80;
const PORT_TLS: u16 = 443;

/// The endpoints of a channel: one text or a list of texts in TOML, separated by
/// commas where there is only one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(Vec<String>);

/// An endpoint that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// One of the texts is no endpoint.
    #[error(
        "`{endpoint}` is no gRPC endpoint; write http://host:port, or https://host:port for TLS"
    )]
    Malformed {
        /// The text that was given.
        endpoint: String,
    },
    /// Some have TLS and some have not, or credentials without TLS were given.
    #[error("endpoints with TLS and without it; write https:// everywhere or nowhere")]
    Mixed,
    /// There is none, or there are too many.
    #[error("{count} endpoints; write 1 to {ENDPOINTS_MAX}")]
    Count {
        /// How many were given.
        count: usize,
    },
}

/// One endpoint that was checked, and how to connect there.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The configured URI; its scheme and authority are what requests carry.
    pub(super) endpoint: Endpoint,
    /// A name, or an address without the brackets of IPv6.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) credentials: Credentials,
    pub(super) connector: Connector,
}

/// The parts of an endpoint's text.
struct Parsed {
    endpoint: Endpoint,
    host: String,
    port: u16,
    tls: bool,
}

impl Parsed {
    fn parse(text: &str) -> Result<Self, EndpointError> {
        let refuse = || EndpointError::Malformed {
            // A user before the host, who has no meaning here, may come with a password.
            endpoint: match text.rsplit_once('@') {
                Some((_, host)) => format!("…@{host}"),
                None => text.to_owned(),
            },
        };
        let endpoint = Endpoint::from_shared(text.to_owned()).map_err(|_| refuse())?;
        let uri = endpoint.uri();
        let host = uri.host().unwrap_or_default();
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(refuse()),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || (tls && tls::server_name(host).is_none()) {
            return Err(refuse());
        }
        Ok(Self {
            host: host.to_owned(),
            port: uri
                .port_u16()
                .unwrap_or(if tls { PORT_TLS } else { PORT_PLAIN }),
            tls,
            endpoint,
        })
    }
}

impl Target {
    fn new(text: &str, credentials: &Credentials) -> Result<Self, EndpointError> {
        let Parsed {
            endpoint,
            host,
            port,
            tls,
        } = Parsed::parse(text)?;
        let connector = match (tls, &credentials.tls) {
            (false, None) => Connector::plaintext(),
            (true, Some(tls)) => tls
                .connector(&host)
                .ok_or_else(|| EndpointError::Malformed {
                    endpoint: text.to_owned(),
                })?,
            (false, Some(_)) | (true, None) => return Err(EndpointError::Mixed),
        };
        Ok(Self {
            endpoint,
            host,
            port,
            credentials: credentials.clone(),
            connector,
        })
    }

    /// The address, if the host is one and needs no lookup.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(ip, self.port))
    }
}

impl Endpoints {
    /// Checks all of them.
    pub(super) fn targets(&self, credentials: &Credentials) -> Result<Vec<Target>, EndpointError> {
        let count = self.0.len();
        if count == 0 || count > ENDPOINTS_MAX {
            return Err(EndpointError::Count { count });
        }
        self.0
            .iter()
            .map(|text| Target::new(text, credentials))
            .collect()
    }

    /// Says whether any is plaintext and not on this machine.
    pub(super) fn in_the_clear(&self) -> bool {
        let parsed = self.0.iter().filter_map(|text| Parsed::parse(text).ok());
        parsed.filter(|one| !one.tls).any(|one| {
            let ip: Option<IpAddr> = one.host.parse().ok();
            ip.map_or(one.host != "localhost", |ip| !ip.is_loopback())
        })
    }

    /// Says whether TLS is asked for, by any of them.
    pub(super) fn is_tls(&self) -> bool {
        self.0.iter().any(|text| text.starts_with("https:"))
    }
}

impl Validate for Endpoints {
    fn validate(&self, faults: &mut Faults) {
        let count = self.0.len();
        if count == 0 || count > ENDPOINTS_MAX {
            faults.invalid(
                "endpoint",
                format!("{count} endpoints"),
                format!("1 to {ENDPOINTS_MAX}"),
                "list every server once, or one host name that stands for all",
            );
        }
        for (index, text) in self.0.iter().enumerate().take(ENDPOINTS_MAX) {
            let key = match count {
                1 => "endpoint".to_owned(),
                _ => format!("endpoint[{index}]"),
            };
            match Parsed::parse(text) {
                Err(_) => faults.invalid(
                    &key,
                    "not the URI of a gRPC server",
                    "http://host:port, or https://host:port for TLS",
                    "write the scheme, the host and the port",
                ),
                Ok(parsed) if parsed.tls != self.is_tls() => faults.invalid(
                    &key,
                    "is plaintext, and another endpoint has TLS",
                    "the same scheme for all",
                    "write https:// everywhere or nowhere",
                ),
                Ok(_) => {}
            }
        }
    }
}

impl From<&str> for Endpoints {
    fn from(text: &str) -> Self {
        Self(text.split(',').map(|one| one.trim().to_owned()).collect())
    }
}

impl From<String> for Endpoints {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl<S: Into<String>> FromIterator<S> for Endpoints {
    fn from_iter<I: IntoIterator<Item = S>>(texts: I) -> Self {
        Self(texts.into_iter().map(Into::into).collect())
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl Serialize for Endpoints {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_str(one),
            many => serializer.collect_seq(many),
        }
    }
}

impl<'de> Deserialize<'de> for Endpoints {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Endpoints;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"http://host:port\", \"https://host:port\" or a list of such")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Endpoints, E> {
                Ok(text.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Endpoints, A::Error> {
                let mut all = Vec::new();
                // One more than allowed is kept, for the check to see it.
                while let Some(text) = texts.next_element::<String>()? {
                    if all.len() <= ENDPOINTS_MAX {
                        all.push(text);
                    }
                }
                Ok(Endpoints(all))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};
    use crate::grpc::ChannelConfig;

    /// Loads the keys of a file and one environment variable.
    fn read(toml: &str, variable: Option<&str>) -> Result<ChannelConfig, Faults> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        load(&Sources {
            file: Some(file.path().to_owned()),
            env_prefix: "KIT",
            env: variable
                .map(|text| ("KIT__ENDPOINT".to_owned(), text.to_owned()))
                .into_iter()
                .collect(),
            section: None,
        })
    }

    #[test]
    fn one_text_a_list_and_commas_mean_the_same() {
        let both: Endpoints = ["http://a:1", "http://b:2"].into_iter().collect();
        for (toml, variable) in [
            (r#"endpoint = ["http://a:1", "http://b:2"]"#, None),
            (r#"endpoint = "http://a:1, http://b:2""#, None),
            ("", Some("http://a:1,http://b:2")),
        ] {
            assert_eq!(read(toml, variable).unwrap().endpoint, both, "{toml}");
        }
        let one = read(r#"endpoint = "http://a:1""#, None).unwrap().endpoint;
        assert_eq!(one.to_string(), "http://a:1");
        assert_eq!(read("", None).unwrap(), ChannelConfig::default());
    }

    #[test]
    fn endpoints_print_as_they_are_read() {
        for toml in [
            "endpoint = \"http://a:1\"\n",
            "endpoint = [\"http://a:1\", \"http://b:2\"]\n",
        ] {
            let config = read(toml, None).unwrap();
            let printed = toml::to_string(&config).unwrap();
            assert!(printed.starts_with(toml), "{printed}");
        }
    }

    #[test]
    fn each_bad_endpoint_is_a_fault_with_its_place() {
        for (toml, paths) in [
            (r#"endpoint = "a:1""#, vec!["endpoint"]),
            ("endpoint = []", vec!["endpoint"]),
            (
                r#"endpoint = ["http://a:1", "https://b:2", "http://c:3", ""]"#,
                vec!["endpoint[0]", "endpoint[2]", "endpoint[3]"],
            ),
            (r#"endpoint = "http://a:1,""#, vec!["endpoint[1]"]),
        ] {
            let faults = read(toml, None).unwrap_err();
            let found: Vec<_> = faults.iter().map(|fault| fault.path.as_str()).collect();
            assert_eq!(found, paths, "{toml}");
        }
        let at_most = |count| {
            let all: Endpoints = (0..count).map(|port| format!("http://a:{port}")).collect();
            all.targets(&Credentials::default())
                .map(|targets| targets.len())
        };
        assert_eq!(at_most(ENDPOINTS_MAX), Ok(ENDPOINTS_MAX));
        let count = ENDPOINTS_MAX + 1;
        assert_eq!(at_most(count), Err(EndpointError::Count { count }));
        let list = vec!["\"http://a:1\""; 1000].join(",");
        assert_eq!(
            read(&format!("endpoint = [{list}]"), None)
                .unwrap_err()
                .len(),
            1
        );
    }

    #[test]
    fn what_leaves_the_machine_without_tls_is_known() {
        for (text, clear) in [
            ("http://127.0.0.1:1", false),
            ("http://[::1]:1,http://localhost:2", false),
            ("https://10.0.0.1:1", false),
            ("http://127.0.0.1:1,http://10.0.0.1:1", true),
            ("http://pass-state:1", true),
        ] {
            assert_eq!(Endpoints::from(text).in_the_clear(), clear, "{text}");
        }
    }

    #[test]
    fn addresses_need_no_lookup_and_names_do() {
        for (text, address) in [
            ("http://127.0.0.1:50051", Some("127.0.0.1:50051")),
            ("http://[::1]:50051", Some("[::1]:50051")),
            ("http://127.0.0.1", Some("127.0.0.1:80")),
            ("http://localhost:50051", None),
        ] {
            let target = Target::new(text, &Credentials::default()).unwrap();
            assert_eq!(target.address(), address.map(|text| text.parse().unwrap()));
        }
    }
}
