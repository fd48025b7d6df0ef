//! What is served: health and reflection from the first moment, the calls once the store is open.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::Either;
use pass_proto::v1::delivery_service_server::DeliveryServiceServer;
use pass_proto::v1::ingest_service_server::IngestServiceServer;
use pass_proto::v1::pass_service_server::PassServiceServer;
use pass_proto::v1::subscription_service_server::SubscriptionServiceServer;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use service_kit::clock::Clock;
use service_kit::shutdown::Shutdown;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::codegen::{Service, http};
use tonic::server::NamedService as _;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use super::start::Engine;
use crate::config::Config;
use crate::fault;
use crate::grpc::delivery::DeliveryApi;
use crate::grpc::ingest::IngestApi;
use crate::grpc::pass::PassApi;
use crate::grpc::subscription::SubscriptionApi;
use crate::ingest::Ingest;
use crate::ingest::gateways::Gateways;
use crate::metrics::Measures;
use crate::query::Reader;
use crate::query::mask::MessageTypes;
use crate::tail::subscription::Subscriptions;
use crate::tasks::Tasks;

/// Most bytes of a request other than an ingest message.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// The services whose health is told.
pub(super) const SERVICES: [&str; 4] = [
    IngestServiceServer::<IngestApi>::NAME,
    SubscriptionServiceServer::<SubscriptionApi>::NAME,
    PassServiceServer::<PassApi>::NAME,
    DeliveryServiceServer::<DeliveryApi>::NAME,
];

/// Whatever needs the store: answers UNAVAILABLE until it is opened. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Gate {
    calls: Arc<OnceLock<Routes>>,
}

impl Gate {
    /// Serves the calls from here on. Only the first time counts.
    pub(super) fn open(&self, calls: Routes) {
        let _ = self.calls.set(calls.prepare());
    }
}

impl<B> Service<http::Request<B>> for Gate
where
    Routes:
        Service<http::Request<B>, Response = http::Response<tonic::body::Body>, Error = Infallible>,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Either<
        <Routes as Service<http::Request<B>>>::Future,
        Ready<Result<Self::Response, Infallible>>,
    >;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Routes are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        match self.calls.get() {
            Some(calls) => Either::Left(calls.clone().call(request)),
            None => {
                let status: Status = fault::store_unavailable().into();
                Either::Right(ready(Ok(status.into_http())))
            }
        }
    }
}

/// Every method that is served: its service's full name and its own.
pub(super) fn methods(config: &Config) -> Vec<(String, String)> {
    let mut sets = vec![
        pass_proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
    ];
    if config.grpc.reflection {
        sets.push(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET);
        sets.push(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET);
    }
    let mut methods = Vec::new();
    for set in sets {
        let set = FileDescriptorSet::decode(set).expect("the descriptor sets are compiled in");
        for file in set.file {
            let package = file.package().to_owned();
            for service in file.service {
                let name = format!("{package}.{}", service.name());
                let of_service = service.method.iter();
                methods.extend(of_service.map(|method| (name.clone(), method.name().to_owned())));
            }
        }
    }
    methods
}

/// What is served whether or not the store is open; everything else goes through `gate`.
pub(super) fn always(config: &Config, reporter: &HealthReporter, gate: Gate) -> Routes {
    let health = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
    let mut routes = Routes::builder();
    routes.add_service(tonic_health::pb::health_server::HealthServer::new(health));
    if config.grpc.reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(pass_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that grpcurl shows an error's details in words.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let compiled_in = "the descriptor sets are compiled in";
        routes
            .add_service(builder().build_v1().expect(compiled_in))
            .add_service(builder().build_v1alpha().expect(compiled_in));
    }
    let mut routes = routes.routes();
    let router = routes.axum_router_mut();
    *router = std::mem::take(router).fallback_service(gate);
    routes
}

/// The calls.
pub(super) fn calls(
    config: &Config,
    engine: &Engine,
    clock: &Arc<dyn Clock>,
    shutdown: &Shutdown,
    streams: &Tasks,
    measures: &Arc<Measures>,
) -> Routes {
    let Engine {
        store,
        tail,
        writer,
        ..
    } = engine;
    let types = MessageTypes::new(pass_proto::DESCRIPTORS);
    let gateways = Arc::new(Gateways::default());
    let deadline: Duration = config.grpc.limits.request_timeout.get();
    let answer_bytes_max = config.grpc.answer_bytes_max.as_usize();
    let reader = Reader {
        store: Arc::clone(store),
        tail: Arc::clone(tail),
        config: config.reads.clone(),
        answer_bytes_max,
    };
    let ingest = IngestApi {
        ingest: Ingest {
            writer: writer.clone(),
            tail: Arc::clone(tail),
            gateways: Arc::clone(&gateways),
            clock: Arc::clone(clock),
            shutdown: shutdown.clone(),
            measures: Arc::clone(measures),
            config: config.ingest.clone(),
            writer_config: config.writer.clone(),
        },
        tasks: streams.clone(),
        places: Arc::new(Semaphore::new(config.ingest.streams_max)),
    };
    let subscription = SubscriptionApi {
        subscriptions: Subscriptions {
            store: Arc::clone(store),
            tail: Arc::clone(tail),
            clock: Arc::clone(clock),
            shutdown: shutdown.clone(),
            measures: Arc::clone(measures),
        },
        types: Arc::clone(&types),
        tasks: streams.clone(),
        deadline,
        stream_age_max: config.subscriptions.stream_age_max.get(),
    };
    let pass = PassApi {
        reader: reader.clone(),
        types: Arc::clone(&types),
        deadline,
        insecure: config.exposures().into_iter().map(str::to_owned).collect(),
    };
    let delivery = DeliveryApi {
        reader,
        writer: writer.clone(),
        gateways,
        types,
        deadline,
        redecode_timeout: config.ingest.redecode_timeout.get(),
    };
    let mut routes = Routes::builder();
    routes
        .add_service(
            IngestServiceServer::new(ingest)
                .max_decoding_message_size(config.ingest.message_bytes_max())
                .max_encoding_message_size(config.ingest.message_bytes_max()),
        )
        .add_service(
            SubscriptionServiceServer::new(subscription)
                .max_decoding_message_size(REQUEST_BYTES_MAX)
                .max_encoding_message_size(answer_bytes_max),
        )
        .add_service(
            PassServiceServer::new(pass)
                .max_decoding_message_size(REQUEST_BYTES_MAX)
                .max_encoding_message_size(answer_bytes_max),
        )
        .add_service(
            // One delivery with its body must fit whatever the limit for lists is.
            DeliveryServiceServer::new(delivery)
                .max_decoding_message_size(REQUEST_BYTES_MAX)
                .max_encoding_message_size(answer_bytes_max.max(config.ingest.message_bytes_max())),
        );
    routes.routes()
}
