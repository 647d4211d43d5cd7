package spec

import (
	"bytes"
	"strings"
)

// passwdEntry is one line of passwd(5), as far as Berth uses it.
type passwdEntry struct {
	name     string
	uid, gid uint32
	home     string
}

func (p *passwdEntry) user() User { return User{UID: p.uid, GID: p.gid, Home: p.home} }

// groupEntry is one line of group(5).
type groupEntry struct {
	name    string
	gid     uint32
	members []string
}

// parsePasswd reads passwd(5). The file comes from an image: a line that is
// not well formed is skipped, it must not keep the others from being found.
func parsePasswd(b []byte) []passwdEntry {
	var out []passwdEntry
	for line := range bytes.Lines(b) {
		f := strings.Split(strings.TrimRight(string(line), "\r\n"), ":")
		if len(f) < 4 || f[0] == "" || strings.HasPrefix(f[0], "#") {
			continue
		}
		uid, ok1 := number(f[2])
		gid, ok2 := number(f[3])
		if !ok1 || !ok2 {
			continue
		}
		p := passwdEntry{name: f[0], uid: uid, gid: gid}
		// runc would refuse a NUL in the environment, and a relative home means nothing.
		if len(f) > 5 && strings.HasPrefix(f[5], "/") && !strings.ContainsRune(f[5], 0) {
			p.home = f[5]
		}
		out = append(out, p)
	}
	return out
}

// parseGroup reads group(5), skipping lines as parsePasswd does.
func parseGroup(b []byte) []groupEntry {
	var out []groupEntry
	for line := range bytes.Lines(b) {
		f := strings.Split(strings.TrimRight(string(line), "\r\n"), ":")
		if len(f) < 3 || f[0] == "" || strings.HasPrefix(f[0], "#") {
			continue
		}
		gid, ok := number(f[2])
		if !ok {
			continue
		}
		g := groupEntry{name: f[0], gid: gid}
		if len(f) > 3 {
			for m := range strings.SplitSeq(f[3], ",") {
				if m = strings.TrimSpace(m); m != "" {
					g.members = append(g.members, m)
				}
			}
		}
		out = append(out, g)
	}
	return out
}

func userByName(users []passwdEntry, name string) *passwdEntry {
	for i := range users {
		if users[i].name == name {
			return &users[i]
		}
	}
	return nil
}

// userByID finds the first entry of uid; without one the identity is uid with group 0.
func userByID(users []passwdEntry, uid uint32) (*passwdEntry, User) {
	for i := range users {
		if users[i].uid == uid {
			return &users[i], users[i].user()
		}
	}
	return nil, User{UID: uid}
}
