//! The configuration files of a fleet's services.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use super::member::Ports;
use super::{Database, Layout, Options, SpoolKind};
use crate::sources::sources_toml;
use crate::tls::Pki;

/// Small segments, so that a test goes through several.
pub(super) const SEGMENT_BYTES: u64 = 1 << 20;
pub(super) const SPOOL_BYTES: u64 = 256 << 20;
/// A test that looks at something else does not wait for balancers that it does not have.
const DRAIN_DELAY: Duration = Duration::from_millis(50);
/// Largest record that [`super::Fleet::finish`] must be able to read: less than a segment.
pub(super) const RECORD_BYTES: usize = 512 << 10;

pub(super) fn gateway_config(
    index: usize,
    ports: &Ports,
    states: &[SocketAddr],
    layout: &Layout,
) -> String {
    let options = &layout.options;
    let endpoints: Vec<String> = states
        .iter()
        .map(|address| match options.tls {
            Some(_) => format!("https://{address}"),
            None => format!("http://{address}"),
        })
        .collect();
    let endpoint = match endpoints.as_slice() {
        [only] => format!("{only:?}"),
        several => format!("{several:?}"),
    };
    format!(
        r#"
gateway_id = "gateway-{index}"
drain_delay = "{}ms"

[http]
listen = "{}"
body_bytes_max = "64KiB"

[http.limits]
{}

[admin]
listen = "{}"

[pass_state]
endpoint = {endpoint}
{}

[forward]
retry_max = "200ms"

[spool]
{}
{}
{}
{}
"#,
        drain_delay_ms(options),
        ports.public.address(),
        options.http_limit_keys,
        ports.admin.address(),
        options.channel_keys,
        spool(layout),
        options.gateway_tables,
        tables(options, Pki::gateway_tables),
        sources_toml(),
    )
}

fn drain_delay_ms(options: &Options) -> u128 {
    options.drain_delay.unwrap_or(DRAIN_DELAY).as_millis()
}

/// The tables of a service that speaks TLS, if it does.
fn tables(options: &Options, of: fn(&Pki) -> String) -> String {
    options.tls.as_deref().map(of).unwrap_or_default()
}

/// What follows `[spool]`.
fn spool(layout: &Layout) -> String {
    let keys = &layout.options.spool_keys;
    match &layout.spool {
        SpoolKind::Embedded => {
            format!("segment_bytes = {SEGMENT_BYTES}\nbytes_max = {SPOOL_BYTES}\n{keys}")
        }
        SpoolKind::JetStream {
            servers,
            monitoring_urls,
        } => format!(
            "backend = \"jetstream\"\n\n[spool.jetstream]\nservers = {servers:?}\n\
             monitoring_urls = {monitoring_urls:?}\nreplicas = 1\nbytes_max = {SPOOL_BYTES}\n{keys}"
        ),
    }
}

pub(super) fn state_config(ports: &Ports, layout: &Layout) -> String {
    let options = &layout.options;
    let mut text = format!(
        r#"
drain_delay = "{}ms"

[grpc]
listen = "{}"

[admin]
listen = "{}"

[writer]
{}
{}
{}
"#,
        drain_delay_ms(options),
        ports.public.address(),
        ports.admin.address(),
        options.writer_keys,
        options.state_tables,
        tables(options, Pki::state_tables),
    );
    if let Database::Postgres { url } = &layout.database {
        let written = write!(
            text,
            "\n[store]\nbackend = \"postgres\"\n\n[store.postgres]\nurl = {{ value = {url:?} }}\n{}\n",
            options.store_keys
        );
        written.expect("a String takes every text");
    }
    text
}
