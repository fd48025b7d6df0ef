//! Every way a callback can be refused, and the one place where an HTTP status is chosen for it.
//!
//! Bodies are RFC 9457 problems with fixed texts: nothing the sender sent comes back, and all credentials
//! that don't hold get the same words. To a webhook sender anything but 2xx means "send it again", so the
//! table also says what is worth a retry.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use pass_domain::delivery::UndecodableReason;

/// Why a callback is not answered 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The body broke off.
    BodyBroken,
    /// The body is not JSON and the source rejects that. Nothing was stored.
    NotJson,
    /// No valid credential, whatever the cause.
    Unauthorized,
    /// No such source, or no such path.
    NotFound,
    /// The vendor does not use this method.
    MethodNotAllowed {
        /// The methods it uses, as the `Allow` header lists them.
        allow: String,
    },
    /// The body came too slowly.
    TooSlow,
    /// The body is larger than allowed.
    TooLarge,
    /// The body is not said to be JSON.
    MediaType,
    /// The body is compressed.
    ContentEncoding,
    /// The body can't be understood and the source rejects that. Nothing was stored.
    Undecodable(UndecodableReason),
    /// More deliveries came than the source, or the sender's address, may send in that time. Nothing was stored.
    RateLimited {
        /// When there is room again.
        after: Duration,
    },
    /// Too many deliveries without a valid credential came. Nothing was stored.
    TooManyFailures {
        /// When to come back.
        after: Duration,
    },
    /// Our bug.
    Internal,
    /// Too much is being handled at once.
    Busy,
    /// The spool is full.
    SpoolFull,
    /// The disk failed or does not answer. Whether the delivery is stored is unknown.
    Storage,
    /// The server that keeps the spool can't be reached or used. Whether the delivery is stored is unknown.
    SpoolUnavailable,
    /// The spool was put back to an earlier moment; nothing more is taken until someone has acted. Nothing was
    /// stored.
    SpoolRestored,
    /// The gateway is stopping.
    Stopping,
}

impl Problem {
    /// The status code.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Problem::BodyBroken | Problem::NotJson => StatusCode::BAD_REQUEST,
            Problem::Unauthorized => StatusCode::UNAUTHORIZED,
            Problem::NotFound => StatusCode::NOT_FOUND,
            Problem::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Problem::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Problem::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Problem::MediaType | Problem::ContentEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Problem::Undecodable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Problem::RateLimited { .. } | Problem::TooManyFailures { .. } => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Problem::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Problem::Busy
            | Problem::SpoolFull
            | Problem::Storage
            | Problem::SpoolUnavailable
            | Problem::SpoolRestored
            | Problem::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The last part of the problem's type, which names it for programs.
    #[must_use]
    pub fn slug(&self) -> &'static str {
        match self {
            Problem::BodyBroken => "body-broken",
            Problem::NotJson => "not-json",
            Problem::Unauthorized => "unauthorized",
            Problem::NotFound => "not-found",
            Problem::MethodNotAllowed { .. } => "method-not-allowed",
            Problem::TooSlow => "body-too-slow",
            Problem::TooLarge => "body-too-large",
            Problem::MediaType => "media-type",
            Problem::ContentEncoding => "content-encoding",
            Problem::Undecodable(_) => "undecodable",
            Problem::RateLimited { .. } => "rate-limited",
            Problem::TooManyFailures { .. } => "too-many-failures",
            Problem::Internal => "internal",
            Problem::Busy => "busy",
            Problem::SpoolFull => "spool-full",
            Problem::Storage => "storage",
            Problem::SpoolUnavailable => "spool-unavailable",
            Problem::SpoolRestored => "spool-restored",
            Problem::Stopping => "stopping",
        }
    }

    fn detail(&self) -> &'static str {
        match self {
            Problem::BodyBroken => "the body ended before its announced end",
            Problem::NotJson => "the body is not JSON",
            Problem::Unauthorized => "the delivery is not authenticated",
            Problem::NotFound => {
                "there is nothing under this path; callbacks go to /webhooks/{source}"
            }
            Problem::MethodNotAllowed { .. } => "this source takes the methods in the Allow header",
            Problem::TooSlow => "the body came too slowly",
            Problem::TooLarge => "the body is larger than this gateway takes",
            Problem::MediaType => "the body has to be application/json",
            Problem::ContentEncoding => "the body must not be compressed",
            Problem::Undecodable(_) => "the body is JSON but not an event of this source's vendor",
            Problem::RateLimited { .. } => "more deliveries came than are taken in this time",
            Problem::TooManyFailures { .. } => {
                "too many deliveries came that are not authenticated"
            }
            Problem::Internal => "something went wrong here; the delivery may be sent again",
            Problem::Busy => "too many deliveries at once",
            Problem::SpoolFull => "there is no room for deliveries at the moment",
            Problem::Storage => "the delivery could not be stored for certain",
            Problem::SpoolUnavailable => "deliveries can't be stored for certain at the moment",
            Problem::SpoolRestored => {
                "no deliveries are taken until this gateway's operator has acted"
            }
            Problem::Stopping => "this gateway is stopping",
        }
    }

    /// Seconds after which a retry makes sense.
    fn retry_after_seconds(&self) -> Option<u32> {
        match self {
            Problem::RateLimited { after } | Problem::TooManyFailures { after } => {
                Some(seconds_up(*after))
            }
            Problem::Busy => Some(1),
            Problem::Stopping | Problem::Storage | Problem::SpoolUnavailable => Some(5),
            Problem::SpoolFull | Problem::SpoolRestored => Some(30),
            Problem::BodyBroken
            | Problem::NotJson
            | Problem::Unauthorized
            | Problem::NotFound
            | Problem::MethodNotAllowed { .. }
            | Problem::TooSlow
            | Problem::TooLarge
            | Problem::MediaType
            | Problem::ContentEncoding
            | Problem::Undecodable(_)
            | Problem::Internal => None,
        }
    }

    fn body(&self) -> String {
        let status = self.status();
        let reason = match self {
            Problem::NotJson => Some(UndecodableReason::NotJson),
            Problem::Undecodable(reason) => Some(*reason),
            Problem::BodyBroken
            | Problem::Unauthorized
            | Problem::NotFound
            | Problem::MethodNotAllowed { .. }
            | Problem::TooSlow
            | Problem::TooLarge
            | Problem::MediaType
            | Problem::ContentEncoding
            | Problem::RateLimited { .. }
            | Problem::TooManyFailures { .. }
            | Problem::Internal
            | Problem::Busy
            | Problem::SpoolFull
            | Problem::Storage
            | Problem::SpoolUnavailable
            | Problem::SpoolRestored
            | Problem::Stopping => None,
        };
        // All parts are fixed texts that need no escaping; a test reads them back.
        let mut body = format!(
            r#"{{"type":"https://passline.dev/problems/{}","title":"{}","status":{},"detail":"{}""#,
            self.slug(),
            status.canonical_reason().unwrap_or_default(),
            status.as_u16(),
            self.detail(),
        );
        if let Some(reason) = reason {
            body.push_str(r#","reason":""#);
            body.push_str(reason.name());
            body.push('"');
        }
        body.push('}');
        body
    }

    /// The whole answer.
    #[must_use]
    pub fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after_seconds() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        match self {
            Problem::MethodNotAllowed { allow } => {
                let allow = HeaderValue::from_str(allow).expect("method names are visible ASCII");
                headers.insert(header::ALLOW, allow);
            }
            Problem::Unauthorized => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Webhook realm=\"passline\""),
                );
            }
            Problem::BodyBroken
            | Problem::NotJson
            | Problem::NotFound
            | Problem::TooSlow
            | Problem::TooLarge
            | Problem::MediaType
            | Problem::ContentEncoding
            | Problem::Undecodable(_)
            | Problem::RateLimited { .. }
            | Problem::TooManyFailures { .. }
            | Problem::Internal
            | Problem::Busy
            | Problem::SpoolFull
            | Problem::Storage
            | Problem::SpoolUnavailable
            | Problem::SpoolRestored
            | Problem::Stopping => {}
        }
        response
    }
}

/// Whole seconds that are not less, at least one.
fn seconds_up(time: Duration) -> u32 {
    let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    seconds
        .saturating_add(u32::from(time.subsec_nanos() > 0))
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
400 body-broken - the body ended before its announced end
400 not-json - the body is not JSON
401 unauthorized - the delivery is not authenticated
404 not-found - there is nothing under this path; callbacks go to /webhooks/{source}
405 method-not-allowed - this source takes the methods in the Allow header
408 body-too-slow - the body came too slowly
413 body-too-large - the body is larger than this gateway takes
415 media-type - the body has to be application/json
415 content-encoding - the body must not be compressed
422 undecodable - the body is JSON but not an event of this source's vendor
429 rate-limited 3 more deliveries came than are taken in this time
429 too-many-failures 1 too many deliveries came that are not authenticated
500 internal - something went wrong here; the delivery may be sent again
503 busy 1 too many deliveries at once
503 spool-full 30 there is no room for deliveries at the moment
503 storage 5 the delivery could not be stored for certain
503 spool-unavailable 5 deliveries can't be stored for certain at the moment
503 spool-restored 30 no deliveries are taken until this gateway's operator has acted
503 stopping 5 this gateway is stopping
";

    fn all() -> Vec<Problem> {
        vec![
            Problem::BodyBroken,
            Problem::NotJson,
            Problem::Unauthorized,
            Problem::NotFound,
            Problem::MethodNotAllowed {
                allow: "POST".to_owned(),
            },
            Problem::TooSlow,
            Problem::TooLarge,
            Problem::MediaType,
            Problem::ContentEncoding,
            Problem::Undecodable(UndecodableReason::KindUnknown),
            Problem::RateLimited {
                after: Duration::from_millis(2_001),
            },
            Problem::TooManyFailures {
                after: Duration::ZERO,
            },
            Problem::Internal,
            Problem::Busy,
            Problem::SpoolFull,
            Problem::Storage,
            Problem::SpoolUnavailable,
            Problem::SpoolRestored,
            Problem::Stopping,
        ]
    }

    #[test]
    fn the_table_of_answers() {
        let mut table = String::new();
        for problem in all() {
            let retry = problem
                .retry_after_seconds()
                .map_or("-".to_owned(), |seconds| seconds.to_string());
            table.push_str(&format!(
                "{} {} {retry} {}\n",
                problem.status().as_u16(),
                problem.slug(),
                problem.detail()
            ));
        }
        assert_eq!(table, TABLE);
    }

    #[test]
    fn every_body_is_json_with_the_members_of_a_problem() {
        for problem in all() {
            let body: serde_json::Value = serde_json::from_str(&problem.body()).unwrap();
            assert_eq!(body["status"], problem.status().as_u16());
            assert_eq!(
                body["type"],
                format!("https://passline.dev/problems/{}", problem.slug())
            );
            assert!(
                body["title"]
                    .as_str()
                    .is_some_and(|title| !title.is_empty())
            );
            assert!(
                body["detail"]
                    .as_str()
                    .is_some_and(|detail| !detail.is_empty())
            );
            let response = problem.response();
            assert_eq!(
                response.headers()["content-type"],
                "application/problem+json"
            );
            assert_eq!(
                response.headers().contains_key("retry-after"),
                problem.status() == 503 || problem.status() == 429
            );
        }
        assert_eq!(
            Problem::MethodNotAllowed {
                allow: "POST, PUT".to_owned()
            }
            .response()
            .headers()["allow"],
            "POST, PUT"
        );
    }
}
