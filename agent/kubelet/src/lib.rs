//! The kubelet: pods from the API to running containers and back to status
