//! `passline get`: one pass with its timeline, or one delivery.

use pass_proto::v1::delivery_service_client::DeliveryServiceClient;
use pass_proto::v1::{DeliveryView, GetDeliveryRequest, GetPassRequest};

use crate::args::{GetArgs, ServerArgs};
use crate::client::{self, MESSAGE_BYTES_MAX, TIMELINE_EVENTS_MAX};
use crate::render::{self, paint};
use crate::{Failure, Out, json};

/// Runs the command. As JSON: one line for the pass (`{"pass": …}`) and one per
/// event in log order (`{"event": …}`), or one line for the delivery
/// (`{"delivery": …}`).
pub(crate) async fn run(args: GetArgs, out: &mut Out) -> Result<(), Failure> {
    match (&args.pass, &args.delivery) {
        (_, Some(delivery)) => get_delivery(delivery, &args.server, out).await,
        (Some(pass), None) => get_pass(pass, &args.server, out).await,
        (None, None) => Err(Failure::Usage("name a pass or a delivery".to_owned())),
    }
}

async fn get_pass(name: &str, server: &ServerArgs, out: &mut Out) -> Result<(), Failure> {
    let refused = |status| Failure::of_call(&server.url, &status);
    let mut client = client::passes(client::connect(server)?);
    let pass = client
        .get_pass(client::request(GetPassRequest {
            name: name.to_owned(),
            ..GetPassRequest::default()
        }))
        .await
        .map_err(refused)?
        .into_inner()
        .pass
        .unwrap_or_default();
    let (events, more) = client::events(&mut client, name).await.map_err(refused)?;
    if out.is_json() {
        out.object(&serde_json::json!({ "pass": json::message("Pass", &pass) }))?;
        for event in &events {
            out.object(&serde_json::json!({ "event": json::message("PassEvent", event) }))?;
        }
        return Ok(());
    }
    out.text(&format!(
        "{}\n{}",
        render::pass(&pass),
        render::timeline(&events)
    ))?;
    if more {
        let note = format!("only the first {TIMELINE_EVENTS_MAX} events recorded are shown\n");
        out.text(&paint::notable(&note))?;
    }
    Ok(())
}

async fn get_delivery(name: &str, server: &ServerArgs, out: &mut Out) -> Result<(), Failure> {
    let name = if name.contains('/') {
        name.to_owned()
    } else {
        format!("deliveries/{name}")
    };
    let delivery = DeliveryServiceClient::new(client::connect(server)?)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .get_delivery(client::request(GetDeliveryRequest {
            name,
            view: DeliveryView::Full as i32,
            ..GetDeliveryRequest::default()
        }))
        .await
        .map_err(|status| Failure::of_call(&server.url, &status))?
        .into_inner()
        .delivery
        .unwrap_or_default();
    out.object(&serde_json::json!({ "delivery": json::message("Delivery", &delivery) }))?;
    out.text(&render::delivery(&delivery))?;
    Ok(())
}
