//! Claims of a token that is believed, made into a user: by claims and prefixes, or by expressions; then rules.

use crate::cel::{self, Evaluation};
use crate::config::Compiled;
use crate::user::User;
use kube_cel::cel::Value as CelValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

type Claims = Map<String, Value>;

/// The user, or why there is none. Blocks while expressions are evaluated.
pub(super) fn user(compiled: &Compiled, claims: &Claims) -> Result<User, String> {
    let groups_claim = compiled.config.claim_mappings.groups.claim.as_str();
    let names = claims.get("_claim_names").and_then(Value::as_object);
    if !groups_claim.is_empty()
        && !claims.contains_key(groups_claim)
        && names.is_some_and(|names| names.contains_key(groups_claim))
    {
        // Without its groups a user could pass rules that would stop it with them.
        return Err("oidc: could not expand distributed claims: they are not supported".to_owned());
    }
    if !compiled.evaluates() {
        return Mapping { compiled, claims, evaluation: None }.user();
    }
    cel::evaluate(|evaluation| {
        let value = cel::value(&Value::Object(claims.clone()));
        Mapping { compiled, claims, evaluation: Some((evaluation, value)) }.user()
    })?
}

struct Mapping<'a> {
    compiled: &'a Compiled,
    claims: &'a Claims,
    evaluation: Option<(&'a Evaluation, CelValue)>,
}

impl Mapping<'_> {
    fn user(&self) -> Result<User, String> {
        let user = User { username: self.username()?, groups: self.groups()?, uid: self.uid()?, extra: self.extra()? };
        self.check_claims()?;
        self.check_user(&user)?;
        Ok(user)
    }

    fn run(&self, program: &cel::Program) -> Result<CelValue, String> {
        let (evaluation, claims) = self.evaluation.as_ref().ok_or("no evaluation")?;
        evaluation.run(program, claims)
    }

    /// A claim that must be a string.
    fn string(&self, name: &str) -> Result<&str, String> {
        let value = self.claims.get(name).ok_or("claim not present")?;
        value.as_str().ok_or_else(|| "claim is no string".to_owned())
    }

    fn username(&self) -> Result<String, String> {
        if let Some(program) = &self.compiled.username {
            let failed = |why: String| format!("oidc: error evaluating username claim expression: {why}");
            return match self.run(program).map_err(failed)? {
                CelValue::String(name) => Ok(name.to_string()),
                _ => Err(failed("username claim expression must return a string".to_owned())),
            };
        }
        let mapping = &self.compiled.config.claim_mappings.username;
        let claim = mapping.claim.as_str();
        let name = self.string(claim).map_err(|why| format!("oidc: parse username claims {claim:?}: {why}"))?;
        if claim == "email"
            && let Some(verified) = self.claims.get("email_verified")
        {
            match verified {
                Value::Bool(true) => {}
                Value::Bool(false) => return Err("oidc: email not verified".to_owned()),
                _ => return Err("oidc: parse 'email_verified' claim: it is no boolean".to_owned()),
            }
        }
        Ok(format!("{}{name}", mapping.prefix.as_deref().unwrap_or_default()))
    }

    fn groups(&self) -> Result<Vec<String>, String> {
        let mapping = &self.compiled.config.claim_mappings.groups;
        if let Some(program) = &self.compiled.groups {
            let value = self.run(program).and_then(strings);
            return value.map_err(|why| format!("oidc: error evaluating group claim expression: {why}"));
        }
        let claim = mapping.claim.as_str();
        let groups: Option<Vec<&str>> = match self.claims.get(claim).filter(|_| !claim.is_empty()) {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(Value::String(one)) => Some(vec![one]),
            Some(Value::Array(list)) => list.iter().map(Value::as_str).collect(),
            Some(_) => None,
        };
        let wrong = || format!("oidc: parse groups claim {claim:?}: it is neither a string nor a list of strings");
        let prefix = mapping.prefix.as_deref().unwrap_or_default();
        Ok(groups.ok_or_else(wrong)?.into_iter().map(|group| format!("{prefix}{group}")).collect())
    }

    fn uid(&self) -> Result<String, String> {
        let claim = self.compiled.config.claim_mappings.uid.claim.as_str();
        if !claim.is_empty() {
            let uid = self.string(claim).map(str::to_owned);
            return uid.map_err(|why| format!("oidc: parse uid claim {claim:?}: {why}"));
        }
        let Some(program) = &self.compiled.uid else { return Ok(String::new()) };
        let failed = |why: String| format!("oidc: error evaluating uid claim expression: {why}");
        match self.run(program).map_err(failed)? {
            CelValue::String(uid) => Ok(uid.to_string()),
            _ => Err(failed("uid claim expression must return a string".to_owned())),
        }
    }

    fn extra(&self) -> Result<BTreeMap<String, Vec<String>>, String> {
        let mut extra = BTreeMap::new();
        for (key, program) in &self.compiled.extra {
            let values = self.run(program).and_then(strings);
            let values = values
                .map_err(|why| format!("oidc: error evaluating extra claim expression: {}: {why}", program.source()))?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        Ok(extra)
    }

    fn check_claims(&self) -> Result<(), String> {
        for rule in self.compiled.config.claim_validation_rules.iter().filter(|rule| !rule.claim.is_empty()) {
            let (claim, want) = (rule.claim.as_str(), rule.required_value.as_str());
            if !self.claims.contains_key(claim) {
                return Err(format!("oidc: required claim {claim} not present in ID token"));
            }
            let value = self.string(claim).map_err(|why| format!("oidc: parse claim {claim}: {why}"))?;
            if value != want {
                let got: String = value.chars().filter(|c| !c.is_control()).take(256).collect();
                return Err(format!("oidc: required claim {claim} value does not match. Got = {got}, want = {want}"));
            }
        }
        for (program, message) in &self.compiled.claim_rules {
            let met = self.run(program).and_then(|value| condition(program, message, &value));
            met.map_err(|why| format!("oidc: error evaluating claim validation expression: {why}"))?;
        }
        Ok(())
    }

    fn check_user(&self, user: &User) -> Result<(), String> {
        if self.compiled.user_rules.is_empty() {
            return Ok(());
        }
        let (evaluation, _) = self.evaluation.as_ref().ok_or("no evaluation")?;
        let value = cel::value(&json!({
            "username": user.username, "uid": user.uid, "groups": user.groups, "extra": user.extra,
        }));
        for (program, message) in &self.compiled.user_rules {
            let met = evaluation.run(program, &value).and_then(|value| condition(program, message, &value));
            met.map_err(|why| format!("oidc: error evaluating user info validation rule: {why}"))?;
        }
        Ok(())
    }
}

/// Whether a rule is met.
fn condition(program: &cel::Program, message: &str, value: &CelValue) -> Result<(), String> {
    match value {
        CelValue::Bool(true) => Ok(()),
        CelValue::Bool(false) => Err(format!("validation expression '{}' failed: {message}", program.source())),
        _ => Err("validation expression must return a boolean".to_owned()),
    }
}

/// A string or a list of strings; empty ones count as not there.
fn strings(value: CelValue) -> Result<Vec<String>, String> {
    let wrong = || "expression must return a string or a list of strings".to_owned();
    let all = match value {
        CelValue::Null => Vec::new(),
        CelValue::String(one) => vec![one.to_string()],
        CelValue::List(list) => {
            let text = |item: &CelValue| match item {
                CelValue::String(text) => Some(text.to_string()),
                _ => None,
            };
            list.iter().map(text).collect::<Option<Vec<_>>>().ok_or_else(wrong)?
        }
        _ => return Err(wrong()),
    };
    Ok(all.into_iter().filter(|text| !text.is_empty()).collect())
}

#[cfg(test)]
mod tests;
