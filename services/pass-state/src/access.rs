//! Who may call what: authentication, and the scope that each method requires.
//!
//! One layer ([`layer`]) stands before everything that is served, reflection, health and unknown methods
//! included. It finds the principal behind a call ([`principals`]), then what the method requires by its path
//! (`required_scope` in the protos), and hands the call on with the [`Caller`], or refuses it. So nothing is
//! looked up for who may not ask, and a method that nobody thought of is refused rather than open.
//!
//! Without `auth.principals_file` every caller is everything; [`crate::Config`] allows that off loopback only
//! in so many words.
//!
//! What a caller may see is in its store [`Scope`](pass_store::Scope), and enforced there.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use http::{HeaderMap, header};
use pass_proto::access::{Scope, required_scopes};
use service_kit::config::Faults;
use service_kit::reload::{Refusal, Reload};
use service_kit::tls::PeerNames;
use tonic::codegen::http;
use tonic::server::NamedService as _;

use crate::config::{Config, Openness};

mod failures;
pub(crate) mod layer;
mod principals;
pub(crate) mod token;

pub use failures::AuthFailures;
use failures::Cause;
use principals::Principals;
pub(crate) use principals::{Caller, PrincipalsFile};

/// The services of others that are served, and which switch says who may call them.
const HEALTH: &str =
    tonic_health::pb::health_server::HealthServer::<tonic_health::server::HealthService>::NAME;
const REFLECTION: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// What a call needs of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Nothing, not even a credential.
    Nothing,
    /// To be known.
    Identity,
    /// A scope.
    Scope(Scope),
    /// There is no such method, as far as is known here.
    Unknown,
}

/// Decides on calls. Shared by all of them.
pub(crate) struct Access {
    /// `None`: nobody is asked who they are.
    principals: Option<RwLock<Arc<Principals>>>,
    needs: BTreeMap<String, Scope>,
    health: Openness,
    reflection: Openness,
    everyone: Caller,
    /// Whether clients' certificates are verified, so that they have names.
    certificates: bool,
    failures: Arc<AuthFailures>,
}

impl Access {
    /// Reads the principals, if any are configured.
    ///
    /// # Errors
    /// Everything that is wrong with their file.
    pub(crate) fn new(config: &Config) -> Result<Arc<Self>, Faults> {
        let auth = &config.auth;
        let principals = auth.principals_file.as_deref().map(Principals::read);
        let tls = config.grpc.tls.as_ref();
        let certificates = tls.is_some_and(|tls| tls.client_ca_file.is_some());
        let needs = required_scopes(pass_proto::DESCRIPTORS)
            .expect("the descriptor set was written by our build script");
        let access = Self {
            principals: principals.transpose()?.map(Arc::new).map(RwLock::new),
            needs,
            health: auth.health,
            reflection: auth.reflection,
            everyone: Caller::everyone(),
            certificates,
            failures: Arc::new(AuthFailures::new(config.grpc.limits.concurrency_max)),
        };
        if let Some(principals) = &access.principals {
            access.warn_of_names(&principals.read().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(Arc::new(access))
    }

    /// Calls that were refused, counted.
    pub(crate) fn failures(&self) -> Arc<AuthFailures> {
        Arc::clone(&self.failures)
    }

    /// A name is only looked at in a certificate that was verified.
    fn warn_of_names(&self, principals: &Principals) {
        if let Some(principal) = principals.first_with_client_names()
            && !self.certificates
        {
            tracing::warn!(
                principal,
                "client_names of principals match nobody: set grpc.tls.client_ca_file, or use tokens"
            );
        }
    }

    fn need(&self, path: &str) -> Need {
        if let Some(scope) = self.needs.get(path) {
            return Need::Scope(*scope);
        }
        let service = path
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .map_or("", |(service, _)| service);
        let openness = if service == HEALTH {
            self.health
        } else if REFLECTION.contains(&service) {
            self.reflection
        } else {
            return Need::Unknown;
        };
        match openness {
            Openness::Open => Need::Nothing,
            Openness::Authenticated => Need::Identity,
        }
    }

    /// Who calls, by the token if one is presented, else by the names in the verified client certificate.
    fn caller(&self, headers: &HeaderMap, names: &PeerNames) -> Result<Caller, Cause> {
        let Some(principals) = &self.principals else {
            return Ok(self.everyone.clone());
        };
        let principals = Arc::clone(&principals.read().unwrap_or_else(PoisonError::into_inner));
        let mut presented = headers.get_all(header::AUTHORIZATION).iter();
        // A credential that is presented decides, so that a wrong one is not hidden by a right certificate.
        match (presented.next(), presented.next()) {
            (None, _) => principals.by_names(names),
            (Some(value), None) => principals.by_token(token::presented(value.as_bytes())),
            (Some(_), Some(_)) => principals.by_token(None),
        }
    }

    /// Puts other principals in force. Open streams of those that changed end; others go on.
    fn replace(&self, principals: Principals) {
        self.warn_of_names(&principals);
        if let Some(current) = &self.principals {
            let mut current = current.write().unwrap_or_else(PoisonError::into_inner);
            *current = Arc::new(principals.succeeding(&current));
        }
    }
}

/// Puts a changed principals file in force.
pub(crate) struct PrincipalsReload {
    pub(crate) path: PathBuf,
    pub(crate) access: Arc<Access>,
}

impl Reload for PrincipalsReload {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn try_apply(&mut self) -> Result<(), Refusal> {
        self.access.replace(Principals::read(&self.path)?);
        Ok(())
    }
}

/// The address of who has none, as in a test without a socket.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
