//! The layer before everything that is served.
//!
//! | the caller | the method | the call |
//! |---|---|---|
//! | anyone | health or reflection that is open | goes on |
//! | without a valid credential | any other, known or not | UNAUTHENTICATED, one text for every cause, late for an address that keeps failing, a few at a time |
//! | known | unknown | UNIMPLEMENTED |
//! | known | requires a scope that it lacks | PERMISSION_DENIED, naming the scope |
//! | known | any other | goes on, with the [`Caller`] in the request's extensions |

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use pass_proto::access::scope_name;
use pass_proto::status::Fault;
use service_kit::grpc::Peer;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tower::Layer;

use super::failures::Cause;
use super::{Access, Caller, NO_ADDRESS, Need};

/// Puts [`Access`] before a service.
#[derive(Clone)]
pub(crate) struct AccessLayer(pub(crate) Arc<Access>);

impl<S> Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            access: Arc::clone(&self.0),
            inner,
        }
    }
}

/// A service that only lets through what [`Access`] allows.
#[derive(Clone)]
pub(crate) struct Guarded<S> {
    access: Arc<Access>,
    inner: S,
}

type Answer = Result<http::Response<Body>, Infallible>;

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Pin<Box<dyn Future<Output = Answer> + Send>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        match self.access.decide(&request) {
            Ok(caller) => {
                // Also where the method requires nothing: a client may ask for the health for a long time first.
                if let Some(peer) = request.extensions().get::<Peer>()
                    && !peer.is_authorized()
                    && (caller.is_some()
                        || self.access.caller(request.headers(), &peer.names).is_ok())
                {
                    peer.authorize();
                }
                // Nothing that came with the request may stand for a caller.
                request.extensions_mut().remove::<Caller>();
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                Either::Left(self.inner.call(request))
            }
            Err(refused) => {
                let access = Arc::clone(&self.access);
                let peer = request.extensions().get::<Peer>();
                let address = peer.map_or(NO_ADDRESS, |peer| peer.addr.ip());
                let method = request.uri().path().to_owned();
                Either::Right(Box::pin(async move {
                    let status = access.refuse(refused, address, &method).await;
                    Ok(status.into_http())
                }))
            }
        }
    }
}

/// Why a call does not go on.
enum Refused {
    /// The caller is not known.
    Unauthenticated(Cause),
    /// It lacks the scope.
    Scope(Caller, &'static str),
    /// There is no such method.
    Unknown,
}

impl Access {
    /// Whether a call goes on, and for whom. Who calls comes first, then what the method requires; what the call
    /// asks for is not looked at.
    fn decide<B>(&self, request: &http::Request<B>) -> Result<Option<Caller>, Refused> {
        let need = self.need(request.uri().path());
        if need == Need::Nothing {
            return Ok(None);
        }
        let peer = request.extensions().get::<Peer>();
        let names = peer.map(|peer| peer.names.clone()).unwrap_or_default();
        let caller = self
            .caller(request.headers(), &names)
            .map_err(Refused::Unauthenticated)?;
        match need {
            Need::Nothing | Need::Identity => Ok(Some(caller)),
            Need::Scope(scope) if caller.holds(scope) => Ok(Some(caller)),
            Need::Scope(scope) => Err(Refused::Scope(caller, scope_name(scope))),
            Need::Unknown => Err(Refused::Unknown),
        }
    }

    async fn refuse(&self, refused: Refused, address: std::net::IpAddr, method: &str) -> Status {
        let now = Instant::now();
        match refused {
            Refused::Unauthenticated(cause) => {
                if let Some(late) = self.failures.unauthenticated(cause, address, now) {
                    late.wait().await;
                }
                Fault::unauthenticated().into()
            }
            Refused::Scope(caller, scope) => {
                self.failures
                    .scope_missing(caller.name(), scope, method, now);
                Fault::scope_missing(scope).into()
            }
            Refused::Unknown => Status::unimplemented("there is no such method"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures_util::future::join_all;
    use pass_proto::status::{Reason, reason_of};
    use tonic_types::StatusExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::access::token;
    use crate::config::{Config, Openness};

    /// Answers with the caller's name.
    #[derive(Clone)]
    struct Echo;

    impl Service<http::Request<Body>> for Echo {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Answer>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            let caller = request.extensions().get::<Caller>();
            let name = caller.map_or("nobody", Caller::name).to_owned();
            std::future::ready(Ok(http::Response::builder()
                .header("caller", name)
                .body(Body::empty())
                .unwrap()))
        }
    }

    /// The caller's name, or why the call was refused.
    async fn called(access: &Arc<Access>, path: &str, credential: &str) -> Result<String, Status> {
        let mut request = http::Request::builder().uri(path);
        if !credential.is_empty() {
            request = request.header("authorization", credential);
        }
        let request = request.body(Body::empty()).unwrap();
        let guarded = AccessLayer(Arc::clone(access)).layer(Echo);
        let answer = guarded.oneshot(request).await.unwrap();
        match Status::from_header_map(answer.headers()) {
            Some(status) => Err(status),
            None => Ok(answer.headers()["caller"].to_str().unwrap().to_owned()),
        }
    }

    fn access(scopes: &str, health: Openness, reflection: Openness) -> (Arc<Access>, String) {
        let (token, hash) = token::generate().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "[[principals]]\nname = \"one\"\ntoken_sha256 = [\"{hash}\"]\nscopes = {scopes}\n\
             sources = [\"*\"]\norganizations = []\n"
        );
        std::fs::write(file.path(), text).unwrap();
        let mut config = Config::default();
        config.auth.principals_file = Some(file.path().to_owned());
        config.auth.health = health;
        config.auth.reflection = reflection;
        (Access::new(&config).unwrap(), format!("Bearer {token}"))
    }

    const GET_PASS: &str = "/passline.v1.PassService/GetPass";
    const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
    const REFLECTION_INFO: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    const UNKNOWN: [&str; 4] = [
        "/passline.v1.PassService/NoSuchMethod",
        "/passline.v2.PassService/GetPass",
        "/",
        "/passline.v1.PassService/GetPass/",
    ];

    #[tokio::test]
    async fn who_is_not_known_learns_not_even_which_methods_there_are() {
        let (access, good) = access(
            "[\"read\"]",
            Openness::Authenticated,
            Openness::Authenticated,
        );
        let wrong = [
            "",
            "Bearer",
            "Bearer x",
            "Basic YTpi",
            &good[..good.len() - 1],
            &good[7..],
        ];
        let paths = || {
            UNKNOWN
                .into_iter()
                .chain([GET_PASS, HEALTH_CHECK, REFLECTION_INFO])
        };
        // All at once, since most of them are answered late.
        let calls =
            paths().flat_map(|path| wrong.map(|credential| called(&access, path, credential)));
        let answers: BTreeSet<String> = (join_all(calls).await.into_iter())
            .map(|answer| {
                let status = answer.unwrap_err();
                assert_eq!(reason_of(&status), Some(Reason::Unauthenticated));
                format!("{status:?}")
            })
            .collect();
        assert_eq!(answers.len(), 1, "{answers:?}");
        let failures = access.failures();
        let counted: u64 = failures.counts().map(|(_, count)| count).sum();
        assert_eq!(counted, 7 * wrong.len() as u64);
    }

    #[tokio::test]
    async fn failures_slow_nobody_who_has_a_valid_credential() {
        let (access, good) = access("[\"read\"]", Openness::Open, Openness::Open);
        join_all((0..10).map(|_| called(&access, GET_PASS, "Bearer x"))).await;
        let began = Instant::now();
        let late = {
            let access = Arc::clone(&access);
            tokio::spawn(async move { called(&access, GET_PASS, "Bearer x").await })
        };
        for _ in 0..100 {
            assert_eq!(called(&access, GET_PASS, &good).await.unwrap(), "one");
        }
        assert!(!late.is_finished(), "it is answered late");
        assert!(late.await.unwrap().is_err());
        assert!(began.elapsed() >= std::time::Duration::from_millis(900));
    }

    #[tokio::test]
    async fn a_known_caller_is_let_through_to_what_its_scopes_are_for() {
        let (access, good) = access("[\"read\"]", Openness::Open, Openness::Authenticated);
        for path in [GET_PASS, REFLECTION_INFO] {
            assert_eq!(called(&access, path, &good).await.unwrap(), "one");
        }
        assert_eq!(called(&access, HEALTH_CHECK, "").await.unwrap(), "nobody");
        let refused = [
            ("/passline.v1.IngestService/Ingest", "ingest"),
            ("/passline.v1.SubscriptionService/Subscribe", "consume"),
            ("/passline.v1.DeliveryService/DiscardDelivery", "admin"),
        ];
        for (path, scope) in refused {
            let status = called(&access, path, &good).await.unwrap_err();
            assert_eq!(reason_of(&status), Some(Reason::PermissionDenied), "{path}");
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.metadata["scope"], scope);
        }
        for path in UNKNOWN {
            let status = called(&access, path, &good).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unimplemented, "{path}");
        }
    }

    #[tokio::test]
    async fn a_method_that_requires_no_scope_is_refused_for_everyone() {
        let mut open = Access::new(&Config::default()).unwrap();
        assert_eq!(called(&open, GET_PASS, "").await.unwrap(), "-");
        let needs = &mut Arc::get_mut(&mut open).unwrap().needs;
        needs.insert(GET_PASS.to_owned(), pass_proto::access::Scope::Unspecified);
        let status = called(&open, GET_PASS, "").await.unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::PermissionDenied));
    }

    #[tokio::test]
    async fn a_call_with_a_valid_credential_lets_its_connection_stay() {
        let (access, good) = access("[\"read\"]", Openness::Open, Openness::Open);
        let peer = Peer::new((NO_ADDRESS, 1).into(), Default::default());
        for (path, credential, stays) in [
            (GET_PASS, "Bearer x", false),
            (HEALTH_CHECK, "", false),
            (HEALTH_CHECK, "Bearer x", false),
            (HEALTH_CHECK, &good, true),
        ] {
            let request = http::Request::builder()
                .uri(path)
                .header("authorization", credential)
                .extension(peer.clone())
                .body(Body::empty())
                .unwrap();
            let guarded = AccessLayer(Arc::clone(&access)).layer(Echo);
            guarded.oneshot(request).await.unwrap();
            assert_eq!(peer.is_authorized(), stays, "{path} {credential}");
        }
    }

    #[tokio::test]
    async fn two_credentials_are_none() {
        let (access, good) = access("[\"read\"]", Openness::Open, Openness::Open);
        let request = http::Request::builder()
            .uri(GET_PASS)
            .header("authorization", &good)
            .header("authorization", &good)
            .body(())
            .unwrap();
        assert!(matches!(
            access.decide(&request),
            Err(Refused::Unauthenticated(Cause::Malformed))
        ));
        assert_eq!(
            called(&access, REFLECTION_INFO, "").await.unwrap(),
            "nobody"
        );
    }
}
