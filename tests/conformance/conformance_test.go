// Package conformance runs the upstream conformance suite of the Gateway API against a cluster. In: flags of the suite
// and KUBECONFIG, both from run.sh. Out: test results, and the suite's report.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestGatewayAPI(t *testing.T) {
	conformance.RunConformance(t)
}
