//! Priority and fairness: whose requests wait, and for whom.
