//! `passline smoke`: one callback the whole way, from the vendor's request to pass-state's answers.

use std::time::Duration;

use pass_proto::v1::delivery_service_client::DeliveryServiceClient;
use pass_proto::v1::{Delivery, DeliveryOutcome, GetDeliveryRequest, GetPassRequest, Pass};
use service_kit::grpc::Channel;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use crate::args::{SendArgs, SmokeArgs};
use crate::client::{self, MESSAGE_BYTES_MAX};
use crate::render::words;
use crate::{Failure, Out, json, send};

/// How often pass-state is asked.
const ASK_INTERVAL: Duration = Duration::from_millis(250);

/// Runs the command. As JSON: the line of `send`, then `{"delivery": …, "pass": …}`, the pass only where the
/// callback tells of one.
pub(crate) async fn run(args: SmokeArgs, out: &mut Out) -> Result<(), Failure> {
    let channel = client::connect(&args.server)?;
    let answer = send::post(
        &SendArgs {
            source: Some(args.source),
            sample: args.sample,
            file: None,
            body: None,
            gateway: args.gateway,
            method: None,
            list: false,
        },
        out,
    )
    .await?;
    let name = format!("deliveries/{}", answer.text("delivery"));
    let server = &args.server.url;
    let delivery = recorded(&channel, &name, Duration::from_secs(args.wait))
        .await
        .map_err(|status| match status.code() {
            Code::NotFound => Failure::Failed(format!(
                "pass-state did not record {name} within {} s",
                args.wait
            )),
            _ => Failure::of_call(server, &status),
        })?;
    if delivery.outcome() == DeliveryOutcome::Quarantined {
        return Err(Failure::Failed(format!("{name} went to quarantine")));
    }
    let pass = match delivery.events.first().and_then(|event| pass_of(event)) {
        Some(pass) => Some(
            get_pass(&channel, pass)
                .await
                .map_err(|status| Failure::of_call(server, &status))?,
        ),
        None => None,
    };
    out.object(&serde_json::json!({
        "delivery": json::message("Delivery", &delivery),
        "pass": pass.as_ref().map(|pass| json::message("Pass", pass)),
    }))?;
    let told = pass.as_ref().map_or(String::new(), |pass| {
        format!(" and shows {}", words::plain(&pass.name))
    });
    out.text(&format!("pass-state has recorded it{told}\n"))?;
    Ok(())
}

/// The delivery, as soon as pass-state has it; else what was answered last.
async fn recorded(channel: &Channel, name: &str, wait: Duration) -> Result<Delivery, Status> {
    let mut deliveries =
        DeliveryServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let deadline = Instant::now() + wait;
    loop {
        let asked = client::request(GetDeliveryRequest {
            name: name.to_owned(),
            ..GetDeliveryRequest::default()
        });
        match deliveries.get_delivery(asked).await {
            Ok(answer) => return Ok(answer.into_inner().delivery.unwrap_or_default()),
            Err(status) if !may_pass(&status) || Instant::now() >= deadline => return Err(status),
            Err(_) => sleep(ASK_INTERVAL).await,
        }
    }
}

/// Whether asking again may help: it is on its way, or pass-state is.
fn may_pass(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::NotFound | Code::Unavailable | Code::DeadlineExceeded
    )
}

async fn get_pass(channel: &Channel, name: &str) -> Result<Pass, Status> {
    let asked = client::request(GetPassRequest {
        name: name.to_owned(),
        ..GetPassRequest::default()
    });
    let answer = client::passes(channel.clone()).get_pass(asked).await?;
    Ok(answer.into_inner().pass.unwrap_or_default())
}

/// The pass in an event's name.
fn pass_of(event: &str) -> Option<&str> {
    event.split_once("/events/").map(|(pass, _)| pass)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_is_asked_for_again_and_a_refusal_is_not() {
        for (code, again) in [
            (Code::NotFound, true),
            (Code::Unavailable, true),
            (Code::DeadlineExceeded, true),
            (Code::Unauthenticated, false),
            (Code::PermissionDenied, false),
            (Code::InvalidArgument, false),
        ] {
            assert_eq!(may_pass(&Status::new(code, "")), again, "{code:?}");
        }
    }

    #[test]
    fn the_pass_is_what_stands_before_the_event() {
        assert_eq!(
            pass_of("sources/a/passes/b%2Fc/events/evt_1"),
            Some("sources/a/passes/b%2Fc")
        );
        assert_eq!(pass_of("sources/a"), None);
    }
}
