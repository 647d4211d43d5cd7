package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func requestOf(id string) Request {
	r := request()
	r.SandboxID, r.Config.PortMappings = id, nil
	return r
}

// The plugins hear which attachments are left; what was cached and is no more is
// detached with its result, whatever the version.
func TestCollect(t *testing.T) {
	for _, c := range []struct{ version, calls string }{{"1.1.0", "ADD ADD ADD DEL GC"}, {"0.4.0", "ADD ADD ADD DEL"}} {
		t.Run(c.version, func(t *testing.T) {
			list := strings.Replace(goodList, "1.1.0", c.version, 1)
			plugin := strings.Replace(addOK, `"cniVersion":"1.1.0"`, `"cniVersion":"`+c.version+`"`, 1)
			if c.version == "0.4.0" {
				plugin = strings.NewReplacer(`"address":"10`, `"version":"4","address":"10`, `"address":"fd`, `"version":"6","address":"fd`).Replace(plugin)
			}
			b := newBench(t, map[string]string{"10-a.conflist": list}, plugin)
			for _, id := range []string{"noted", "known", "lost"} {
				if _, err := b.Attach(t.Context(), requestOf(id)); err != nil {
					t.Fatal(err)
				}
			}
			for _, id := range []string{"known", "lost"} { // as after a power cut
				if err := os.Remove(b.intentPath(id)); err != nil {
					t.Fatal(err)
				}
			}
			// The configuration goes: the attachments still tell of the network.
			if err := os.Remove(filepath.Join(b.conf, "10-a.conflist")); err != nil {
				t.Fatal(err)
			}
			if err := b.Collect(t.Context(), []string{"known", "noted"}); err != nil {
				t.Fatal(err)
			}
			if got := b.calls(t); got != c.calls {
				t.Errorf("calls: %s, want %s", got, c.calls)
			}
			stdin, err := os.ReadFile(filepath.Join(b.bin, "fake.stdin.DEL"))
			if err != nil || !strings.Contains(string(stdin), "prevResult") {
				t.Errorf("DEL got %s, %v", stdin, err)
			}
			if c.version != "1.1.0" {
				return
			}
			if stdin, err = os.ReadFile(filepath.Join(b.bin, "fake.stdin.GC")); err != nil {
				t.Fatal(err)
			}
			var got struct {
				Valid []struct{ ContainerID, IfName string } `json:"cni.dev/valid-attachments"`
			}
			if err := json.Unmarshal(stdin, &got); err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, v := range got.Valid {
				ids = append(ids, v.ContainerID+" "+v.IfName)
			}
			if d := cmp.Diff([]string{"known eth0", "noted eth0"}, ids); d != "" {
				t.Error(d)
			}
		})
	}
}

// A collection and an attach of one network never meet, and a collection does
// not wait: a plugin that hangs must not make others hang.
func TestCollectGivesWay(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	if _, err := b.Attach(t.Context(), requestOf("w")); err != nil {
		t.Fatal(err)
	}
	added, err := b.turns.add(t.Context(), "net-a")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Collect(t.Context(), nil); !errdefs.IsUnavailable(err) || b.calls(t) != "ADD" {
		t.Errorf("while a pod is attached: %v, calls %q", err, b.calls(t))
	}
	added()
	collected, ok := b.turns.collect("net-a")
	if !ok {
		t.Fatal("the network is still in use")
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Attach(short, requestOf("x")); !errdefs.IsUnavailable(err) || !errors.Is(err, context.Canceled) {
		t.Errorf("attach during a collection, for an impatient client: %v", err)
	}
	if ids, err := b.Owed(); err != nil || len(ids) != 1 {
		t.Errorf("noted: %v, %v", ids, err)
	}
	done := make(chan error)
	go func() { _, err := b.Attach(t.Context(), requestOf("y")); done <- err }()
	collected()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := b.Collect(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// A network whose configuration forbids it is not collected, nor one that no pod
// of Berth's has been attached to: others may use it.
func TestCollectLeavesAlone(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	if err := b.Collect(t.Context(), nil); err != nil || b.calls(t) != "" {
		t.Errorf("a network of others: %v, calls %s", err, b.calls(t))
	}
	b = newBench(t, map[string]string{"10-a.conflist": strings.Replace(goodList, `"plugins"`, `"disableGC":true,"plugins"`, 1)}, addOK)
	if _, err := b.Attach(t.Context(), requestOf("a")); err != nil {
		t.Fatal(err)
	}
	if err := b.Collect(t.Context(), nil); err != nil || b.calls(t) != "ADD" {
		t.Errorf("forbidden: %v, calls %s", err, b.calls(t))
	}
}

// A collection that fails says of which network, and the others are collected.
func TestCollectFails(t *testing.T) {
	other := strings.NewReplacer("net-a", "net-b", `"fake"`, `"other"`).Replace(goodList)
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	write(t, filepath.Join(b.bin, "other"), addOK, 0o755)
	if _, err := b.Attach(t.Context(), requestOf("a")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(b.conf, "05-b.conflist"), other, 0o644)
	if _, err := b.Attach(t.Context(), requestOf("b")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(b.bin, "fake"), "#!/bin/sh\necho '{\"code\":11,\"msg\":\"not today\"}'; exit 1\n", 0o755)
	err := b.Collect(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), `"net-a"`) || !strings.Contains(err.Error(), "not today") || strings.Contains(err.Error(), "net-b") {
		t.Errorf("collect: %v", err)
	}
	calls, _ := os.ReadFile(filepath.Join(b.bin, "other.calls"))
	if !slices.Contains(strings.Fields(string(calls)), "GC") {
		t.Errorf("the other network: %s", calls)
	}
}

// A collection that a plugin hangs in is tried again less and less often, and the
// time-outs are warned of; after one that succeeds it begins anew.
func TestKeepCollectingBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, map[string]string{"10-a.conflist": goodList}, "")
		var log bytes.Buffer
		b.cfg.Timeout = 3 * time.Second
		b.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		hangs := []bool{true, true, true, true, true, true, true, true, false, true, true}
		var began []time.Time
		ctx, cancel := context.WithCancel(t.Context())
		b.exec.inProcess = map[string]Plugin{"fake": func(call context.Context, _ []byte, env []string) ([]byte, error) {
			if !slices.Contains(env, "CNI_COMMAND=GC") {
				return []byte(`{"cniVersion":"1.1.0","ips":[{"address":"10.1.1.1/24"}]}`), nil
			}
			began = append(began, time.Now())
			if len(began) == len(hangs) {
				cancel()
			}
			if !hangs[len(began)-1] {
				return nil, nil
			}
			<-call.Done()
			return nil, context.Cause(call)
		}}
		if _, err := b.Attach(ctx, requestOf("a")); err != nil {
			t.Fatal(err)
		}
		b.KeepCollecting(ctx, func() []string { return nil })
		var pauses []time.Duration
		for i, at := range began[1:] {
			pauses = append(pauses, at.Sub(began[i]).Truncate(time.Minute)/time.Minute)
		}
		if d := cmp.Diff([]time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60, 1}, pauses); d != "" {
			t.Error(d)
		}
		if n := strings.Count(log.String(), "level=WARN msg=\"garbage collection"); n != 9 {
			t.Errorf("%d warnings:\n%s", n, log.String())
		}
	})
}
