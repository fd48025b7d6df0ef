//! Exporters to an OTLP collector over gRPC: where it is, and how to reach it.
//!
//! The channel is ours and not the exporter's, so that TLS is configured and reloaded as everywhere else. Headers come
//! from the standard variables, which the exporter reads by itself.

use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use opentelemetry_otlp::{
    MetricExporter, SpanExporter, WithExportConfig as _, WithTonicConfig as _,
};
use tonic::transport::{Channel, Endpoint};

use super::TelemetryConfig;
use crate::tls::{Connector, TlsClient};

/// The standard variable for whatever has none of its own.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// The standard variable of the time between two pushes of metrics, in milliseconds.
const METRICS_INTERVAL: &str = "OTEL_METRIC_EXPORT_INTERVAL";

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    /// The standard variable that names an endpoint for this signal alone.
    fn endpoint_variable(self) -> &'static str {
        match self {
            Signal::Traces => "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            Signal::Metrics => "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        }
    }
}

fn variable<'a>(variables: &'a [(String, String)], wanted: &str) -> Option<&'a str> {
    variables
        .iter()
        .find(|(name, value)| name == wanted && !value.is_empty())
        .map(|(_, value)| value.as_str())
}

/// Where a collector is, and the key or variable that says so.
fn endpoint<'a>(
    config: &'a TelemetryConfig,
    signal: Signal,
    variables: &'a [(String, String)],
) -> Option<(&'static str, &'a str)> {
    let configured = config.otlp_endpoint.as_deref();
    let set = |name| Some((name, variable(variables, name)?));
    configured
        .map(|endpoint| ("telemetry.otlp_endpoint", endpoint))
        .or_else(|| set(signal.endpoint_variable()))
        .or_else(|| set(ENDPOINT))
}

/// Whether this can be the endpoint of a collector.
///
/// # Errors
/// What is wrong with it, without any of it: it may hold a password.
pub(super) fn check_endpoint(endpoint: &str) -> Result<Uri, &'static str> {
    let uri: Uri = endpoint.parse().map_err(|_| "is no URI")?;
    if uri.scheme() != Some(&Scheme::HTTP) && uri.scheme() != Some(&Scheme::HTTPS) {
        return Err("begins with neither http:// nor https://");
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            Err("has a user, who would not be told to the collector")
        }
        Some(authority) if !authority.host().is_empty() => Ok(uri),
        _ => Err("names no host"),
    }
}

/// The time between two pushes of metrics: as configured; where that is the default, as the environment says,
/// if that is within the configuration's bounds.
pub(crate) fn metrics_interval(
    config: &TelemetryConfig,
    variables: &[(String, String)],
) -> Duration {
    let configured = config.metrics_interval;
    if configured != TelemetryConfig::default().metrics_interval {
        return configured.get();
    }
    variable(variables, METRICS_INTERVAL)
        .and_then(|text| text.parse().ok())
        .map(Duration::from_millis)
        .filter(|interval| (Duration::from_secs(1)..=Duration::from_mins(10)).contains(interval))
        .unwrap_or(configured.get())
}

/// An exporter, and its TLS if it has one, to be reloaded.
pub(crate) type Exporter<E> = (E, Option<TlsClient>);

/// Makes a channel that connects when it is first used.
fn channel(
    config: &TelemetryConfig,
    (key, endpoint): (&'static str, &str),
) -> Result<(Channel, Option<TlsClient>), String> {
    if tokio::runtime::Handle::try_current().is_err() {
        return Err("telemetry was not initialised within a tokio runtime".to_owned());
    }
    let refuse = |problem| format!("the endpoint in {key} {problem}");
    let uri = check_endpoint(endpoint).map_err(refuse)?;
    let target = Endpoint::from(uri)
        .timeout(config.export_timeout.get())
        .connect_timeout(config.export_timeout.get());
    let (connector, tls) = if target.uri().scheme() == Some(&Scheme::HTTPS) {
        let settings = config.tls.clone().unwrap_or_default();
        let tls =
            TlsClient::load("telemetry.tls", &settings).map_err(|faults| faults.to_string())?;
        let host = target.uri().host().unwrap_or_default();
        let connector = tls
            .connector(host)
            .ok_or_else(|| refuse("has a host that no certificate can name"))?;
        (connector, Some(tls))
    } else {
        (Connector::plaintext(), None)
    };
    Ok((target.connect_with_connector_lazy(connector), tls))
}

/// The exporter of spans, if there is an endpoint.
pub(crate) fn span_exporter(
    config: &TelemetryConfig,
    variables: &[(String, String)],
) -> Result<Option<Exporter<SpanExporter>>, String> {
    let Some(endpoint) = endpoint(config, Signal::Traces, variables) else {
        return Ok(None);
    };
    let (channel, tls) = channel(config, endpoint)?;
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_channel(channel)
        .with_timeout(config.export_timeout.get())
        .build();
    let exporter = exporter.map_err(|error| error.to_string())?;
    Ok(Some((exporter, tls)))
}

/// The exporter of metrics, if there is an endpoint.
pub(crate) fn metric_exporter(
    config: &TelemetryConfig,
    variables: &[(String, String)],
) -> Result<Option<Exporter<MetricExporter>>, String> {
    let Some(endpoint) = endpoint(config, Signal::Metrics, variables) else {
        return Ok(None);
    };
    let (channel, tls) = channel(config, endpoint)?;
    let exporter = MetricExporter::builder()
        .with_tonic()
        .with_channel(channel)
        .with_timeout(config.export_timeout.get())
        .build();
    let exporter = exporter.map_err(|error| error.to_string())?;
    Ok(Some((exporter, tls)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Faults, Validate as _};

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_configured_endpoint_wins_over_the_environment_and_a_signals_own_over_the_common_one() {
        let set = variables(&[
            (ENDPOINT, "http://b:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://a:4317"),
        ]);
        let mut config = TelemetryConfig::default();
        assert_eq!(endpoint(&config, Signal::Traces, &[]), None);
        assert_eq!(
            endpoint(&config, Signal::Traces, &set),
            Some((Signal::Traces.endpoint_variable(), "http://a:4317"))
        );
        assert_eq!(
            endpoint(&config, Signal::Metrics, &set),
            Some((ENDPOINT, "http://b:4317"))
        );
        config.otlp_endpoint = Some("http://c:4317".to_owned());
        assert_eq!(
            endpoint(&config, Signal::Metrics, &set),
            Some(("telemetry.otlp_endpoint", "http://c:4317"))
        );
    }

    #[tokio::test]
    async fn an_endpoint_that_is_refused_is_named_by_where_it_stands_and_not_shown() {
        let bad = [
            "http://u:PASSWORD@bad host:4317",
            "http://u:PASSWORD@host:4317",
            "ftp://u:PASSWORD@host:4317",
            "u:PASSWORD@host:4317",
            "//PASSWORD",
        ];
        for text in bad {
            let mut config = TelemetryConfig::default();
            let set = variables(&[(ENDPOINT, text)]);
            let by_variable = metric_exporter(&config, &set).unwrap_err();
            assert!(by_variable.contains(ENDPOINT), "{by_variable}");
            config.otlp_endpoint = Some(text.to_owned());
            let by_file = span_exporter(&config, &[]).unwrap_err();
            assert!(by_file.contains("telemetry.otlp_endpoint"), "{by_file}");
            let mut faults = Faults::default();
            config.validate(&mut faults);
            assert_eq!(faults.len(), 1, "{text}");
            let told = format!("{by_variable} {by_file} {faults}");
            assert!(!told.contains("PASSWORD"), "{told}");
        }
        assert!(check_endpoint("https://[::1]:4317/").is_ok());
    }

    #[test]
    fn the_environments_interval_counts_only_beside_the_default_and_within_bounds() {
        let seconds = |config: &TelemetryConfig, text| {
            metrics_interval(config, &variables(&[(METRICS_INTERVAL, text)])).as_secs()
        };
        let mut config = TelemetryConfig::default();
        assert_eq!(metrics_interval(&config, &[]).as_secs(), 30);
        assert_eq!(seconds(&config, "5000"), 5);
        assert_eq!(seconds(&config, "5"), 30);
        assert_eq!(seconds(&config, "soon"), 30);
        config.metrics_interval = crate::config::Duration::from_secs(7);
        assert_eq!(seconds(&config, "5000"), 7);
    }
}
