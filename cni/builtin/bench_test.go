package builtin

import (
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// BenchmarkChain measures ADD and DEL of whole pods: every iteration attaches a
// pod in a namespace of its own, and detaches it. Making and ending the
// namespace is not counted where one is attached at a time. KeepLinks is as in the
// daemon. The last part of the name is how many other pods are attached meanwhile.
func BenchmarkChain(b *testing.B) {
	bin := pluginDir(b)
	const addresses = `"ipam":{"type":"host-local","dataDir":%q,"subnet":"10.77.0.0/16"}`
	for _, c := range []struct{ name, plugins string }{
		{"bridge", `{"type":"bridge","bridge":"cnitest0","isDefaultGateway":true,` + addresses + `}`},
		{"bridge-masq", `{"type":"bridge","bridge":"cnitest0","isDefaultGateway":true,"ipMasq":true,` + addresses + `}`},
		{"bridge-masq-portmap", `{"type":"bridge","bridge":"cnitest0","isDefaultGateway":true,"ipMasq":true,` + addresses +
			`},{"type":"portmap","capabilities":{"portMappings":true}}`},
	} {
		for _, load := range []benchLoad{{1, 0}, {8, 0}, {1, 100}} {
			b.Run(fmt.Sprintf("%s/%d/%d", c.name, load.parallel, load.others), func(b *testing.B) { benchChain(b, bin, c.plugins, load) })
		}
	}
}

type benchLoad struct{ parallel, others int }

func benchChain(b *testing.B, bin, plugins string, load benchLoad) {
	w := newWorld(b)
	e := newSeam(b, Types()...)
	e.set.cfg.KeepLinks = true
	lib := libcni.NewCNIConfigWithCacheDir([]string{bin}, filepath.Join(w.dir, "cache"), e)
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"bench","plugins":[`+plugins+`]}`, filepath.Join(w.dir, "ipam")))
	if err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(max(1, load.parallel/2)) // GOMAXPROCS times this many
	var n atomic.Int64
	adds, dels := make([]time.Duration, b.N), make([]time.Duration, b.N)
	pod := func(i int64) *libcni.RuntimeConf {
		return &libcni.RuntimeConf{ContainerID: fmt.Sprint("bench-", i), NetNS: w.namespaceFor(fmt.Sprint("p", i)), IfName: "eth0",
			CapabilityArgs: map[string]any{"portMappings": []portMapping{{HostPort: int(20000 + i%20000), ContainerPort: 80, Protocol: "tcp"}}}}
	}
	one := func(rt *libcni.RuntimeConf, i int64) {
		start := time.Now()
		if _, err := lib.AddNetworkList(b.Context(), list, rt); err != nil {
			b.Error(err)
		}
		added := time.Now()
		if err := lib.DelNetworkList(b.Context(), list, rt); err != nil {
			b.Error(err)
		}
		adds[i-1], dels[i-1] = added.Sub(start), time.Since(added)
	}
	for i := range load.others {
		other := pod(int64(-1 - i))
		if _, err := lib.AddNetworkList(b.Context(), list, other); err != nil {
			b.Fatal(err)
		}
		defer w.end(other.NetNS)
	}
	b.ReportAllocs()
	b.ResetTimer()
	if load.parallel == 1 {
		for range b.N {
			b.StopTimer()
			i := n.Add(1)
			rt := pod(i)
			b.StartTimer()
			one(rt, i)
			b.StopTimer()
			w.end(rt.NetNS)
			b.StartTimer()
		}
	} else {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				i := n.Add(1)
				rt := pod(i)
				one(rt, i)
				w.end(rt.NetNS)
			}
		})
	}
	b.StopTimer()
	for name, d := range map[string][]time.Duration{"ADD": adds, "DEL": dels} {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2])/1e6, name+"-p50-ms")
		b.ReportMetric(float64(d[len(d)*99/100])/1e6, name+"-p99-ms")
	}
}
