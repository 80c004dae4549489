//! OCSP answers that a Secret brings along (RFC 6960): they are stapled to its certificate while they hold (RFC 6066,
//! section 8). Nobody is asked for them here.

use der::Decode as _;
use rustls::sign::CertifiedKey;
use std::sync::Arc;
use std::time::SystemTime;
use x509_ocsp::{BasicOcspResponse, OcspResponse, OcspResponseStatus};

/// The key of a Secret in which the answer is, in DER.
pub const STAPLE: &str = "tls.ocsp-staple";

/// Whether these bytes are an answer that says something about a certificate.
pub fn is_one(bytes: &[u8]) -> bool {
    read(bytes).is_some()
}

/// A certificate as it is shown now: without an answer that does not hold any more, which clients would refuse.
pub fn current(key: &Arc<CertifiedKey>) -> Arc<CertifiedKey> {
    if key.ocsp.as_deref().is_none_or(|bytes| holds(bytes, SystemTime::now())) {
        return Arc::clone(key);
    }
    Arc::new(CertifiedKey { cert: key.cert.clone(), key: Arc::clone(&key.key), ocsp: None })
}

fn holds(bytes: &[u8], now: SystemTime) -> bool {
    read(bytes).is_some_and(|answer| {
        answer.tbs_response_data.responses.iter().all(|one| {
            let from = one.this_update.0.to_system_time();
            from <= now && one.next_update.as_ref().is_none_or(|until| now < until.0.to_system_time())
        })
    })
}

fn read(bytes: &[u8]) -> Option<BasicOcspResponse> {
    let answer = OcspResponse::from_der(bytes).ok().filter(|a| a.response_status == OcspResponseStatus::Successful)?;
    let basic = BasicOcspResponse::from_der(answer.response_bytes?.response.as_bytes()).ok()?;
    (!basic.tbs_response_data.responses.is_empty()).then_some(basic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use std::time::Duration;

    /// An answer of `openssl ocsp`, good from 2026-11-27 00:46:12 to 01:46:12.
    const ANSWER: &str = "\
        MIIBFwoBAKCCARAwggEMBgkrBgEFBQcwAQEEgf4wgfswgaKiFgQUrpak5f2CZU1EgnKlYqqqqwCW/w4YDzIwMjYxMTI3MDA0\
        NjEyWjB3MHUwTTAJBgUrDgMCGgUABBRCTvM2bYsX5PmGXqeEn+ECutGoLgQUrpak5f2CZU1EgnKlYqqqqwCW/w4CFDfuq7A2\
        0TnsBY2+BMLJKND+iKA0gAAYDzIwMjYxMTI3MDA0NjEyWqARGA8yMDI2MTEyNzAxNDYxMlowCgYIKoZIzj0EAwIDSAAwRQIh\
        ANURoz6pQgK1Q+EdzcxbsmL8giJYlNJa9l7SknV2DXL0AiBnRUi6SRJRgRk34zXLFYXNu4MfB46cU7re/EK0AueNEg==";
    const FROM: u64 = 1_795_740_372;

    #[test]
    fn an_answer_holds_from_then_to_then() {
        let answer = base64::prelude::BASE64_STANDARD.decode(ANSWER).unwrap();
        assert!(is_one(&answer));
        for (seconds, want) in [(FROM - 1, false), (FROM, true), (FROM + 3599, true), (FROM + 3600, false)] {
            assert_eq!(holds(&answer, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), want, "{seconds}");
        }
        let pair = Arc::new(crate::config::certs::self_signed().unwrap());
        assert!(Arc::ptr_eq(&current(&pair), &pair));
        let mut stale = CertifiedKey::clone(&pair);
        stale.ocsp = Some(b"holds no more".to_vec());
        assert!(current(&Arc::new(stale)).ocsp.is_none());
        assert!(!is_one(b"") && !is_one(&answer[..answer.len() - 1]));
        // `unauthorized`: an answer that says nothing.
        assert!(!is_one(&[0x30, 0x03, 0x0a, 0x01, 0x06]));
    }
}
