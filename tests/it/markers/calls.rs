//! Calls to pass-state, by callers of every right, that ask for everything and for what there is not.

use super::*;

/// A caller of pass-state; what it is answered is shown.
pub(super) struct Grpc<'a> {
    pub(super) channel: Channel,
    pub(super) credential: Option<&'a str>,
    pub(super) shown: &'a mut Shown,
}

impl Grpc<'_> {
    pub(super) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(credential) = self.credential {
            metadata.insert("authorization", credential.parse().unwrap());
        }
        metadata.insert("x-of-the-caller", OWN_INPUT.parse().unwrap());
        request
    }

    /// Shows an answer in every form a client may see it in.
    fn show<T: Debug + prost::Message>(&mut self, call: &str, answer: Result<Response<T>, Status>) {
        let text = match answer {
            Ok(answer) => {
                let bytes = answer.get_ref().encode_to_vec();
                format!("{answer:?} {}", String::from_utf8_lossy(&bytes))
            }
            Err(status) => {
                let details = String::from_utf8_lossy(status.details()).into_owned();
                format!("{status:?} {details}")
            }
        };
        self.shown.add(format!("{call}'s answer"), text);
    }

    async fn subscribe(&mut self, start: Start, filter: &str) {
        let request = self.request(v1::SubscribeRequest {
            start: Some(start),
            filter: filter.to_owned(),
            stop_at_head: true,
            ..v1::SubscribeRequest::default()
        });
        let mut client = SubscriptionServiceClient::new(self.channel.clone());
        match client.subscribe(request).await {
            Ok(answer) => {
                let mut frames = answer.into_inner();
                loop {
                    match frames.message().await {
                        Ok(Some(frame)) => self.show("Subscribe", Ok(Response::new(frame))),
                        Ok(None) => break,
                        Err(status) => {
                            self.show::<v1::SubscribeResponse>("Subscribe", Err(status));
                            break;
                        }
                    }
                }
            }
            Err(status) => self.show::<v1::SubscribeResponse>("Subscribe", Err(status)),
        }
    }

    /// Reads everything in every way.
    pub(super) async fn read(&mut self, receipts: &[Receipt]) {
        let mut passes = PassServiceClient::new(self.channel.clone());
        let mut deliveries = DeliveryServiceClient::new(self.channel.clone());
        let answer = passes
            .get_log_info(self.request(v1::GetLogInfoRequest {}))
            .await;
        self.show("GetLogInfo", answer);
        let request = self.request(v1::ListPassesRequest {
            parent: "sources/-".to_owned(),
            ..Default::default()
        });
        let answer = passes.list_passes(request).await;
        let names: Vec<String> = match &answer {
            Ok(answer) => (answer.get_ref().passes.iter().map(|pass| pass.name.clone())).collect(),
            Err(_) => vec!["sources/standard/passes/st-1".to_owned()],
        };
        self.show("ListPasses", answer);
        for name in &names {
            let request = self.request(v1::GetPassRequest {
                name: name.clone(),
                ..Default::default()
            });
            let answer = passes.get_pass(request).await;
            self.show("GetPass", answer);
        }
        let request = self.request(v1::BatchGetPassesRequest {
            names,
            ..Default::default()
        });
        let answer = passes.batch_get_passes(request).await;
        self.show("BatchGetPasses", answer);
        let request = self.request(v1::LookupPassesRequest {
            parent: "sources/-".to_owned(),
            key: Some(v1::lookup_passes_request::Key::SerialNumber(
                "s-1".to_owned(),
            )),
            ..Default::default()
        });
        let answer = passes.lookup_passes(request).await;
        self.show("LookupPasses", answer);
        let request = self.request(v1::ListEventsRequest {
            parent: "sources/-/passes/-".to_owned(),
            ..Default::default()
        });
        let answer = passes.list_events(request).await;
        let names: Vec<String> = match &answer {
            Ok(answer) => (answer
                .get_ref()
                .events
                .iter()
                .map(|event| event.name.clone()))
            .collect(),
            Err(_) => Vec::new(),
        };
        self.show("ListEvents", answer);
        for name in names {
            let request = self.request(v1::GetEventRequest {
                name,
                ..Default::default()
            });
            let answer = passes.get_event(request).await;
            self.show("GetEvent", answer);
        }
        let request = self.request(v1::ListDeliveriesRequest::default());
        let answer = deliveries.list_deliveries(request).await;
        self.show("ListDeliveries", answer);
        for receipt in receipts {
            let request = self.request(v1::GetDeliveryRequest {
                name: format!("deliveries/{}", receipt.delivery),
                view: v1::DeliveryView::Full.into(),
                read_mask: None,
            });
            let answer = deliveries.get_delivery(request).await;
            self.show("GetDelivery", answer);
        }
        self.subscribe(Start::FromBeginning(true), "").await;
    }

    /// Asks for what there is not, in words of its own.
    pub(super) async fn ask_badly(&mut self) {
        let mut passes = PassServiceClient::new(self.channel.clone());
        let mut deliveries = DeliveryServiceClient::new(self.channel.clone());
        let serial_number = format!("serial_number = {OWN_INPUT:?}");
        for (parent, filter, page_token, order_by, min_cursor) in [
            (OWN_INPUT, "", "", "", ""),
            ("sources/-", OWN_INPUT, "", "", ""),
            ("sources/-", &serial_number, "", "", ""),
            ("sources/-", "", OWN_INPUT, "", ""),
            ("sources/-", "", "", OWN_INPUT, ""),
            ("sources/-", "", "", "", OWN_INPUT),
        ] {
            let request = self.request(v1::ListPassesRequest {
                parent: parent.to_owned(),
                filter: filter.to_owned(),
                page_token: page_token.to_owned(),
                order_by: order_by.to_owned(),
                min_cursor: min_cursor.to_owned(),
                ..Default::default()
            });
            let answer = passes.list_passes(request).await;
            self.show("ListPasses", answer);
        }
        for name in [
            OWN_INPUT.to_owned(),
            format!("sources/standard/passes/{OWN_INPUT}"),
            format!("sources/standard/passes/st-1/events/{OWN_INPUT}"),
        ] {
            let request = self.request(v1::GetPassRequest {
                name: name.clone(),
                ..Default::default()
            });
            let answer = passes.get_pass(request).await;
            self.show("GetPass", answer);
            let request = self.request(v1::GetEventRequest {
                name,
                ..Default::default()
            });
            let answer = passes.get_event(request).await;
            self.show("GetEvent", answer);
        }
        let name = format!("deliveries/{OWN_INPUT}");
        let request = self.request(v1::GetDeliveryRequest {
            name: name.clone(),
            read_mask: Some(prost_types::FieldMask {
                paths: vec![OWN_INPUT.to_owned()],
            }),
            ..Default::default()
        });
        let answer = deliveries.get_delivery(request).await;
        self.show("GetDelivery", answer);
        let request = self.request(v1::DiscardDeliveryRequest {
            name,
            reason: OWN_INPUT.to_owned(),
            request_id: OWN_INPUT.to_owned(),
        });
        let answer = deliveries.discard_delivery(request).await;
        self.show("DiscardDelivery", answer);
        let cursor = Start::AfterCursor(OWN_INPUT.to_owned());
        self.subscribe(cursor, "").await;
        self.subscribe(Start::FromBeginning(true), OWN_INPUT).await;
    }

    /// Replays one delivery in quarantine and discards another.
    pub(super) async fn judge(&mut self, receipts: &[Receipt]) {
        let mut quarantined = receipts
            .iter()
            .filter(|receipt| receipt.status == "quarantined")
            .map(|receipt| format!("deliveries/{}", receipt.delivery));
        let mut deliveries = DeliveryServiceClient::new(self.channel.clone());
        let request = self.request(v1::ReplayDeliveryRequest {
            name: quarantined.next().unwrap(),
            request_id: String::new(),
        });
        let answer = deliveries.replay_delivery(request).await;
        self.show("ReplayDelivery", answer);
        let request = self.request(v1::DiscardDeliveryRequest {
            name: quarantined.next().unwrap(),
            reason: OWN_INPUT.to_owned(),
            request_id: String::new(),
        });
        let answer = deliveries.discard_delivery(request).await;
        assert!(answer.is_ok(), "{answer:?}");
        self.show("DiscardDelivery", answer);
    }
}
