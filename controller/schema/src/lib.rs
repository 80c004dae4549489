//! Kubernetes' own schema: protobuf decoding, OpenAPI, strategic merge, server-side apply
