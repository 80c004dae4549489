//! A registry on loopback that serves an OCI layout, with or without a password; just enough of the distribution API
//! to be pulled from.

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use std::{collections::HashMap, net::SocketAddr, sync::Arc};

#[derive(Default)]
pub struct Content {
    /// By tag or digest: media type and bytes.
    pub manifests: HashMap<String, (String, Vec<u8>)>,
    pub blobs: HashMap<String, Vec<u8>>,
    /// `Basic …`, when it wants one.
    pub password: Option<String>,
}

impl Content {
    /// Takes an OCI layout archive: everything in `blobs/`, and the first manifest under `tag`.
    pub fn from_archive(archive: &std::path::Path, tag: &str) -> Self {
        let mut this = Self::default();
        let mut index = serde_json::Value::Null;
        let mut tar = tar::Archive::new(std::fs::File::open(archive).unwrap());
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                this.blobs.insert(format!("sha256:{hex}"), bytes);
            } else if path == "index.json" {
                index = serde_json::from_slice(&bytes).unwrap();
            }
        }
        let digest = index["manifests"][0]["digest"].as_str().unwrap().to_string();
        let manifest = this.blobs[&digest].clone();
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_string();
        this.manifests.insert(digest, (media_type.clone(), manifest.clone()));
        this.manifests.insert(tag.into(), (media_type, manifest));
        this
    }
}

/// Serves until the process ends.
pub async fn serve(content: Content) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/v2/", get(root)).route("/v2/{*rest}", get(answer));
    let app = app.with_state(Arc::new(content));
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

async fn root(state: State<Arc<Content>>, headers: HeaderMap) -> Response {
    match answer(state, Path(String::new()), headers).await {
        refused if refused.status() == StatusCode::UNAUTHORIZED => refused,
        _ => "{}".into_response(),
    }
}

async fn answer(State(content): State<Arc<Content>>, Path(rest): Path<String>, headers: HeaderMap) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).map(str::to_string);
    if content.password.is_some() && content.password != given {
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"test\"")];
        return (StatusCode::UNAUTHORIZED, challenge, body).into_response();
    }
    let mut parts = rest.rsplitn(3, '/');
    let (reference, kind) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let found = match kind {
        "manifests" => content.manifests.get(reference).cloned(),
        "blobs" => content.blobs.get(reference).map(|b| ("application/octet-stream".to_string(), b.clone())),
        _ => None,
    };
    match found {
        Some((media_type, bytes)) => ([(header::CONTENT_TYPE, media_type)], bytes).into_response(),
        None => {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
    }
}
