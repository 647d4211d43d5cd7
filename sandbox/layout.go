package sandbox

import (
	"path/filepath"

	"github.com/berth-dev/berth/store"
)

// layout knows where everything of a sandbox is, from its ID alone: a rollback
// needs no memory of what was made.
type layout struct{ run, state string }

func (l layout) nsRoot() string              { return filepath.Join(l.run, "ns") }
func (l layout) nsDir(id string) string      { return filepath.Join(l.nsRoot(), id) }
func (l layout) pin(id, kind string) string  { return filepath.Join(l.nsDir(id), kind) }
func (l layout) filesRoot() string           { return filepath.Join(l.run, "sandboxes") }
func (l layout) filesDir(id string) string   { return filepath.Join(l.filesRoot(), id) }
func (l layout) shm(id string) string        { return filepath.Join(l.filesDir(id), "shm") }
func (l layout) hostname(id string) string   { return filepath.Join(l.filesDir(id), "hostname") }
func (l layout) hosts(id string) string      { return filepath.Join(l.filesDir(id), "hosts") }
func (l layout) resolvConf(id string) string { return filepath.Join(l.filesDir(id), "resolv.conf") }
func (l layout) stateRoot() string           { return filepath.Join(l.state, "sandboxes") }
func (l layout) stateDir(id string) string   { return filepath.Join(l.stateRoot(), id) }

func (l layout) files(s store.Sandbox) Files {
	f := Files{
		Hostname:   l.hostname(s.ID),
		Hosts:      l.hosts(s.ID),
		ResolvConf: l.resolvConf(s.ID),
		Shm:        l.shm(s.ID),
	}
	if hostIPC(s.Config) {
		f.Shm = "/dev/shm"
	}
	return f
}

// isID reports whether a directory name is one that only Berth gives.
func isID(name string) bool {
	if len(name) != 64 {
		return false
	}
	for _, c := range name {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
