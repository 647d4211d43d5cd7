package config

import (
	"fmt"
	"strings"
)

// DefaultFile returns the commented file that deploy/config.toml is: every key
// with its meaning and default, commented out, so that a later version may
// choose a better default for all who did not set it.
func DefaultFile() string {
	var b strings.Builder
	b.WriteString("# Configuration of berthd. Every key is optional; a line that begins with '#key'\n" +
		"# shows the default. An unknown key is an error. Check a file with\n" +
		"# `berthctl config check FILE`; SIGHUP (systemctl reload berth) reads it again.\n" +
		"# Keys marked [reload] apply at once, others need a restart; containers go on either way.\n")
	for _, t := range tables(Default()) {
		b.WriteString("\n")
		comment(&b, t.doc)
		fmt.Fprintf(&b, "[%s]\n", t.path)
		for _, k := range t.keys {
			doc := k.Doc
			if k.Hot {
				doc += " [reload]"
			}
			comment(&b, doc)
			fmt.Fprintf(&b, "#%s = %s\n", k.Path[len(t.path)+1:], k.Value)
		}
	}
	return b.String()
}

// comment writes text as comment lines of at most 100 characters.
func comment(b *strings.Builder, text string) {
	line := "#"
	for _, w := range strings.Fields(text) {
		if len(line)+1+len(w) > 100 {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + w
	}
	b.WriteString(line + "\n")
}

// Dump returns the whole configuration as TOML that Parse reads back to the same value.
func Dump(c Config) string {
	var b strings.Builder
	for i, t := range tables(c) {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "[%s]\n", t.path)
		for _, k := range t.keys {
			fmt.Fprintf(&b, "%s = %s\n", k.Path[len(t.path)+1:], k.Value)
		}
	}
	return b.String()
}

// Difference is a key whose value differs between two configurations. An empty
// side means that the key is not there (a handler that one of them lacks).
type Difference struct {
	Path     string
	Old, New string // as TOML
	Hot      bool
}

// Diff lists the keys in which b differs from a, in the order of the file.
func Diff(a, b Config) []Difference {
	var out []Difference
	was := map[string]Key{}
	for _, k := range Keys(a) {
		was[k.Path] = k
	}
	for _, k := range Keys(b) {
		old, ok := was[k.Path]
		delete(was, k.Path)
		if !ok || old.Value != k.Value {
			out = append(out, Difference{Path: k.Path, Old: old.Value, New: k.Value, Hot: k.Hot})
		}
	}
	for _, k := range Keys(a) {
		if _, gone := was[k.Path]; gone {
			out = append(out, Difference{Path: k.Path, Old: k.Value, Hot: k.Hot})
		}
	}
	return out
}
