package doctor

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// healthy is a node without a fault.
func healthy() Facts {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	sysctls := map[string]string{}
	for _, r := range sysctlRules() {
		sysctls[r.name] = "1000000"
	}
	return Facts{
		Root: true,
		Kernel: Kernel{Release: "6.12.0-1-amd64", Machine: "amd64", FileSystems: []string{"overlay", "tmpfs", "proc", "mqueue"}, Seccomp: true,
			Calls: map[string]bool{"pidfd_open": true, "openat2": true, "mount_setattr": true}},
		Cgroup:   Cgroup{Version: 2, Controllers: []string{"cpu", "memory", "pids"}, Systemd: true, Driver: "auto"},
		Sysctls:  sysctls,
		Security: Security{AppArmor: true, AppArmorParser: "/sbin/apparmor_parser"},
		Handlers: []Handler{{Name: "runc", Default: true, Path: "/usr/bin/runc", Version: "1.3.3", Features: []string{"seccomp"}}},
		Network: Network{ConfDir: "/etc/cni/net.d", Files: []string{"10-a.conflist"}, Used: "10-a.conflist", BinDirs: []string{"/opt/cni/bin"},
			Plugins: []Plugin{{Type: "bridge", Builtin: true}, {Type: "flannel", Path: "/opt/cni/bin/flannel"}}},
		Disks: []Disk{
			{Role: roleState, Path: "/var/lib/berth", FSType: "ext4", Size: 100 << 30, Free: 50 << 30, Inodes: 1e6, FreeInodes: 9e5},
			{Role: roleRun, Path: "/run/berth", FSType: "tmpfs", Size: 1 << 30, Free: 1 << 30},
		},
		Clock:  Clock{Now: now, Newest: now.Add(-time.Minute)},
		Limits: Limits{Of: "the daemon", OpenFiles: 1048576, Capabilities: 1<<41 - 1},
		Daemon: Daemon{CRI: Socket{Path: "/run/berth/berth.sock", Exists: true, Mode: 0o660}, Admin: Socket{Path: "/run/berth/admin.sock", Exists: true, Mode: 0o600},
			Version: "v1", Tool: "v1", PID: 7, Conditions: []Condition{{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: true}}},
		Config: Config{Source: "/etc/berth/config.toml"},
	}
}

// old is a node from years ago; everything works somehow.
func old() Facts {
	f := healthy()
	f.Kernel.Release, f.Kernel.Calls["mount_setattr"] = "5.4.0", false
	f.Cgroup = Cgroup{Version: 1, Controllers: []string{"cpu", "memory", "pids", "devices", "freezer"}, Driver: "cgroupfs", Systemd: true}
	f.Sysctls = map[string]string{"net.ipv4.ip_forward": "0", "fs.inotify.max_user_instances": "128", "kernel.pid_max": "32768", "user.max_user_namespaces": "x"}
	f.Security = Security{}
	f.Handlers = append(f.Handlers, Handler{Name: "kata", Path: "kata", Error: "kata is not there"}, Handler{Name: "odd", Path: "/odd"})
	f.Network.Files = append(f.Network.Files, "20-b.conf")
	f.Disks[0].Free, f.Disks[0].FreeInodes = 512<<20, 5000
	f.Clock.Unsynced = true
	f.Limits = Limits{Of: "the daemon", OpenFiles: 1024, MemoryMax: 1 << 30, MemoryNow: 1 << 30, Capabilities: (1<<41 - 1) &^ (1 << sysResource)}
	f.Daemon.Version, f.Daemon.OldOperations, f.Daemon.OtherCRIServices = "v0", 2, []string{"/run/containerd/containerd.sock"}
	return f
}

// broken is a node where nothing runs.
func broken() Facts {
	return Facts{
		Kernel:   Kernel{Release: "4.19.0", Machine: "arm64"},
		Cgroup:   Cgroup{Version: 2, Controllers: []string{"cpu"}, Driver: "systemd"},
		Sysctls:  map[string]string{},
		Security: Security{AppArmor: true},
		Handlers: []Handler{{Name: "runc", Default: true, Path: "runc", Error: "runc is not there"}, {Name: "leaky", Path: "/usr/sbin/runc", Version: "1.1.5", Features: []string{"features"}}},
		Network:  Network{ConfDir: "/etc/cni/net.d", Files: []string{"a.conflist"}, Used: "a.conflist", BinDirs: []string{"/opt/cni/bin"}, Plugins: []Plugin{{Type: "calico"}}},
		Disks: []Disk{
			{Role: roleState, Path: "/var/lib/berth", FSType: "xfs", Size: 1 << 30, Inodes: 1000, FreeInodes: 3, NoDType: true},
			{Role: roleState, Path: "/b", FSType: "ext4", ReadOnly: true},
			{Role: roleState, Path: "/c", FSType: "nfs", Size: 1 << 40, Free: 1 << 40, Overlay: "invalid argument"},
			{Role: roleRun, Path: "/d", FSType: "tmpfs", Size: 1 << 40, Free: 1 << 40, WriteError: "permission denied"},
		},
		Clock:  Clock{Now: time.Unix(0, 0)},
		Limits: Limits{Of: "this shell", OpenFiles: 1 << 20, PIDsMax: 10, PIDsNow: 9},
		Daemon: Daemon{CRI: Socket{Path: "/s", Exists: true, Mode: 0o777}, Admin: Socket{Path: "/a"}, Conditions: []Condition{{Type: "NetworkReady", Message: "no network"}}},
		Config: Config{Error: "/etc/berth/config.toml:3: unknown key"},
	}
}

func TestCheck(t *testing.T) {
	tests := map[string]struct {
		facts Facts
		fails bool
	}{"healthy": {healthy(), false}, "old": {old(), false}, "broken": {broken(), true}, "empty": {Facts{}, true}}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			all := Check(tt.facts)
			var b bytes.Buffer
			if err := writeFindings(&b, all); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.Bytes())
			for _, f := range all {
				if (f.Remedy == "") != (f.Level == OK) {
					t.Errorf("%s finding with remedy %q: %s", f.Level, f.Remedy, f.Text)
				}
			}
			if got := Count(all, Fail) > 0; got != tt.fails {
				t.Errorf("failures: %v, want %v", got, tt.fails)
			}
		})
	}
	if n := len(Check(healthy())); Count(Check(healthy()), OK) != n {
		t.Error("a healthy node is not all right")
	}
}

// Findings of single facts that the nodes above do not have.
func TestCheckOne(t *testing.T) {
	tests := map[string]struct {
		change func(*Facts)
		level  Level
		want   string
	}{
		"no network":       {func(f *Facts) { f.Network = Network{ConfDir: "/n", Default: "wait"} }, Fail, "no network configuration in /n"},
		"built-in network": {func(f *Facts) { f.Network = Network{Default: "builtin"} }, OK, "the built-in network"},
		"bad network":      {func(f *Facts) { f.Network.Error = "x.conflist: bad" }, Fail, "x.conflist: bad"},
		"clock went back":  {func(f *Facts) { f.Clock.Newest = f.Clock.Now.Add(48 * time.Hour) }, Warn, "it went back"},
		"systemd driver":   {func(f *Facts) { f.Cgroup.Driver, f.Cgroup.Systemd = "systemd", false }, Fail, "which does not run this machine"},
		"two writers":      {func(f *Facts) { f.Cgroup.Driver = "cgroupfs" }, Warn, "two writers"},
		"open admin":       {func(f *Facts) { f.Daemon.Admin.Mode = 0o660 }, Fail, "whoever may connect is root"},
		"foreign owner":    {func(f *Facts) { f.Daemon.CRI.UID = 1000 }, Fail, "belongs to user 1000"},
		"mute daemon":      {func(f *Facts) { f.Daemon.CRI.Error = "deadline exceeded" }, Fail, "does not answer"},
		"runc 1.3.2":       {func(f *Facts) { f.Handlers[0].Version = "1.3.2" }, Fail, "CVE-2025-31133"},
		"runc 1.2.8":       {func(f *Facts) { f.Handlers[0].Version = "1.2.8" }, OK, "1.2.8"},
		"no parser":        {func(f *Facts) { f.Security.AppArmorParser = "" }, Warn, "apparmor_parser is missing"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			tt.change(&f)
			all := Check(f)
			found := false
			for _, x := range all {
				found = found || x.Level == tt.level && strings.Contains(x.Text, tt.want)
			}
			if !found || Count(all, Fail) > 0 != (tt.level == Fail) {
				t.Errorf("want %s %q in %v", tt.level, tt.want, all)
			}
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *rewrite {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Error(d)
	}
}
