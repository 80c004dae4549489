//! Roles and bindings of Causeway's components, each for what its code does and no more; in the form of
//! `bootstrap/table.rs`.
//!
//! The scheduler has none: `system:kube-scheduler` and `system:volume-scheduler` cover it. What a kubelet may do is
//! the node authoriser's to say. What RBAC cannot say (the ingress reads a Secret or ConfigMap that the request
//! names, whichever it is, but lists none) is not here.

pub(super) const TABLE: &str = "\
# The copies that controllers and scheduler share: never Secrets.
role system:causeway:controllers
  read core: configmaps endpoints namespaces nodes persistentvolumeclaims persistentvolumes pods resourcequotas serviceaccounts
      services
  read apps: controllerrevisions daemonsets deployments replicasets statefulsets
  read certificates.k8s.io: certificatesigningrequests
  read coordination.k8s.io: leases
  read discovery.k8s.io: endpointslices
  read networking.k8s.io: ipaddresses servicecidrs
  read policy: poddisruptionbudgets
  read storage.k8s.io: storageclasses
bind system:causeway:controllers = User:system:causeway:controllers

# The copies that the components of a node share: never Secrets or ConfigMaps.
role system:causeway:node
  read core: namespaces nodes pods services
  read discovery.k8s.io: endpointslices
  read networking.k8s.io: servicecidrs
bind system:causeway:node = User:system:causeway:node

# The first rule is the garbage collector's and the namespace controller's: objects of every kind, custom ones too.
# Subresources that are patched (nodes/status, pods/status, services/status, certificatesigningrequests/approval)
# are in it.
role system:causeway:controller-manager
  delete,deletecollection,get,list,patch,watch *: *
  create core: configmaps endpoints events persistentvolumeclaims persistentvolumes pods serviceaccounts
  create apps: controllerrevisions replicasets
  create discovery.k8s.io: endpointslices
  create networking.k8s.io: ipaddresses
  create storage.k8s.io: storageclasses
  update core: endpoints namespaces/finalize namespaces/status persistentvolumeclaims/status persistentvolumes/status
      resourcequotas/status
  update apps: daemonsets/status deployments/status replicasets/status statefulsets/status
  update discovery.k8s.io: endpointslices
  update policy: poddisruptionbudgets/status
  update core: services/finalizers
  update apps: daemonsets/finalizers deployments/finalizers replicasets/finalizers statefulsets/finalizers
  approve certificates.k8s.io: signers @ kubernetes.io/kube-apiserver-client-kubelet kubernetes.io/kubelet-serving
bind system:causeway:controller-manager = User:system:kube-controller-manager

# Signs certificates and repairs addresses of Services, inside the API server.
role system:causeway:apiserver
  list,watch certificates.k8s.io: certificatesigningrequests
  patch certificates.k8s.io: certificatesigningrequests/status
  sign certificates.k8s.io: signers @ kubernetes.io/kube-apiserver-client
      kubernetes.io/kube-apiserver-client-kubelet kubernetes.io/kubelet-serving
  create,patch core: events
bind system:causeway:apiserver = User:system:apiserver

# What a proxy of service addresses reads beyond system:node-proxier.
role system:causeway:kube-proxy
  get core: endpoints services
  read core: namespaces
  get discovery.k8s.io: endpointslices
  get networking.k8s.io: servicecidrs
bind system:causeway:kube-proxy = User:system:kube-proxy

# Secrets are written for certificates that it got by ACME; each Gateway gets a Service and its EndpointSlices.
role system:causeway:ingress
  list,watch networking.k8s.io: ingressclasses ingresses
  create networking.k8s.io: ingressclasses
  patch networking.k8s.io: ingresses ingresses/status
  list,watch gateway.networking.k8s.io: *
  create gateway.networking.k8s.io: gatewayclasses
  patch gateway.networking.k8s.io: */status
  update gateway.networking.k8s.io: gateways/finalizers
  create,get apiextensions.k8s.io: customresourcedefinitions
  create,patch core: secrets
  create,delete,patch core: services
  create,patch discovery.k8s.io: endpointslices
  create,patch core: events
bind system:causeway:ingress = User:system:causeway:ingress

role system:causeway:network-policy
  list,watch core: pods
  list,watch networking.k8s.io: networkpolicies
bind system:causeway:network-policy = User:system:causeway:network-policy

# What it says of a Service's address; its leases are in kube-system.
role system:causeway:announce
  create,patch core: events
bind system:causeway:announce = User:system:causeway:announce

# Whoever holds a bootstrap token may ask for the certificate of a node.
bind kubeadm:kubelet-bootstrap system:node-bootstrapper Group:system:bootstrappers

in kube-system
role system:causeway:ingress
  get core: secrets @ causeway-acme-account
bind system:causeway:ingress = User:system:causeway:ingress

role system:causeway:dns
  list,watch core: configmaps @ causeway-dns
  create,patch core: events
  create,patch discovery.k8s.io: endpointslices
bind system:causeway:dns = User:system:causeway:dns

role system:causeway:announce
  create,delete,get,list,patch,update,watch coordination.k8s.io: leases
bind system:causeway:announce = User:system:causeway:announce

# Every node reads the settings of the cluster when it starts.
role system:causeway:settings
  get core: configmaps @ causeway-config
bind system:causeway:settings = Group:system:nodes

in kube-public
# Who wants to join has no credential yet.
role kubeadm:bootstrap-signer-clusterinfo
  get core: configmaps @ cluster-info
bind kubeadm:bootstrap-signer-clusterinfo = User:system:anonymous
";
