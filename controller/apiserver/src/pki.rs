//! The cluster's own certificate authority and the certificates it issues.
//!
//! In: a folder. Out: the CA, the keys of service-account tokens, server and client certificates. Keys are
//! ECDSA P-256; files are readable by their owner only. What is close to its end, or names the wrong hosts, is
//! issued anew.

use causeway_api::identity::{GROUP_AUTHENTICATED, GROUP_UNAUTHENTICATED, UserInfo};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// A leaf with less life than this is issued anew.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 3600);

/// Why the PKI could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("{doing} {}: {source}; check that the folder is writable and the disk is not full", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A certificate or key.
    #[error("{doing}: {detail}; remove the file to have it made anew")]
    Crypto {
        /// What was being done.
        doing: String,
        /// The library's answer.
        detail: String,
    },
}

fn crypto(doing: impl Into<String>) -> impl FnOnce(rcgen::Error) -> PkiError {
    let doing = doing.into();
    move |e| PkiError::Crypto { doing, detail: e.to_string() }
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct CertKey {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: String,
}

/// The certificate authority.
pub struct Pki {
    dir: PathBuf,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    service_account_keys: Vec<String>,
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { doing: "reading", path: path.to_owned(), source }),
    }
}

/// Writes a private file so that it is either whole or not there.
fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    let fail = |source| PkiError::File { doing: "writing", path: path.to_owned(), source };
    let temporary = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary).map_err(fail)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}

impl Pki {
    /// Reads the authority from a folder, or makes one there.
    pub fn open_or_create(dir: &Path) -> Result<Self, PkiError> {
        fs::create_dir_all(dir).map_err(|source| PkiError::File { doing: "creating", path: dir.to_owned(), source })?;
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let (ca_pem, key_pem) = match (read(&cert_path)?, read(&key_path)?) {
            (Some(cert), Some(key)) => (cert, key),
            _ => {
                let (cert, key) = new_ca()?;
                write(&key_path, &key)?;
                write(&cert_path, &cert)?;
                (cert, key)
            }
        };
        let key = KeyPair::from_pem(&key_pem).map_err(crypto(format!("reading the key in {}", key_path.display())))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key)
            .map_err(crypto(format!("reading the certificate in {}", cert_path.display())))?;
        let sa_path = dir.join("sa.key");
        let service_account_key = match read(&sa_path)? {
            Some(pem) => pem,
            None => {
                let key = KeyPair::generate().map_err(crypto("making the service-account key"))?;
                write(&sa_path, &key.serialize_pem())?;
                key.serialize_pem()
            }
        };
        let mut service_account_keys = vec![service_account_key];
        for path in older_keys(dir)? {
            service_account_keys.extend(read(&path)?);
        }
        Ok(Self { dir: dir.to_owned(), ca_pem, issuer, service_account_keys })
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The keys of service accounts' tokens, in PEM: the one that signs (`sa.key`), then older ones (`sa-*.key`,
    /// `sa-*.pub`), whose tokens are still believed. For a new key, rename `sa.key`; remove the old one after the
    /// longest life of its tokens.
    pub fn service_account_keys(&self) -> &[String] {
        &self.service_account_keys
    }

    /// A certificate for a server; the one on disk is used while it has the same names and enough life.
    pub fn issue_server(&self, name: &str, sans: &[String]) -> Result<CertKey, PkiError> {
        let mut sans: Vec<String> = sans.to_vec();
        sans.sort();
        sans.dedup();
        let stamp = format!("server {name} {}", sans.join(","));
        self.issue(name, &stamp, |params| {
            params.distinguished_name = distinguished_name(name, &[]);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            for san in &sans {
                params.subject_alt_names.push(match san.parse::<IpAddr>() {
                    Ok(ip) => SanType::IpAddress(ip),
                    Err(_) => {
                        SanType::DnsName(san.as_str().try_into().map_err(crypto(format!("the host name {san}")))?)
                    }
                });
            }
            Ok(())
        })
    }

    /// A certificate for a caller: its user name is the common name, its groups the organisations.
    pub fn issue_client(&self, user: &UserInfo) -> Result<CertKey, PkiError> {
        let groups: Vec<&str> = user
            .groups
            .iter()
            .map(String::as_str)
            // Everybody who is authenticated is a member; a certificate does not say so.
            .filter(|g| *g != GROUP_AUTHENTICATED && *g != GROUP_UNAUTHENTICATED)
            .collect();
        let file: String = user
            .username
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '_' })
            .collect();
        let stamp = format!("client {} {}", user.username, groups.join(","));
        self.issue(&format!("client-{file}"), &stamp, |params| {
            params.distinguished_name = distinguished_name(&user.username, &groups);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            Ok(())
        })
    }

    /// Signs a request whose content the caller has checked. Fails when its signature is not by its own key.
    pub fn sign_request(&self, pem: &str, usage: ExtendedKeyUsagePurpose, life: Duration) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(pem).map_err(crypto("reading a signing request"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = request.params.distinguished_name;
        params.subject_alt_names = request.params.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, life.min(LEAF_LIFE));
        let signed = CertificateSigningRequestParams { params, public_key: request.public_key };
        Ok(signed.signed_by(&self.issuer).map_err(crypto("signing a request"))?.pem())
    }

    /// Takes a certificate from disk when it was made for the same `stamp` by this authority and lives long enough.
    fn issue(
        &self,
        file: &str,
        stamp: &str,
        fill: impl FnOnce(&mut CertificateParams) -> Result<(), PkiError>,
    ) -> Result<CertKey, PkiError> {
        let path = |suffix: &str| self.dir.join(format!("{file}.{suffix}"));
        let (cert_path, key_path, stamp_path) = (path("crt"), path("key"), path("names"));
        let authority = self.ca_pem.lines().nth(3).unwrap_or("");
        let stamp = format!("{stamp}\nissued by {authority}\n");
        if let (Some(cert_pem), Some(key_pem), Some(old)) = (read(&cert_path)?, read(&key_path)?, read(&stamp_path)?)
            && old == stamp
            && remaining_life(&cert_pem).is_some_and(|life| life > RENEW_BEFORE)
        {
            return Ok(CertKey { cert_pem, key_pem });
        }
        let key = KeyPair::generate().map_err(crypto("making a key"))?;
        let mut params = CertificateParams::default();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, LEAF_LIFE);
        fill(&mut params)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(crypto(format!("signing the certificate {file}")))?;
        let issued = CertKey { cert_pem: cert.pem(), key_pem: key.serialize_pem() };
        write(&key_path, &issued.key_pem)?;
        write(&cert_path, &issued.cert_pem)?;
        write(&stamp_path, &stamp)?;
        Ok(issued)
    }
}

/// The files of older keys of service accounts' tokens, in the order of their names.
fn older_keys(dir: &Path) -> Result<Vec<PathBuf>, PkiError> {
    let fail = |source| PkiError::File { doing: "listing", path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("sa-") && (name.ends_with(".key") || name.ends_with(".pub")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    // Clocks of clients may be behind.
    params.not_before = (now - DAY).into();
    params.not_after = (now + life).into();
}

fn new_ca() -> Result<(String, String), PkiError> {
    let key = KeyPair::generate().map_err(crypto("making the authority's key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name("causeway", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    set_life(&mut params, CA_LIFE);
    let cert = params.self_signed(&key).map_err(crypto("signing the authority's certificate"))?;
    Ok((cert.pem(), key.serialize_pem()))
}

fn distinguished_name(common: &str, organisations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organisation in organisations {
        name.push(DnType::OrganizationName, *organisation);
    }
    name.push(DnType::CommonName, common);
    name
}

fn remaining_life(cert_pem: &str) -> Option<Duration> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).ok()?;
    let cert = pem.parse_x509().ok()?;
    let end = u64::try_from(cert.validity().not_after.timestamp()).ok()?;
    (SystemTime::UNIX_EPOCH + Duration::from_secs(end)).duration_since(SystemTime::now()).ok()
}

/// Who a verified client certificate speaks for.
pub fn user_of_certificate(der: &[u8]) -> Option<UserInfo> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().ok().map(str::to_owned);
    let username = cert.subject().iter_common_name().next().and_then(text).filter(|name| !name.is_empty())?;
    let mut groups: Vec<String> = cert.subject().iter_organization().filter_map(text).collect();
    if !groups.iter().any(|group| group == GROUP_AUTHENTICATED) {
        groups.push(GROUP_AUTHENTICATED.to_owned());
    }
    Some(UserInfo { username, groups, ..UserInfo::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_kept_until_their_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open_or_create(dir.path()).unwrap();
        let sans = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let first = pki.issue_server("api", &sans).unwrap();
        let again = Pki::open_or_create(dir.path()).unwrap();
        assert_eq!(again.ca_pem(), pki.ca_pem());
        assert_eq!(again.issue_server("api", &sans).unwrap().cert_pem, first.cert_pem);
        assert_ne!(again.issue_server("api", &sans[..1]).unwrap().cert_pem, first.cert_pem);
    }

    #[test]
    fn a_client_certificate_names_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open_or_create(dir.path()).unwrap();
        let issued = pki.issue_client(&UserInfo::node("n1")).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(issued.cert_pem.as_bytes()).unwrap();
        let user = user_of_certificate(&pem.contents).unwrap();
        assert_eq!(user, UserInfo::node("n1"));
    }
}
