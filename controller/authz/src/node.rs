//! What a node may reach: the objects that its pods refer to.
