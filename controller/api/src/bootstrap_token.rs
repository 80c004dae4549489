//! Bootstrap tokens: `abcdef.0123456789abcdef`, kept as Secrets in `kube-system`, with which a machine that is not yet a
//! node asks for a certificate. Pure; the time is passed in.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use ring::hmac;

/// The type of their Secrets.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Where the Secrets are.
pub const NAMESPACE: &str = "kube-system";
/// The Secrets' names: this and the token's id.
pub const SECRET_PREFIX: &str = "bootstrap-token-";
/// Whoever uses one is this and the token's id.
pub const USER_PREFIX: &str = "system:bootstrap:";
/// Whoever uses one is a member.
pub const GROUP: &str = "system:bootstrappers";
/// The ConfigMap in `kube-public` that tells where the API is and who signs for it, signed with every token.
pub const CLUSTER_INFO: &str = "cluster-info";
/// Where [`CLUSTER_INFO`] is.
pub const CLUSTER_INFO_NAMESPACE: &str = "kube-public";
/// Its key: a kubeconfig without users.
pub const CLUSTER_INFO_KEY: &str = "kubeconfig";
/// Its keys of signatures: this and the token's id.
pub const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";
/// The ConfigMap in `kube-system` with the cluster's settings, which every node reads.
pub const SETTINGS: &str = "causeway-config";
/// Its key: the settings as JSON.
pub const SETTINGS_KEY: &str = "cluster.json";

/// Splits a token into id and secret, if it is well-formed.
pub fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// The signature of [`CLUSTER_INFO`]'s kubeconfig with a token: a JWS (RFC 7515, HS256) without its payload. Who knows the
/// token can tell by it that the kubeconfig comes from somebody who knows it too.
pub fn signature(id: &str, secret: &str, kubeconfig: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(kubeconfig));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signed = URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()));
    format!("{header}..{signed}")
}

/// A token as its Secret has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The public part.
    pub id: String,
    /// The secret part.
    pub secret: String,
    /// When it ends.
    pub expiration: Option<Timestamp>,
    /// It may be used to authenticate.
    pub authentication: bool,
    /// It may be used to sign [`CLUSTER_INFO`].
    pub signing: bool,
    /// More groups, all below [`GROUP`].
    pub extra_groups: Vec<String>,
    /// For people.
    pub description: String,
}

impl Token {
    /// From a Secret; `None` when it is none or not well-formed, as Kubernetes then ignores it.
    pub fn of(secret: &Secret) -> Option<Self> {
        if secret.type_.as_deref() != Some(SECRET_TYPE) {
            return None;
        }
        let data = secret.data.as_ref()?;
        let text = |key: &str| data.get(key).and_then(|v| std::str::from_utf8(&v.0).ok()).map(str::to_owned);
        let (id, key) = (text("token-id")?, text("token-secret")?);
        split(&format!("{id}.{key}"))?;
        if secret.metadata.name.as_deref() != Some(&format!("{SECRET_PREFIX}{id}")) {
            return None;
        }
        // One that cannot be read is over.
        let expiration = text("expiration").map(|time| time.parse().unwrap_or(Timestamp::MIN));
        let groups = text("auth-extra-groups").unwrap_or_default();
        let below = |g: &&str| g.strip_prefix(GROUP).is_some_and(|rest| rest.starts_with(':'));
        Some(Self {
            id,
            secret: key,
            expiration,
            authentication: text("usage-bootstrap-authentication").as_deref() == Some("true"),
            signing: text("usage-bootstrap-signing").as_deref() == Some("true"),
            extra_groups: groups.split(',').map(str::trim).filter(below).map(str::to_owned).collect(),
            description: text("description").unwrap_or_default(),
        })
    }

    /// It is over.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expiration.is_some_and(|end| end <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_tokens() {
        assert_eq!(split("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for bad in
            ["", "abcdef", "abcdef.", "abcde.0123456789abcdef", "ABCDEF.0123456789abcdef", "abcdef.012345678-abcdef"]
        {
            assert_eq!(split(bad), None, "{bad}");
        }
    }

    fn secret(name: &str, expiration: &str, groups: &str) -> Secret {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name}, "type": SECRET_TYPE,
            "data": {
                "token-id": "YWJjZGVm", "token-secret": "MDEyMzQ1Njc4OWFiY2RlZg==",
                "usage-bootstrap-authentication": "dHJ1ZQ==",
                "expiration": base(expiration), "auth-extra-groups": base(groups),
            },
        }))
        .unwrap()
    }

    fn base(text: &str) -> serde_json::Value {
        serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).unwrap()
    }

    #[test]
    fn a_secret_is_a_token_while_name_and_time_fit() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let good =
            Token::of(&secret("bootstrap-token-abcdef", "2026-01-02T00:00:00Z", "system:bootstrappers:a,admins"));
        let good = good.unwrap();
        assert!(good.authentication && !good.signing && !good.expired(now));
        assert_eq!(good.extra_groups, ["system:bootstrappers:a"], "no group but below its own");
        assert!(Token::of(&secret("other", "2026-01-02T00:00:00Z", "")).is_none());
        assert!(Token::of(&secret("bootstrap-token-abcdef", "2025-01-02T00:00:00Z", "")).unwrap().expired(now));
        assert!(Token::of(&secret("bootstrap-token-abcdef", "soon", "")).unwrap().expired(now));
    }
}
