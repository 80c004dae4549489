//! Whose requests run now, whose wait, whose are too many: the filter around [`causeway_flowcontrol`].
//!
//! In: requests whose user is known. Out: a [`Passage`], held as long as the request takes what it stands for, or 429.

use super::held::Held;
use crate::catalog::Table;
use crate::exchange::Reply;
use crate::feed::Feed;
use crate::request::RequestInfo;
use crate::status::{ApiError, ApiResult};
use axum::body::Body;
use causeway_api::identity::UserInfo;
use causeway_flowcontrol::{Budget, Budgets, Dispatcher, Facts, Listing, OverBudget, Rejected, Seat, Width};
use http::HeaderValue;

/// The filter.
pub struct FlowControl {
    /// Who runs, who waits.
    pub dispatcher: Dispatcher,
    /// What lasts: watches, streams, connections.
    pub budgets: Budgets,
    /// Connections of those who show no certificate.
    pub strangers: Budgets,
}

/// Connections without a client certificate: of one address, and in all. Half of all places stay for those who have one,
/// kubelets among them.
pub const STRANGERS: (u32, u32) = (500, 5000);

/// What a request holds while it is served.
pub struct Passage {
    seat: Option<Seat>,
    lasting: Option<Budget>,
}

impl FlowControl {
    /// Waits for the request's turn.
    pub async fn enter(&self, user: &UserInfo, info: &RequestInfo, table: &Table, feed: &Feed) -> ApiResult<Passage> {
        let target = info.target.as_ref();
        let subresource = target.and_then(|t| t.subresource.clone()).unwrap_or_default();
        let namespace = target.map(|t| t.scope().to_owned()).unwrap_or_default();
        let facts = Facts {
            user: &user.username,
            groups: &user.groups,
            verb: &info.verb,
            api_group: target.map_or("", |t| &t.group),
            resource: target.map_or("", |t| &t.resource),
            subresource: &subresource,
            namespace: &namespace,
            path: &info.path,
            is_resource: target.is_some(),
        };
        let lasting = match (info.long_running(), info.verb.as_str()) {
            (false, _) => None,
            (true, "watch") => Some(self.budgets.watch(&user.username).map_err(over)?),
            (true, _) => Some(self.budgets.stream(&user.username).map_err(over)?),
        };
        if lasting.is_some() && info.verb != "watch" {
            // Streams to kubelets are bounded by number: how long one takes is not ours to say.
            return Ok(Passage { seat: None, lasting });
        }
        let seat = self.dispatcher.admit(&facts, width(info, table, feed)).await.map_err(rejected)?;
        Ok(Passage { seat: Some(seat), lasting })
    }
}

fn over(why: OverBudget) -> ApiError {
    ApiError::too_many_requests(why.to_string(), why.retry_after_seconds, None)
}

fn rejected(why: Rejected) -> ApiError {
    tracing::debug!(%why, "request rejected");
    ApiError::too_many_requests(Rejected::MESSAGE, why.retry_after_seconds, None)
}

/// How much work a request is.
fn width(info: &RequestInfo, table: &Table, feed: &Feed) -> Width {
    let begins_with_list = info.verb == "list" || (info.verb == "watch" && info.query.get("resourceVersion").is_none());
    let served = info.target.as_ref().and_then(|t| table.get(&t.group, &t.version, &t.resource));
    let Some(served) = served.filter(|_| begins_with_list) else { return Width::one() };
    Width::list(&Listing {
        objects: feed.cache(&served.prefix).len() as u64,
        limit: info.query.number("limit").ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        single: info.selected("metadata.name").is_some(),
        selected: info.query.get("labelSelector").is_some() || info.query.get("fieldSelector").is_some(),
        cached: true,
        ..Listing::default()
    })
}

impl Passage {
    /// What is counted as long as an upgraded connection lasts.
    pub fn take_lasting(&mut self) -> Option<Budget> {
        self.lasting.take()
    }

    /// The response is made: its seat is free. What lasts is held until its body has ended.
    pub fn answered(mut self, reply: Reply) -> Reply {
        let flow = self.seat.take().map(|seat| {
            let flow = seat.flow();
            (flow.schema_uid.clone(), flow.level_uid.clone())
        });
        let (mut parts, body) = reply.0.into_parts();
        if let Some((schema, level)) = flow {
            for (name, uid) in
                [("x-kubernetes-pf-flowschema-uid", schema), ("x-kubernetes-pf-prioritylevel-uid", level)]
            {
                if let Ok(uid) = HeaderValue::from_str(&uid) {
                    parts.headers.insert(name, uid);
                }
            }
        }
        let body = match self.lasting.take() {
            None => body,
            Some(budget) => Body::new(Held::new(body, budget)),
        };
        Reply(http::Response::from_parts(parts, body))
    }
}
