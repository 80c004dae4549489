//! A webhook over TLS, reached by a kubeconfig file.

use crate::server::{Answer, Server};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use causeway_authn::AuthnError;
use causeway_authn::webhook::{Options, Webhook};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

fn webhook(server: &Server, options: Options) -> Webhook {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{ name: c, context: {{ cluster: k, user: u }} }}]\nclusters: [{{ name: k, cluster: {{ server: '{}/review', certificate-authority-data: {} }} }}]\nusers: [{{ name: u, user: {{ token: of-the-api-server }} }}]\n",
        server.url,
        STANDARD.encode(&server.ca_pem)
    );
    std::fs::write(&path, text).unwrap();
    Webhook::new(&path, options).unwrap()
}

fn quick() -> Options {
    Options {
        implicit_audiences: vec!["own".to_owned()],
        backoff: Duration::from_millis(5),
        timeout: Duration::from_secs(5),
        ..Options::default()
    }
}

fn review(status: &Value) -> Answer {
    Answer::json(&json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status }))
}

fn good() -> Value {
    json!({ "authenticated": true, "user": { "username": "ann", "uid": "7", "groups": ["dev"], "extra": { "k": ["v"] } } })
}

#[tokio::test]
async fn asked_once_for_a_token_and_audiences() {
    let server = Server::start(|_| review(&good())).await;
    let webhook = webhook(&server, quick());
    for _ in 0..3 {
        let found = webhook.authenticate("token", &[]).await.unwrap().unwrap();
        assert_eq!((found.user.username.as_str(), found.user.uid.as_str()), ("ann", "7"));
        assert_eq!((found.user.groups, &found.user.extra["k"]), (vec!["dev".to_owned()], &vec!["v".to_owned()]));
    }
    assert_eq!(server.count("/review"), 1);
    let asked = server.asked.lock()[0].clone();
    assert_eq!(asked.authorization.as_deref(), Some("Bearer of-the-api-server"));
    let body: Value = serde_json::from_slice(&asked.body).unwrap();
    assert_eq!((&body["kind"], &body["spec"]), (&json!("TokenReview"), &json!({ "token": "token" })));
    let wanted = ["own".to_owned(), "x".to_owned()];
    let found = webhook.authenticate("token", &wanted).await.unwrap().unwrap();
    assert_eq!(found.audiences, ["own"]);
    let body: Value = serde_json::from_slice(&server.asked.lock()[1].body).unwrap();
    assert_eq!(body["spec"]["audiences"], json!(["own", "x"]));
    assert_eq!(server.count("/review"), 2);
}

#[tokio::test]
async fn audiences_that_do_not_meet_are_a_refusal() {
    let server = Server::start(|_| {
        let mut status = good();
        status["audiences"] = json!(["theirs"]);
        review(&status)
    })
    .await;
    let webhook = webhook(&server, quick());
    assert_eq!(webhook.authenticate("t", &["own".to_owned()]).await, Ok(None));
    let found = webhook.authenticate("t", &["theirs".to_owned()]).await.unwrap().unwrap();
    assert_eq!(found.audiences, ["theirs"]);
    assert!(webhook.authenticate("t", &[]).await.unwrap().is_some());
}

#[tokio::test]
async fn refusals_are_kept_for_their_time() {
    let server = Server::start(|_| review(&json!({ "authenticated": false, "error": "no" }))).await;
    let webhook = webhook(&server, Options { failure_ttl: Duration::from_millis(300), ..quick() });
    assert_eq!(webhook.authenticate("t", &[]).await, Ok(None));
    assert_eq!(webhook.authenticate("t", &[]).await, Ok(None));
    assert_eq!(server.count("/review"), 1);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(webhook.authenticate("t", &[]).await, Ok(None));
    assert_eq!(server.count("/review"), 2);
}

#[tokio::test]
async fn what_fails_for_a_moment_is_repeated() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let server = Server::start(move |_| match seen.fetch_add(1, SeqCst) {
        0 => Answer::of(StatusCode::INTERNAL_SERVER_ERROR, ""),
        1 => Answer::of(StatusCode::TOO_MANY_REQUESTS, ""),
        2 => Answer { retry_after: Some(0), ..Answer::of(StatusCode::SERVICE_UNAVAILABLE, "") },
        _ => review(&good()),
    })
    .await;
    assert!(webhook(&server, quick()).authenticate("t", &[]).await.unwrap().is_some());
    assert_eq!(count.load(SeqCst), 4);
}

#[tokio::test]
async fn what_stays_wrong_is_an_error_that_is_not_kept() {
    type Case = (fn() -> Answer, usize, &'static str);
    let table: [Case; 5] = [
        (|| Answer::of(StatusCode::INTERNAL_SERVER_ERROR, ""), 5, "500"),
        (|| Answer::of(StatusCode::FORBIDDEN, ""), 1, "403"),
        (|| Answer::of(StatusCode::OK, "{}"), 1, "the answer"),
        (|| review(&json!({ "authenticated": true, "user": { "username": "" } })), 1, "no user name"),
        (|| Answer::of(StatusCode::OK, "x".repeat(2 * 1024 * 1024)), 1, "more than 1048576 bytes"),
    ];
    for (answer, attempts, want) in table {
        let server = Server::start(move |_| answer()).await;
        let webhook = webhook(&server, quick());
        for round in 1..=2 {
            let error = webhook.authenticate("t", &[]).await.unwrap_err();
            assert!(matches!(&error, AuthnError::Unavailable(why) if why.contains(want)), "{want}: {error}");
            assert_eq!(server.count("/review"), attempts * round, "{want}");
        }
    }
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_is_given_up() {
    let server = Server::start(|_| Answer { delay: Duration::from_secs(60), ..review(&good()) }).await;
    let webhook = webhook(&server, Options { timeout: Duration::from_millis(300), ..quick() });
    let error = webhook.authenticate("t", &[]).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 300ms"), "{error}");
    assert!(webhook.authenticate(&"x".repeat(100_000), &[]).await.is_err());
    assert_eq!(server.count("/review"), 1);
}
