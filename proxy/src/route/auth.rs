//! User and password of HTTP's Basic scheme (RFC 7617), checked against a `htpasswd` file. In: the file, a request's
//! `Authorization`. Out: the user, or that there is none. Hashes are slow on purpose, so what was right once is
//! remembered, as a digest under a key of this process.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;
use sha1::Sha1;
use sha2::Sha256;
use std::collections::{HashMap, HashSet};
use std::fmt;
use subtle::ConstantTimeEq;

/// Credentials remembered as right.
const REMEMBERED: usize = 1024;

/// Users and how they are recognised.
pub struct BasicAuth {
    users: HashMap<String, String>,
    /// What the browser shows.
    pub realm: String,
    /// Mixed into what is remembered.
    key: [u8; 32],
    right: Mutex<HashSet<[u8; 32]>>,
}

/// Why a password file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFile {
    /// Not `user:hash`.
    #[error("line {0} is not user:hash")]
    Line(usize),
    /// A hash we do not know.
    #[error("the hash of user {0:?} is of a kind that is not supported; make it with htpasswd -B (bcrypt)")]
    Hash(String),
    /// No user at all.
    #[error("there is no user in it")]
    Empty,
}

impl BasicAuth {
    /// Reads a file of lines `user:hash`: bcrypt (`$2…`), Apache's MD5 (`$apr1$`) or SHA-1 (`{SHA}`).
    pub fn parse(file: &str, realm: &str) -> Result<Self, BadFile> {
        let mut users = HashMap::new();
        for (number, line) in file.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, hash) = line.split_once(':').ok_or(BadFile::Line(number + 1))?;
            if !["$2a$", "$2b$", "$2y$", "$apr1$", "{SHA}"].iter().any(|kind| hash.starts_with(kind)) {
                return Err(BadFile::Hash(user.to_owned()));
            }
            users.insert(user.to_owned(), hash.to_owned());
        }
        if users.is_empty() {
            return Err(BadFile::Empty);
        }
        let realm = realm.replace(['"', '\\', '\r', '\n'], "");
        Ok(Self { users, realm, key: rand::random(), right: Mutex::default() })
    }

    /// Whether an `Authorization` header is known to be right, without the work of a hash.
    pub fn is_remembered(&self, header: &str) -> bool {
        self.right.lock().contains(&self.digest(header))
    }

    /// Whether an `Authorization` header is right. Slow on purpose: tens of milliseconds with bcrypt.
    pub fn check(&self, header: &str) -> bool {
        let Some(encoded) = header.split_once(' ').filter(|(s, _)| s.eq_ignore_ascii_case("basic")).map(|(_, e)| e)
        else {
            return false;
        };
        let Ok(decoded) = STANDARD.decode(encoded.trim()) else { return false };
        let Ok(text) = String::from_utf8(decoded) else { return false };
        let Some((user, password)) = text.split_once(':') else { return false };
        let right = self.users.get(user).is_some_and(|hash| verify(hash, password));
        if right {
            let mut all = self.right.lock();
            if all.len() >= REMEMBERED {
                all.clear();
            }
            all.insert(self.digest(header));
        }
        right
    }

    fn digest(&self, header: &str) -> [u8; 32] {
        Sha256::new().chain_update(self.key).chain_update(header).finalize().into()
    }
}

impl fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicAuth")
            .field("users", &self.users.len())
            .field("realm", &self.realm)
            .finish_non_exhaustive()
    }
}

fn verify(hash: &str, password: &str) -> bool {
    let same = |made: String| bool::from(made.as_bytes().ct_eq(hash.as_bytes()));
    if hash.starts_with("{SHA}") {
        return same(format!("{{SHA}}{}", STANDARD.encode(Sha1::digest(password))));
    }
    if let Some(rest) = hash.strip_prefix("$apr1$") {
        return rest.split_once('$').is_some_and(|(salt, _)| same(apr1(password.as_bytes(), salt)));
    }
    bcrypt::verify(password, hash).unwrap_or(false)
}

/// Apache's variant of MD5-crypt, which `htpasswd` makes unless told otherwise. No maintained crate has it.
fn apr1(password: &[u8], salt: &str) -> String {
    const DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let salt = salt.as_bytes().get(..8).unwrap_or(salt.as_bytes());
    let inner = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut outer = Md5::new().chain_update(password).chain_update(b"$apr1$").chain_update(salt);
    for block in password.chunks(16) {
        outer.update(&inner[..block.len()]);
    }
    let mut bits = password.len();
    while bits > 0 {
        outer.update(if bits & 1 == 1 { &[0][..] } else { &password[..1] });
        bits >>= 1;
    }
    let mut digest = outer.finalize();
    for round in 0..1000 {
        let (odd, mut next) = (round % 2 == 1, Md5::new());
        next.update(if odd { password } else { &digest[..] });
        if round % 3 != 0 {
            next.update(salt);
        }
        if round % 7 != 0 {
            next.update(password);
        }
        next.update(if odd { &digest[..] } else { password });
        digest = next.finalize();
    }
    let mut out = format!("$apr1${}$", String::from_utf8_lossy(salt));
    let mut put = |mut value: u32, digits: usize| {
        for _ in 0..digits {
            out.push(char::from(DIGITS[value as usize & 63]));
            value >>= 6;
        }
    };
    for [a, b, c] in [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]] {
        put(u32::from(digest[a]) << 16 | u32::from(digest[b]) << 8 | u32::from(digest[c]), 4);
    }
    put(u32::from(digest[11]), 2);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn header(user: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    }

    /// openssl makes the hashes that `htpasswd` would.
    fn openssl(password: &str) -> String {
        let made = Command::new("openssl").args(["passwd", "-apr1", password]).output().unwrap();
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn the_hashes_of_htpasswd() {
        let long = "a password that is longer than sixteen bytes";
        let file = format!(
            "# users\nann:{}\nbob:{}\ncid:{}\n\ndan:{}\n",
            openssl("x"),
            openssl(long),
            bcrypt::hash("secret", 4).unwrap(),
            format_args!("{{SHA}}{}", STANDARD.encode(Sha1::digest("sha"))),
        );
        let auth = BasicAuth::parse(&file, "a \"realm\"").unwrap();
        assert_eq!(auth.realm, "a realm");
        for (user, password) in [("ann", "x"), ("bob", long), ("cid", "secret"), ("dan", "sha")] {
            let right = header(user, password);
            assert!(!auth.is_remembered(&right) && auth.check(&right) && auth.is_remembered(&right), "{user}");
            assert!(!auth.check(&header(user, "wrong")), "{user}");
            assert!(!auth.check(&header("nobody", password)));
        }
        for broken in ["", "Basic", "Basic !!!", "Bearer abc", "Basic YQ=="] {
            assert!(!auth.check(broken), "{broken}");
        }
    }

    #[test]
    fn files_that_cannot_be_used() {
        assert_eq!(BasicAuth::parse("ann", "").unwrap_err(), BadFile::Line(1));
        assert_eq!(BasicAuth::parse("\nann:plain", "").unwrap_err(), BadFile::Hash("ann".into()));
        assert_eq!(BasicAuth::parse("# nobody", "").unwrap_err(), BadFile::Empty);
    }
}
