//! What a configuration must be, with Kubernetes' errors; expressions are compiled on the way.

use super::MAX_ISSUERS;
use super::types::{
    Anonymous, ClaimMappings, ClaimValidationRule, Issuer, JwtAuthenticator, PrefixedClaimOrExpression,
};
use crate::cel::Program;
use crate::field::{FieldError, Problems};
use crate::remote;
use std::collections::HashSet;

const BOTH: &str = "claim and expression can't both be set";
const EMAIL: &str = "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression";

/// An issuer with its expressions compiled.
#[derive(Debug, Clone)]
pub(crate) struct Compiled {
    pub(crate) config: JwtAuthenticator,
    pub(crate) username: Option<Program>,
    pub(crate) groups: Option<Program>,
    pub(crate) uid: Option<Program>,
    /// By key.
    pub(crate) extra: Vec<(String, Program)>,
    /// With the message.
    pub(crate) claim_rules: Vec<(Program, String)>,
    /// With the message.
    pub(crate) user_rules: Vec<(Program, String)>,
}

impl Compiled {
    /// Whether any claim goes through an expression.
    pub(crate) fn evaluates(&self) -> bool {
        let mappings = [&self.username, &self.groups, &self.uid].into_iter().any(Option::is_some);
        mappings || !self.extra.is_empty() || !self.claim_rules.is_empty() || !self.user_rules.is_empty()
    }
}

pub(super) fn configuration(
    jwt: Vec<JwtAuthenticator>,
    anonymous: Option<&Anonymous>,
    disallowed: &[String],
) -> Result<Vec<Compiled>, Vec<FieldError>> {
    let mut problems = Problems::default();
    if jwt.len() > MAX_ISSUERS {
        problems.add("jwt", format!("Too many: {}: must have at most {MAX_ISSUERS} items", jwt.len()));
        return Err(problems.0);
    }
    let (mut urls, mut discovery) = (HashSet::new(), HashSet::new());
    let mut compiled = Vec::new();
    for (at, config) in jwt.into_iter().enumerate() {
        let path = format!("jwt[{at}]");
        let (url, other) = (config.issuer.url.clone(), config.issuer.discovery_url.clone());
        compiled.push(authenticator(config, &path, disallowed, &mut problems));
        if urls.contains(&url) {
            problems.duplicate(format!("{path}.issuer.url"), &url);
        }
        urls.insert(url);
        if discovery.contains(&other) {
            problems.duplicate(format!("{path}.issuer.discoveryURL"), &other);
        }
        if !other.is_empty() {
            discovery.insert(other);
        }
    }
    if let Some(anonymous) = anonymous.filter(|anonymous| !anonymous.enabled && !anonymous.conditions.is_empty()) {
        let paths: Vec<&str> = anonymous.conditions.iter().map(|condition| condition.path.as_str()).collect();
        let why = "enabled should be set to true when conditions are defined";
        problems.invalid("anonymous.conditions", &paths.join(","), why);
    }
    if problems.0.is_empty() { Ok(compiled) } else { Err(problems.0) }
}

fn authenticator(config: JwtAuthenticator, path: &str, disallowed: &[String], problems: &mut Problems) -> Compiled {
    issuer(&config.issuer, &format!("{path}.issuer"), disallowed, problems);
    let claim_rules = claim_rules(&config.claim_validation_rules, &format!("{path}.claimValidationRules"), problems);
    let mut all = Compiled {
        username: None,
        groups: None,
        uid: None,
        extra: Vec::new(),
        claim_rules,
        user_rules: Vec::new(),
        config,
    };
    mappings(&mut all, &format!("{path}.claimMappings"), problems);
    let mut seen = HashSet::new();
    for (at, rule) in all.config.user_validation_rules.iter().enumerate() {
        let path = format!("{path}.userValidationRules[{at}].expression");
        if rule.expression.is_empty() {
            problems.required(path, "");
        } else if !seen.insert(&rule.expression) {
            problems.duplicate(path, &rule.expression);
        } else if let Some(program) = compile(&rule.expression, "user", true, path, problems) {
            all.user_rules.push((program, rule.message.clone()));
        }
    }
    all
}

fn issuer(issuer: &Issuer, path: &str, disallowed: &[String], problems: &mut Problems) {
    if issuer.url.is_empty() {
        problems.required(format!("{path}.url"), "");
    } else {
        if disallowed.contains(&issuer.url) {
            let mut list = disallowed.to_vec();
            list.sort_unstable();
            list.dedup();
            let why = format!("URL must not overlap with disallowed issuers: [{}]", list.join(" "));
            problems.invalid(format!("{path}.url"), &issuer.url, &why);
        }
        url(&issuer.url, &format!("{path}.url"), problems);
    }
    if !issuer.discovery_url.is_empty() {
        let path = format!("{path}.discoveryURL");
        if issuer.url.trim_end_matches('/') == issuer.discovery_url.trim_end_matches('/') {
            problems.invalid(&path, &issuer.discovery_url, "discoveryURL must be different from URL");
        }
        url(&issuer.discovery_url, &path, problems);
    }
    audiences(issuer, path, problems);
    if !issuer.certificate_authority.is_empty()
        && let Err(why) = remote::roots(issuer.certificate_authority.as_bytes())
    {
        problems.invalid(format!("{path}.certificateAuthority"), "<omitted>", &why);
    }
    if !issuer.egress_selector_type.is_empty() {
        let why = "egress selector is not supported";
        problems.invalid(format!("{path}.egressSelectorType"), &issuer.egress_selector_type, why);
    }
}

fn url(text: &str, path: &str, problems: &mut Problems) {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    if !scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
        problems.invalid(path, text, "URL scheme must be https");
    }
    let (before, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (base, query) = before.split_once('?').unwrap_or((before, ""));
    let parsed = base.parse::<http::Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
    match &parsed {
        None if scheme.is_some() => problems.invalid(path, text, "URL has no valid host or path"),
        Some(uri) if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
            problems.invalid(path, text, "URL must not contain a username or password");
        }
        _ => {}
    }
    if !query.is_empty() {
        problems.invalid(path, text, "URL must not contain a query");
    }
    if !fragment.is_empty() {
        problems.invalid(path, text, "URL must not contain a fragment");
    }
}

fn audiences(issuer: &Issuer, path: &str, problems: &mut Problems) {
    let (list, policy) = (&issuer.audiences, issuer.audience_match_policy.as_str());
    let place = format!("{path}.audiences");
    if list.is_empty() {
        problems.required(&place, &format!("at least one {place} is required"));
        return;
    }
    let mut seen = HashSet::new();
    for (at, audience) in list.iter().enumerate() {
        if audience.is_empty() {
            problems.required(format!("{place}[{at}]"), "");
        }
        if !seen.insert(audience) {
            problems.duplicate(format!("{place}[{at}]"), audience);
        }
    }
    let place = format!("{path}.audienceMatchPolicy");
    if list.len() > 1 && policy != "MatchAny" {
        problems.invalid(place, policy, "audienceMatchPolicy must be MatchAny for multiple audiences");
    } else if !policy.is_empty() && policy != "MatchAny" {
        problems.invalid(place, policy, "audienceMatchPolicy must be empty or MatchAny for single audience");
    }
}

fn claim_rules(rules: &[ClaimValidationRule], path: &str, problems: &mut Problems) -> Vec<(Program, String)> {
    let (mut claims, mut expressions, mut compiled) = (HashSet::new(), HashSet::new(), Vec::new());
    for (at, rule) in rules.iter().enumerate() {
        let path = format!("{path}[{at}]");
        match (rule.claim.is_empty(), rule.expression.is_empty()) {
            (false, false) => problems.invalid(path, &rule.claim, BOTH),
            (true, true) => problems.required(path, "claim or expression is required"),
            (false, true) => {
                if !rule.message.is_empty() {
                    let why = "may not be specified when claim is set";
                    problems.invalid(format!("{path}.message"), &rule.message, why);
                }
                if !claims.insert(&rule.claim) {
                    problems.duplicate(format!("{path}.claim"), &rule.claim);
                }
            }
            (true, false) => {
                if !rule.required_value.is_empty() {
                    let why = "may not be specified when expression is set";
                    problems.invalid(format!("{path}.requiredValue"), &rule.required_value, why);
                }
                let path = format!("{path}.expression");
                if !expressions.insert(&rule.expression) {
                    problems.duplicate(path, &rule.expression);
                } else if let Some(program) = compile(&rule.expression, "claims", true, path, problems) {
                    compiled.push((program, rule.message.clone()));
                }
            }
        }
    }
    compiled
}

fn mappings(all: &mut Compiled, path: &str, problems: &mut Problems) {
    let mappings = &all.config.claim_mappings;
    all.username = prefixed(&mappings.username, &format!("{path}.username"), true, problems);
    all.groups = prefixed(&mappings.groups, &format!("{path}.groups"), false, problems);
    let uid = &mappings.uid;
    if !uid.claim.is_empty() && !uid.expression.is_empty() {
        problems.invalid(format!("{path}.uid"), "", BOTH);
    } else if !uid.expression.is_empty() {
        all.uid = compile(&uid.expression, "claims", false, format!("{path}.uid.expression"), problems);
    }
    all.extra = extra(mappings, path, problems);
    let verified = |program: &Program| program.selects("email_verified");
    let conditions = all.claim_rules.iter().map(|(program, _)| program);
    let mut places = conditions.chain(all.extra.iter().map(|(_, program)| program)).chain(&all.username);
    if all.username.as_ref().is_some_and(|program| program.selects("email")) && !places.any(verified) {
        problems.invalid(format!("{path}.username.expression"), &mappings.username.expression, EMAIL);
    }
}

fn extra(mappings: &ClaimMappings, path: &str, problems: &mut Problems) -> Vec<(String, Program)> {
    let (mut seen, mut compiled) = (HashSet::new(), Vec::new());
    for (at, mapping) in mappings.extra.iter().enumerate() {
        let (path, key) = (format!("{path}.extra[{at}]"), mapping.key.as_str());
        let place = format!("{path}.key");
        domain_prefixed(key, &place, problems);
        if key != key.to_lowercase() {
            problems.invalid(&place, key, "must be lowercase");
        }
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        if ["kubernetes.io", "k8s.io"].iter().any(|own| domain == *own || domain.ends_with(&format!(".{own}"))) {
            let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
            problems.invalid(&place, key, why);
        }
        let place = format!("{path}.valueExpression");
        if !seen.insert(key) {
            problems.duplicate(format!("{path}.key"), key);
        } else if mapping.value_expression.is_empty() {
            problems.required(place, "");
        } else if let Some(program) = compile(&mapping.value_expression, "claims", false, place, problems) {
            compiled.push((key.to_owned(), program));
        }
    }
    compiled
}

/// A key such as `acme.io/foo`.
fn domain_prefixed(key: &str, path: &str, problems: &mut Problems) {
    if key.is_empty() {
        problems.required(path, "");
        return;
    }
    let Some((domain, rest)) = key.split_once('/').filter(|(domain, rest)| !domain.is_empty() && !rest.is_empty())
    else {
        problems.invalid(path, key, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        return;
    };
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-');
    if domain.len() > 253 || !domain.split('.').all(is_part) {
        problems.invalid(path, domain, "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')");
    }
    let is_path = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !rest.bytes().all(is_path) {
        problems.invalid(path, rest, "Invalid path");
    }
}

fn prefixed(
    mapping: &PrefixedClaimOrExpression,
    path: &str,
    required: bool,
    problems: &mut Problems,
) -> Option<Program> {
    match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
        (false, false) => problems.invalid(path, "", BOTH),
        (true, true) if required => problems.required(path, "claim or expression is required"),
        (true, true) => {}
        (true, false) => {
            if let Some(prefix) = &mapping.prefix {
                problems.invalid(format!("{path}.prefix"), prefix, "may not be specified when expression is set");
            }
            return compile(&mapping.expression, "claims", false, format!("{path}.expression"), problems);
        }
        (false, true) if mapping.prefix.is_none() => {
            let why = "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
            problems.required(format!("{path}.prefix"), why);
        }
        (false, true) => {}
    }
    None
}

fn compile(
    source: &str,
    variable: &'static str,
    condition: bool,
    path: String,
    problems: &mut Problems,
) -> Option<Program> {
    match Program::compile(source, variable, condition) {
        Ok(program) => Some(program),
        Err(why) => {
            problems.invalid(path, source, &why);
            None
        }
    }
}
