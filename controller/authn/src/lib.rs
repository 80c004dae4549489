//! Who a caller is: tokens of other issuers, webhooks, front proxies.
