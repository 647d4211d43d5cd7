package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Class says which objects may own a thing.
type Class string

// Classes of owners.
const (
	OfSandbox   Class = "sandbox"
	OfContainer Class = "container"
	OfLive      Class = "container that has not ended"
	OfEither    Class = "sandbox or container"
	OfNobody    Class = "" // nothing may leave it behind
)

// Thing is something in the kernel or on disk that carries Berth's mark.
type Thing struct {
	Kind  string // "mount", "cgroup", ...
	Name  string
	Owner string // ID, or the first part of one; "" when it can't be told
	Class Class
	// Shared: other daemons on the machine mark such things in the same way, so
	// that an unknown owner may be theirs.
	Shared bool
	Remedy string // command that takes it away
}

// Known is what the records say.
type Known struct {
	Source     string // "the daemon" or "the database"
	Sandboxes  map[string]bool
	Containers map[string]bool // and whether they live: not ended
	Busy       map[string]bool // subjects of unfinished operations: theirs to settle
	Foreign    map[string]bool // owners that other runtimes on the node know
	Alone      bool            // no other berthd shares the machine
}

// Leak is a thing without an owner.
type Leak struct {
	Kind   string `json:"kind"`
	Thing  string `json:"thing"`
	Owner  string `json:"owner"` // the ID it carries, or "unknown"
	Why    string `json:"why"`
	Remedy string `json:"remedy"`
}

// Leaks returns the things whose owner is not there any more. A shared thing
// counts only when nothing else can own it: when this daemon is alone, or
// something else shows that its owner was one of this daemon's. Pure.
func Leaks(k Known, things []Thing) []Leak {
	ours := map[string]bool{}
	for _, t := range things {
		if !t.Shared && t.Owner != "" {
			ours[t.Owner] = true
		}
	}
	var out []Leak
	for _, t := range things {
		if k.owns(t) || t.Shared && !k.Alone && !matches(ours, t.Owner) || t.Shared && matches(k.Foreign, t.Owner) {
			continue
		}
		out = append(out, Leak{Kind: t.Kind, Thing: t.Name, Owner: cmp.Or(t.Owner, "unknown"), Why: k.why(t), Remedy: remedy(t)})
	}
	slices.SortFunc(out, func(a, b Leak) int {
		return cmp.Or(cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Thing, b.Thing))
	})
	return slices.Compact(out)
}

func (k Known) owns(t Thing) bool {
	if matches(k.Busy, t.Owner) {
		return true
	}
	switch t.Class {
	case OfSandbox:
		return matches(k.Sandboxes, t.Owner)
	case OfContainer:
		return matches(k.Containers, t.Owner)
	case OfEither:
		return matches(k.Sandboxes, t.Owner) || matches(k.Containers, t.Owner)
	case OfLive:
		return live(k.Containers, t.Owner)
	}
	return false
}

func (k Known) why(t Thing) string {
	if t.Class == OfLive && matches(k.Containers, t.Owner) {
		return "its container has ended"
	}
	if t.Class == OfNobody {
		return "nothing that exists uses it"
	}
	return fmt.Sprintf("%s knows no such %s", k.Source, map[Class]string{OfLive: "container"}[t.Class]+
		map[Class]string{OfSandbox: "sandbox", OfContainer: "container", OfEither: "sandbox or container"}[t.Class])
}

func remedy(t Thing) string {
	const restart = "`systemctl restart berth` reaps it (containers go on)"
	switch {
	case t.Remedy == "":
		return restart
	case t.Shared || t.Class == OfNobody:
		return "`" + t.Remedy + "`" // berthd only reaps what its own directories prove to be its
	}
	return restart + "; by hand: `" + t.Remedy + "`"
}

// matches knows the first part of an ID too: comments of rules are cut off.
func matches(ids map[string]bool, owner string) bool {
	if _, there := ids[owner]; there || owner == "" {
		return there
	}
	for id := range ids {
		if len(owner) < len(id) && strings.HasPrefix(id, owner) {
			return true
		}
	}
	return false
}

func live(ids map[string]bool, owner string) bool { return ids[owner] }

// both keeps what is leaked in two looks at the node: what a verb is making or
// taking away just now is in one of them only.
func both(a, b []Leak) []Leak {
	return slices.DeleteFunc(slices.Clone(a), func(l Leak) bool {
		return !slices.ContainsFunc(b, func(m Leak) bool { return l.Kind == m.Kind && l.Thing == m.Thing && l.Owner == m.Owner })
	})
}

// writeLeaks prints nothing when there is none.
func writeLeaks(all []Leak) string {
	var b strings.Builder
	for _, l := range all {
		fmt.Fprintf(&b, "%s %s\n      owner %s: %s\n      -> %s\n", l.Kind, l.Thing, l.Owner, l.Why, l.Remedy)
	}
	return b.String()
}
