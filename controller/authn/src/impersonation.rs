//! Impersonation: a caller asks, by headers, to be taken for somebody else.
//!
//! In: request headers. Out: the user that is asked for and the questions that the authoriser must answer with yes,
//! one after the other, for the real caller. No state. (KEP-5284's constrained impersonation is off by default in
//! Kubernetes 1.35 and not here.)

use crate::headers;
use crate::user::{ANONYMOUS, AuthnError, GROUP_SERVICE_ACCOUNTS, GROUP_UNAUTHENTICATED, User};
use http::{HeaderMap, HeaderName};

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const EXTRA: &str = "impersonate-extra-";
/// The API group of what is not a core resource.
const AUTHENTICATION: &str = "authentication.k8s.io";

/// What the authoriser is asked: may the real caller `impersonate` this?
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// API group: empty or `authentication.k8s.io`.
    pub group: &'static str,
    /// API version: empty for the core group, else `v1`.
    pub version: &'static str,
    /// `users`, `serviceaccounts`, `groups`, `userextras` or `uids`.
    pub resource: &'static str,
    /// The key, for `userextras`.
    pub subresource: String,
    /// The namespace, for `serviceaccounts`.
    pub namespace: String,
    /// Which user, group, value or uid.
    pub name: String,
}

impl Question {
    /// The verb of all questions.
    pub const VERB: &'static str = "impersonate";

    fn core(resource: &'static str, namespace: &str, name: &str) -> Self {
        Self { resource, namespace: namespace.to_owned(), name: name.to_owned(), ..Self::default() }
    }

    fn authentication(resource: &'static str, subresource: &str, name: &str) -> Self {
        let (subresource, name) = (subresource.to_owned(), name.to_owned());
        Self { group: AUTHENTICATION, version: "v1", resource, subresource, name, namespace: String::new() }
    }

    /// As Kubernetes prints the object reference that stands for it.
    fn reference(&self) -> String {
        let kind = match self.resource {
            "users" => "User",
            "serviceaccounts" => "ServiceAccount",
            "groups" => "Group",
            "userextras" => "UserExtra",
            _ => "UID",
        };
        let api = if self.group.is_empty() { "" } else { "authentication.k8s.io/v1" };
        format!("{{{kind} {} {}  {api}  {}}}", self.namespace, self.name, self.subresource)
    }
}

/// A request to be taken for somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// All must be allowed, else the answer is 403 for the first that is not.
    pub questions: Vec<Question>,
    /// Who the request is from when they are.
    pub user: User,
}

/// Reads the headers; `None` when there is no impersonation. The error is one for the caller, with 400.
pub fn parse(map: &HeaderMap) -> Result<Option<Request>, AuthnError> {
    // The first value counts, and an empty one is none.
    let first = |name| headers::values(map, name).map(|values| values.into_iter().next().unwrap_or_default());
    let (username, uid) = (first(&USER)?, first(&UID)?);
    let (given, extra) = (headers::values(map, &GROUP)?, headers::extra(map, EXTRA)?);
    let mut questions = Vec::new();
    let mut groups = given.clone();
    if let Some((namespace, name)) = service_account(&username) {
        questions.push(Question::core("serviceaccounts", namespace, name));
        if given.is_empty() {
            groups = vec![GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}")];
        }
    } else if !username.is_empty() {
        questions.push(Question::core("users", "", &username));
    }
    questions.extend(given.iter().map(|group| Question::core("groups", "", group)));
    for (key, values) in &extra {
        questions.extend(values.iter().map(|value| Question::authentication("userextras", key, value)));
    }
    if !uid.is_empty() {
        questions.push(Question::authentication("uids", "", &uid));
    }
    if questions.is_empty() {
        return Ok(None);
    }
    if username.is_empty() {
        let list: Vec<String> = questions.iter().map(Question::reference).collect();
        return Err(AuthnError::Refused(format!("requested [{}] without impersonating a user", list.join(" "))));
    }
    let mut user = User { username, uid, groups, extra };
    if user.username != ANONYMOUS {
        user.add_authenticated_group();
    } else if !user.groups.iter().any(|group| group == GROUP_UNAUTHENTICATED) {
        user.groups.push(GROUP_UNAUTHENTICATED.to_owned());
    }
    Ok(Some(Request { questions, user }))
}

/// Removes the headers of impersonation: after they were obeyed, and before a request goes on to another server.
pub fn strip(map: &mut HeaderMap) {
    headers::remove(map, &[USER, UID, GROUP], &[EXTRA.to_owned()]);
}

/// Namespace and name of a service account's user name. Others that begin so are users.
fn service_account(username: &str) -> Option<(&str, &str)> {
    let (namespace, name) = username.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (is_label(namespace) && name.len() <= 253 && name.split('.').all(is_part)).then_some((namespace, name))
}

/// RFC 1123 label.
fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_part(text)
}

/// A part of an RFC 1123 subdomain.
fn is_part(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn map(list: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn asked(list: &[(&str, &str)]) -> (Vec<String>, User) {
        let request = parse(&map(list)).unwrap().unwrap();
        let show = |q: &Question| {
            let resource = [q.group, q.resource, &q.subresource].join("|");
            format!("{resource} {}/{}", q.namespace, q.name)
        };
        (request.questions.iter().map(show).collect(), request.user)
    }

    #[test]
    fn questions_and_users() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a str, &'a [&'a str]);
        let table: &[Case<'_>] = &[
            (&[("Impersonate-User", "ann")], &["|users| /ann"], "ann", &["system:authenticated"]),
            (
                &[("Impersonate-User", "ann"), ("Impersonate-Group", "dev"), ("impersonate-group", "ops")],
                &["|users| /ann", "|groups| /dev", "|groups| /ops"],
                "ann",
                &["dev", "ops", "system:authenticated"],
            ),
            (
                &[("Impersonate-User", "ann"), ("Impersonate-Group", "system:unauthenticated")],
                &["|users| /ann", "|groups| /system:unauthenticated"],
                "ann",
                &["system:unauthenticated"],
            ),
            (
                &[("Impersonate-User", "system:anonymous")],
                &["|users| /system:anonymous"],
                "system:anonymous",
                &["system:unauthenticated"],
            ),
            (
                &[("Impersonate-User", "system:serviceaccount:shop:web")],
                &["|serviceaccounts| shop/web"],
                "system:serviceaccount:shop:web",
                &["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
            ),
            (
                &[("Impersonate-User", "system:serviceaccount:shop:web"), ("Impersonate-Group", "x")],
                &["|serviceaccounts| shop/web", "|groups| /x"],
                "system:serviceaccount:shop:web",
                &["x", "system:authenticated"],
            ),
            (
                &[("Impersonate-User", "system:serviceaccount:Shop:web")],
                &["|users| /system:serviceaccount:Shop:web"],
                "system:serviceaccount:Shop:web",
                &["system:authenticated"],
            ),
            (
                &[("Impersonate-User", "system:serviceaccount:shop:a:b")],
                &["|users| /system:serviceaccount:shop:a:b"],
                "system:serviceaccount:shop:a:b",
                &["system:authenticated"],
            ),
        ];
        for (headers, questions, name, groups) in table {
            let (found, user) = asked(headers);
            assert_eq!(found, *questions, "{headers:?}");
            assert_eq!(
                (user.username.as_str(), user.groups),
                (*name, groups.iter().map(|g| (*g).to_owned()).collect())
            );
        }
    }

    #[test]
    fn extra_and_uid_are_asked_in_their_own_group() {
        let (found, user) = asked(&[
            ("Impersonate-User", "ann"),
            ("Impersonate-Extra-Acme.com%2FProject", "one"),
            ("impersonate-extra-acme.com%2fproject", "two"),
            ("Impersonate-Uid", "42"),
        ]);
        let want = [
            "|users| /ann",
            "authentication.k8s.io|userextras|acme.com/project /one",
            "authentication.k8s.io|userextras|acme.com/project /two",
            "authentication.k8s.io|uids| /42",
        ];
        assert_eq!(found, want);
        assert_eq!(
            (user.uid.as_str(), &user.extra["acme.com/project"]),
            ("42", &vec!["one".to_owned(), "two".to_owned()])
        );
    }

    #[test]
    fn without_a_user_nothing_else_may_be_asked() {
        assert_eq!(parse(&HeaderMap::new()), Ok(None));
        assert_eq!(parse(&map(&[("Impersonate-User", "")])), Ok(None));
        let words = |list: &[(&str, &str)]| parse(&map(list)).unwrap_err().to_string();
        assert_eq!(words(&[("Impersonate-Group", "dev")]), "requested [{Group  dev    }] without impersonating a user");
        assert_eq!(
            words(&[("Impersonate-Extra-scopes", "view"), ("Impersonate-Uid", "7")]),
            "requested [{UserExtra  view  authentication.k8s.io/v1  scopes} {UID  7  authentication.k8s.io/v1  }] without impersonating a user"
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let mut map = map(&[("Impersonate-User", "ann")]);
        map.append(GROUP, HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(parse(&map).is_err());
    }

    #[test]
    fn nothing_is_left_to_the_next_server() {
        let mut map = map(&[
            ("Impersonate-User", "a"),
            ("Impersonate-Group", "b"),
            ("Impersonate-Uid", "c"),
            ("Impersonate-Extra-K", "d"),
            ("Accept", "e"),
        ]);
        strip(&mut map);
        assert_eq!(map.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }
}
