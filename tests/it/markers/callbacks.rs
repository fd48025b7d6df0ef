//! Callbacks that are right, that can't be understood, that are refused, and that are no HTTP.

use super::*;

fn passworks() -> Value {
    json!({
        "event": "installed", "context": "pass", "pass_id": "pw-1", "voided": false, "serial_number": "s-1",
        "redeemed_count": 0, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "event_at": "2026-01-01T00:00:00Z", "metadata": { "holder": NAME, "free": FREE },
        "event_extra": {
            "pass_id": "pw-1", "registration_id": "reg-1", "device_os": "ios", "device_app_vendor": "passbook",
            "wallet_type": "apple_wallet", "ip": IP, "user_agent": USER_AGENT_FIELD, "email": EMAIL, "name": NAME,
            "latitude": LATITUDE, "city": CITY,
        },
        "never_heard_of": RAW_BODY,
    })
}

fn passkit() -> Value {
    json!({
        "event": "PASS_EVENT_RECORD_CREATED",
        "pass": {
            "id": "pk1", "classId": "c1", "protocol": 100,
            "personDetails": { "displayName": NAME, "emailAddress": EMAIL },
            "metadata": {
                "utm": { "source": FREE }, "issueIpAddress": IP, "installIpAddress": IP,
                "installUserAgent": USER_AGENT_FIELD, "renderLocation": { "city": CITY, "lat": LATITUDE },
                "issueAt": { "seconds": 1_767_225_600, "nanos": 0 },
            },
            "recordData": {
                "members.member.points": "1", "person.displayName": NAME, "person.emailAddress": EMAIL,
                "person.mobileNumber": FREE,
            },
            "neverHeardOf": RAW_BODY,
        },
    })
}

fn envelope() -> Value {
    json!({
        "details": {
            "messageType": "event.pass.installed.v1", "passId": "env-1", "installationId": "inst-1",
            "holder": NAME, "email": EMAIL, "ip": IP, "agent": USER_AGENT_FIELD, "city": CITY, "free": FREE,
        },
        "messageId": "9b72ff0b-bfd4-4be1-8e22-d21731af064e", "timestamp": "2026-02-12T10:59:00.272Z",
        "user": { "id": RAW_BODY },
    })
}

pub(super) fn standard(pass: &str) -> Value {
    json!({
        "kind": "REDEEMED", "pass": pass, "occur_time": "2026-03-01T12:30:05Z",
        "redemption": { "count": 1, "time": "2026-03-01T12:30:05Z", "scanner": SCANNER },
        "personal": {
            "display_name": NAME, "email_address": EMAIL, "city": CITY, "latitude": LATITUDE, "ip": IP,
            "agent": USER_AGENT_FIELD, "free": FREE,
        },
        "never_heard_of": RAW_BODY,
    })
}

/// A sender of callbacks; what it is answered is shown.
pub(super) struct Sender {
    pub(super) caller: Caller,
    pub(super) receipts: Vec<Receipt>,
}

impl Sender {
    /// Sends and expects a status.
    async fn send(
        &mut self,
        shown: &mut Shown,
        expected: u16,
        path: &str,
        headers: &[(String, String)],
        body: impl Into<Bytes>,
    ) {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("content-type", "application/json")
            .header("user-agent", USER_AGENT_HEADER)
            .header("x-forwarded-for", CLIENT_IP)
            .header("cookie", COOKIE)
            .header("referer", format!("https://example.org/{COOKIE}"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let answer = self.caller.send(request, body.into()).await.unwrap();
        let text = String::from_utf8_lossy(&answer.body);
        shown.add(
            format!("the answer to {path}"),
            format!("{:?} {text}", answer.headers),
        );
        assert_eq!(answer.status.as_u16(), expected, "{path}: {text}");
        if expected == 200 {
            self.receipts
                .push(serde_json::from_slice(&answer.body).unwrap());
        }
    }

    /// Sends to a source, signed as its vendor does at some time.
    async fn signed(
        &mut self,
        shown: &mut Shown,
        expected: u16,
        source: &str,
        body: &[u8],
        time: Timestamp,
    ) {
        let secret = match source {
            "passworks" => PASSWORKS_KEY,
            "passkit" => PASSKIT_KEY,
            "standard" => STANDARD_KEY,
            "passkit-signed" => PASSKIT_SECRET,
            "envelope" => ENVELOPE_SECRET,
            _ => HOOKS_SECRET,
        };
        let config = source_config(source).unwrap();
        let id = format!("msg-{}", self.receipts.len());
        let signed = pass_sources::sign(&config, secret.as_bytes(), body, &id, time).unwrap();
        let path = format!("/webhooks/{source}?holder={QUERY}");
        self.send(shown, expected, &path, &signed.headers, signed.body)
            .await;
    }
}

/// Everything that is right.
pub(super) async fn send_good(sender: &mut Sender, shown: &mut Shown) {
    let now = SystemClock.now();
    for (source, body) in [
        ("passworks", passworks()),
        ("passkit", passkit()),
        ("passkit-signed", passkit()),
        ("envelope", envelope()),
        ("standard", standard("st-1")),
        ("hooks", standard("hk-1")),
    ] {
        let body = body.to_string();
        // The second one is a duplicate.
        for _ in 0..2 {
            sender
                .signed(shown, 200, source, body.as_bytes(), now)
                .await;
        }
    }
    let path = format!("/webhooks/url/{URL_SECRET}?holder={QUERY}");
    let body = standard("url-1").to_string();
    sender.send(shown, 200, &path, &[], body).await;
}

/// What is authentic and can't be understood.
pub(super) async fn send_undecodable(sender: &mut Sender, shown: &mut Shown) {
    let now = SystemClock.now();
    let mut deep = "[".repeat(300);
    deep.push_str(RAW_BODY);
    for body in [
        format!("not json: {NAME} {EMAIL} {RAW_BODY}"),
        format!("\"{EMAIL}\""),
        format!("{{\"kind\": \"{EMAIL}\", \"pass\": \"st-1\"}}"),
        format!("{{\"kind\": \"CREATED\", \"pass\": \"{NAME}\"}}"),
        format!("{{\"kind\": \"CREATED\", \"pass\": \"st-1\", \"occur_time\": \"{EMAIL}\"}}"),
        format!("{{\"kind\": \"CREATED\", \"pass\": \"st-1\", \"redemption\": \"{SCANNER}\"}}"),
        format!("{{\"kind\": \"CREATED\", \"kind\": \"{EMAIL}\", \"pass\": \"st-1\"}}"),
        format!(
            "{{\"kind\": \"CREATED\", \"pass\": \"st-1\", \"personal\": {{\"{EMAIL}\": 1, \"{EMAIL}\": 2}}}}"
        ),
        deep,
    ] {
        sender
            .signed(shown, 200, "standard", body.as_bytes(), now)
            .await;
    }
    let mut bodies = vec![
        (
            "passworks",
            json!({ "event": "installed", "pass_id": NAME }),
        ),
        (
            "passkit",
            json!({ "event": EMAIL, "pass": { "personDetails": EMAIL } }),
        ),
        (
            "passkit-signed",
            json!({ "pass": { "personDetails": { "emailAddress": EMAIL } } }),
        ),
        (
            "envelope",
            json!({ "details": { "messageType": EMAIL, "passId": NAME } }),
        ),
        ("hooks", json!({ "kind": "CREATED", "pass": [EMAIL] })),
    ];
    let mut odd = passworks();
    odd["event_at"] = EMAIL.into();
    odd["event_extra"]["registration_id"] = NAME.into();
    bodies.push(("passworks", odd));
    for (source, body) in bodies {
        let body = body.to_string();
        sender
            .signed(shown, 200, source, body.as_bytes(), now)
            .await;
    }
}

/// What is refused.
pub(super) async fn send_bad(sender: &mut Sender, shown: &mut Shown) {
    let header = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
    let body = standard(UNTAKEN_BODY).to_string();
    for (path, headers) in [
        ("/webhooks/passworks", header("authorization", WRONG_KEY)),
        ("/webhooks/passkit", header("x-api-key", WRONG_KEY)),
        (
            "/webhooks/standard",
            header("authorization", &format!("Bearer {WRONG_KEY}")),
        ),
        (
            "/webhooks/passkit-signed",
            header("x-passkit-signature", WRONG_SIGNATURE),
        ),
        (
            "/webhooks/url/wrong-secret-in-url-e2f87d",
            header("x-none", ""),
        ),
        (
            "/webhooks/hooks",
            header("webhook-signature", WRONG_SIGNATURE),
        ),
    ] {
        sender.send(shown, 401, path, &headers, body.clone()).await;
    }
    let forged = json!({ "signedContent": UNTAKEN_BODY, "signature": WRONG_SIGNATURE, "payload": UNTAKEN_BODY });
    sender
        .send(shown, 401, "/webhooks/envelope", &[], forged.to_string())
        .await;
    let stale = Timestamp::from_second(1_767_225_600).unwrap();
    sender
        .signed(shown, 401, "hooks", body.as_bytes(), stale)
        .await;
    let key = [key_header("standard")];
    for path in [
        format!("/webhooks/{OWN_INPUT}"),
        format!("/webhooks/standard/{WRONG_IN_URL}/{OWN_INPUT}?{QUERY}"),
        format!("/{OWN_INPUT}?{QUERY}"),
    ] {
        sender.send(shown, 404, &path, &key, body.clone()).await;
    }
}

/// Sends what no client library sends: what is no HTTP, and the beginning of a body that is too large.
pub(super) async fn send_broken(address: SocketAddr, shown: &mut Shown) {
    let too_large = format!(
        "POST /webhooks/standard HTTP/1.1\r\nhost: a\r\nauthorization: {STANDARD_KEY}\r\n\
         content-type: application/json\r\ncontent-length: 70000\r\n\r\n{{\"personal\": \"{UNTAKEN_BODY}\"",
    );
    let no_header = format!(
        "POST /webhooks/standard HTTP/1.1\r\nhost: a\r\nauthorization {STANDARD_KEY}\r\n\r\n"
    );
    let no_head = format!("{UNTAKEN_BODY} /{UNTAKEN_BODY}\r\n\r\n");
    let no_length = format!(
        "POST /webhooks/url/{URL_SECRET} HTTP/1.1\r\nhost: a\r\ncontent-length: {UNTAKEN_BODY}\r\n\r\n"
    );
    for (status, sent) in [
        (" 413 ", too_large),
        (" 400 ", no_header),
        (" 400 ", no_head),
        (" 400 ", no_length),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = vec![0; 16 << 10];
        let read = tokio::time::timeout(LIMIT, socket.read(&mut answer)).await;
        let read = read.expect("an answer").unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.contains(status), "{answer}");
        shown.add("an answer to no HTTP", answer);
    }
}
