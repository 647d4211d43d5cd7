package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const goodList = `{"cniVersion":"1.1.0","name":"net-a","plugins":[{"type":"fake","capabilities":{"portMappings":true}}]}`

// addOK prints a result on ADD and notes every command in calls.
const addOK = `#!/bin/sh
echo "$CNI_COMMAND $CNI_ARGS" >>"$0.calls"
cat >"$0.stdin.$CNI_COMMAND"
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.1.0","interfaces":[{"name":"br"},{"name":"eth0","sandbox":"/x"}],
"ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.7/24","interface":1},{"address":"fd00::7/64","interface":1}]}'
exit 0
`

type bench struct {
	*Manager
	conf, bin string
}

func newBench(t *testing.T, files map[string]string, plugin string) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{conf: filepath.Join(dir, "net.d"), bin: filepath.Join(dir, "bin")}
	for _, d := range []string{b.conf, b.bin} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		write(t, filepath.Join(b.conf, name), text, 0o644)
	}
	if plugin != "" {
		write(t, filepath.Join(b.bin, "fake"), plugin, 0o755)
	}
	var err error
	b.Manager, err = New(Config{ConfDir: b.conf, BinDirs: []string{filepath.Join(dir, "none"), b.bin},
		CacheDir: filepath.Join(dir, "cache"), Timeout: time.Minute, Pace: Pace{Status: time.Minute, Relist: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) calls(t *testing.T) string {
	t.Helper()
	out, err := os.ReadFile(filepath.Join(b.bin, "fake.calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var verbs []string
	for l := range strings.Lines(string(out)) {
		if v, _, _ := strings.Cut(l, " "); v != "STATUS" && v != "VERSION" {
			verbs = append(verbs, v)
		}
	}
	return strings.Join(verbs, " ")
}

func request() Request {
	return Request{SandboxID: "abc", NetNS: "/run/x", CgroupPath: "/pod", Config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"},
		PortMappings: []*runtimeapi.PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: runtimeapi.Protocol_UDP, HostIp: "127.0.0.1"}, {ContainerPort: 9}},
	}}
}

func TestAttachDetach(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	res, err := b.Attach(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"10.0.0.7", "fd00::7"}, res.IPs); d != "" {
		t.Error(d)
	}
	stdin, err := os.ReadFile(filepath.Join(b.bin, "fake.stdin.ADD"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		RuntimeConfig struct{ PortMappings []portMapping }
	}
	if err := json.Unmarshal(stdin, &got); err != nil {
		t.Fatal(err)
	}
	want := []portMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "udp", HostIP: "127.0.0.1"}}
	if d := cmp.Diff(want, got.RuntimeConfig.PortMappings); d != "" {
		t.Error(d)
	}
	out, _ := os.ReadFile(filepath.Join(b.bin, "fake.calls"))
	if w := "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u"; !strings.Contains(string(out), w) {
		t.Errorf("CNI_ARGS: %s", out)
	}
	if err := b.Check(t.Context(), request()); err != nil {
		t.Error(err)
	}
	// The configuration goes away: the note still knows the network.
	if err := os.Remove(filepath.Join(b.conf, "10-a.conflist")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Detach(t.Context(), request()); err != nil {
			t.Fatal(err)
		}
	}
	if c := b.calls(t); c != "ADD CHECK DEL" {
		t.Errorf("calls: %s", c)
	}
	stdin, _ = os.ReadFile(filepath.Join(b.bin, "fake.stdin.DEL"))
	if !strings.Contains(string(stdin), "prevResult") || !strings.Contains(string(stdin), `"hostPort":80`) {
		t.Errorf("DEL got %s", stdin)
	}
}

func TestAttachFailures(t *testing.T) {
	for _, c := range []struct{ name, plugin, want string }{
		{"error document", "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = DEL ] && exit 0\necho '{\"code\":11,\"msg\":\"full\",\"details\":\"10.0.0.0/24\"}'; exit 1\n", "full; 10.0.0.0/24"},
		{"says nothing", "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\nexit 3\n", "exit status 3"},
		{"garbage", "#!/bin/sh\ncat >/dev/null\necho '<html>'\n", "unmarshal"},
		{"null", "#!/bin/sh\ncat >/dev/null\necho null\n", "no address"},
		{"nothing printed", "#!/bin/sh\ncat >/dev/null\n", "unexpected end"},
		{"stderr", "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\necho no bridge >&2; exit 1\n", "no bridge"},
		{"killed", "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\nkill -9 $$\n", "killed"},
		{"hangs with a child", "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 & wait\n", "did not end in time"},
		{"missing", "", `plugin "fake" is not in`},
		{"not executable", addOK, "cannot be executed"},
		{"result of an unknown version", strings.ReplaceAll(addOK, "1.1.0", "9.9.9"), "9.9.9"},
		{"knows another version", "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = DEL ] && exit 0\necho '{\"code\":1,\"msg\":\"incompatible CNI versions\"}'; exit 1\n", "incompatible CNI versions"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, map[string]string{"10-a.conflist": goodList}, c.plugin)
			if strings.HasPrefix(c.name, "hangs") {
				b.cfg.Timeout = 3 * time.Second
			}
			if c.name == "not executable" {
				if err := os.Chmod(filepath.Join(b.bin, "fake"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			_, err := b.Attach(t.Context(), request())
			if err == nil {
				t.Fatal("attached")
			}
			for _, w := range []string{c.want, "net-a", "10-a.conflist"} {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v: does not say %q", err, w)
				}
			}
			// Only a plugin that cannot be run cannot be told to undo.
			_, statErr := os.Stat(b.intentPath("abc"))
			if owed := statErr == nil; owed != (c.name == "missing" || c.name == "not executable") {
				t.Errorf("detach is owed: %v; %v", owed, err)
			}
		})
	}
}

// A request that no attach takes leaves nothing to detach, and what does not
// come from an attach of this daemon's is detached without what is wrong in it.
func TestDetachOfRefusedRequest(t *testing.T) {
	for _, key := range []string{annotationIngress, annotationEgress} {
		for _, value := range []string{"1", "x", "2P"} {
			b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
			r := request()
			r.Config.Annotations = map[string]string{key: value}
			if _, err := b.Attach(t.Context(), r); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), key) {
				t.Errorf("attach with %s %q: %v", key, value, err)
			}
			if err := b.Detach(t.Context(), r); err != nil || b.calls(t) != "" {
				t.Errorf("detach with %s %q: %v, calls %q", key, value, err, b.calls(t))
			}
			if err := b.Check(t.Context(), r); !errdefs.IsNotFound(err) {
				t.Errorf("check with %s %q: %v", key, value, err)
			}
			r.Attached = true
			if err := b.Detach(t.Context(), r); err != nil || b.calls(t) != "DEL" {
				t.Errorf("detach of an attached one with %s %q: %v, calls %q", key, value, err, b.calls(t))
			}
			if stdin, err := os.ReadFile(filepath.Join(b.bin, "fake.stdin.DEL")); err != nil || !strings.Contains(string(stdin), `"hostPort":80`) {
				t.Errorf("DEL got %s, %v", stdin, err)
			}
		}
	}
}

// Damaged notes keep no pod for ever: what is not readable is passed over, down to
// the network that is configured now.
func TestDetachWithDamagedNotes(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, note, cached string){
		"note":           func(t *testing.T, note, _ string) { write(t, note, "", 0o600) },
		"half a note":    func(t *testing.T, note, _ string) { write(t, note, `{"Network":`, 0o600) },
		"note and cache": func(t *testing.T, note, cached string) { write(t, note, "", 0o600); write(t, cached, "", 0o600) },
		"cache":          func(t *testing.T, _, cached string) { write(t, cached, "{", 0o600) },
		"network in both": func(t *testing.T, note, cached string) {
			write(t, note, `{"Network":{"cniVersion":"1.1.0"}}`, 0o600)
			raw, err := os.ReadFile(cached)
			if err != nil {
				t.Fatal(err)
			}
			var doc map[string]any
			if err := json.Unmarshal(raw, &doc); err != nil {
				t.Fatal(err)
			}
			doc["config"] = []byte(`{"cniVersion":"1.1.0"}`)
			if raw, err = json.Marshal(doc); err != nil {
				t.Fatal(err)
			}
			write(t, cached, string(raw), 0o600)
		},
	} {
		b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
		if _, err := b.Attach(t.Context(), request()); err != nil {
			t.Fatal(err)
		}
		cached, err := filepath.Glob(filepath.Join(b.cfg.CacheDir, "results", "*"))
		if err != nil || len(cached) != 1 {
			t.Fatal(cached, err)
		}
		damage(t, b.intentPath("abc"), cached[0])
		r := request()
		r.Attached = true
		if err := b.Detach(t.Context(), r); err != nil || !strings.HasSuffix(strings.TrimSpace(b.calls(t)), "DEL") {
			t.Errorf("%s: %v, calls %q", name, err, b.calls(t))
		}
		if ids, err := b.Owed(); err != nil || len(ids) > 0 {
			t.Errorf("%s: still owed: %v, %v", name, ids, err)
		}
	}
}

func TestFailedAddIsFollowedByDel(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList},
		"#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND >>$0.calls\n[ $CNI_COMMAND = DEL ]\n")
	if _, err := b.Attach(t.Context(), request()); err == nil {
		t.Fatal("attached")
	}
	if c := strings.Fields(b.calls(t)); !cmp.Equal(c, []string{"ADD", "DEL"}) {
		t.Errorf("calls: %v", c)
	}
}

// A plugin that knows nothing of the sandbox any more does not keep those before
// it in the list from their DEL, nor the cached result from going.
func TestDetachToleratesUnknownContainer(t *testing.T) {
	list := strings.Replace(goodList, "}]}", `},{"type":"forgetful"}]}`, 1)
	for _, how := range []string{"program", "in-process"} {
		for _, detach := range []func(b *bench) error{
			func(b *bench) error { return b.Detach(t.Context(), request()) },
			func(b *bench) error { // as after a power cut
				return errors.Join(b.dropIntent("abc"), b.Collect(t.Context(), nil))
			},
		} {
			b := newBench(t, map[string]string{"10-a.conflist": list}, addOK)
			write(t, filepath.Join(b.bin, "forgetful"), addOK, 0o755)
			if _, err := b.Attach(t.Context(), request()); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(b.bin, "forgetful"), "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = DEL ] || exit 0\necho '{\"code\":3,\"msg\":\"no such sandbox\"}'; exit 1\n", 0o755)
			if how == "in-process" {
				b.exec.inProcess["forgetful"] = func(_ context.Context, _ []byte, env []string) ([]byte, error) {
					if slices.Contains(env, "CNI_COMMAND=GC") {
						return nil, nil
					}
					return nil, fmt.Errorf("in-process: %w", &types.Error{Code: types.ErrUnknownContainer, Msg: "no such sandbox"})
				}
			}
			if err := detach(b); err != nil {
				t.Errorf("%s: %v", how, err)
			}
			if c := b.calls(t); !strings.HasPrefix(c, "ADD DEL") {
				t.Errorf("%s: calls of the plugin before it: %s", how, c)
			}
			if cached, err := b.lib.GetCachedAttachments(""); err != nil || len(cached) != 0 {
				t.Errorf("%s: cached: %v, %v", how, cached, err)
			}
		}
	}
}

// Only on DEL is it a success.
func TestUnknownContainerFailsCheck(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	if _, err := b.Attach(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(b.bin, "fake"), "#!/bin/sh\ncat >/dev/null\necho '{\"code\":3,\"msg\":\"no such sandbox\"}'; exit 1\n", 0o755)
	if err := b.Check(t.Context(), request()); err == nil || !strings.Contains(err.Error(), "no such sandbox") {
		t.Errorf("check: %v", err)
	}
	// A plugin served in-process hears the same of one it delegates to.
	for command, fails := range map[string]bool{"DEL": false, "ADD": true} {
		if _, err := b.exec.program(t.Context(), "fake", []string{b.bin}, nil, []string{"CNI_COMMAND=" + command}); (err != nil) != fails {
			t.Errorf("delegated %s: %v", command, err)
		}
	}
}

func TestInProcessPlugin(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, "")
	b.exec.inProcess = map[string]Plugin{"fake": func(context.Context, []byte, []string) ([]byte, error) {
		return []byte(`{"cniVersion":"1.1.0","ips":[{"address":"10.1.1.1/24"}]}`), nil
	}}
	res, err := b.Attach(t.Context(), request())
	if err != nil || !cmp.Equal(res.IPs, []string{"10.1.1.1"}) {
		t.Errorf("%v, %v", res.IPs, err)
	}
}

func TestParseQuantity(t *testing.T) {
	for in, want := range map[string]int64{"1": 1, "10M": 10e6, "1.5Gi": 3 << 29, "2e6": 2e6, "1k": 1000, "0.5": 1, "100m": 1, ".5k": 500, "1P": 1e15} {
		if got, err := parseQuantity(in); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "M", "1X", "1 M", "9999E", "1e99", "0x10", "1/2", "--1"} {
		if got, err := parseQuantity(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
}

func TestBandwidth(t *testing.T) {
	got, err := bandwidthOf(map[string]string{annotationIngress: "10M", "other": "x"})
	if err != nil || !cmp.Equal(got, &bandwidth{IngressRate: 10e6, IngressBurst: 1<<31 - 1}) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := bandwidthOf(nil); got != nil || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := bandwidthOf(map[string]string{annotationEgress: "1"}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), annotationEgress) {
		t.Errorf("%v", err)
	}
}

func FuzzParseQuantity(f *testing.F) {
	f.Add("1.5Gi")
	f.Add("2e-6")
	f.Fuzz(func(t *testing.T, s string) { _, _ = parseQuantity(s) })
}

func FuzzPluginError(f *testing.F) {
	f.Add([]byte(`{"code":7,"msg":"x"}`), []byte("e"))
	f.Fuzz(func(t *testing.T, out, errOut []byte) {
		if pluginError(errors.New("exit"), out, errOut).Error() == "" {
			t.Error("says nothing")
		}
	})
}

// TestStartSweepsHalfWrittenNotes leaves what a daemon that died was writing, and
// a whole note, which must stay: a detach is owed for it.
func TestStartSweepsHalfWrittenNotes(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	if _, err := b.Attach(t.Context(), requestOf("kept")); err != nil {
		t.Fatal(err)
	}
	halves := []string{b.intentPath(halfWritten + "123"), filepath.Join(filepath.Dir(b.intentPath("")), halfWritten+"456"), filepath.Join(b.conf, halfWritten+"789")}
	for _, half := range halves {
		write(t, half, `{"Netw`, 0o600)
	}
	b.Start()
	for _, half := range halves {
		if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a half written note is left: %v", err)
		}
	}
	if ids, err := b.Owed(); err != nil || len(ids) != 1 || ids[0] != "kept" {
		t.Errorf("noted: %v, %v", ids, err)
	}
}
