// Command etcd is etcd's server, built from its Go modules as a peer of the store's bench.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
