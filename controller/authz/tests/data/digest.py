#!/usr/bin/env python3
"""Digests of Kubernetes' default roles and bindings, from the lists that it publishes as test data.

    go mod download k8s.io/kubernetes@v1.35.0
    ./digest.py $(go env GOMODCACHE)/k8s.io/kubernetes@v1.35.0/plugin/pkg/auth/authorizer/rbac/bootstrappolicy/testdata

One line an object: resource, namespace (or -), name, how many single facts it states, FNV-1a (64 bits) over them.
A fact is a label, an annotation, a selector, a permission (one verb on one resource of one group, or on one path), the
role or one subject of a binding. `src/rbac/bootstrap/tests.rs` states the same of our objects.
"""
import sys, yaml

FILES = ["cluster-roles", "cluster-role-bindings", "controller-roles", "controller-role-bindings",
         "namespace-roles", "namespace-role-bindings"]

def facts(o):
    meta = o["metadata"]
    for field in "labels", "annotations":
        for key, value in (meta.get(field) or {}).items():
            yield f"{field} {key}={value}"
    for selector in (o.get("aggregationRule") or {}).get("clusterRoleSelectors", []):
        assert list(selector) == ["matchLabels"]
        yield "select " + ",".join(f"{k}={v}" for k, v in sorted(selector["matchLabels"].items()))
    for rule in o.get("rules") or []:
        for verb in rule["verbs"]:
            for group in rule.get("apiGroups") or []:
                for resource in rule.get("resources") or []:
                    for name in rule.get("resourceNames") or ["-"]:
                        yield f"allow {verb} {group}/{resource} {name}"
            for url in rule.get("nonResourceURLs") or []:
                yield f"allow {verb} {url}"
    if "roleRef" in o:
        yield "role {apiGroup} {kind} {name}".format(**o["roleRef"])
    for s in o.get("subjects") or []:
        yield f"subject {s.get('apiGroup', '-')} {s['kind']} {s.get('namespace', '-')} {s['name']}"

def digest(text):
    value = 0xcbf29ce484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001b3 % 2**64
    return value

lines = []
for name in FILES:
    with open(f"{sys.argv[1]}/{name}.yaml") as file:
        for o in yaml.safe_load(file)["items"]:
            meta, all = o["metadata"], sorted(set(facts(o)))
            lines.append(f"{o['kind'].lower()}s {meta.get('namespace', '-')} {meta['name']} {len(all)} {digest(chr(10).join(all)):016x}")
print("\n".join(sorted(lines)))
