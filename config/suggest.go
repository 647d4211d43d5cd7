package config

import (
	"fmt"
	"slices"
	"strings"
)

// unknownKey says that a key is unknown and names the likeliest one.
func unknownKey(key []string) string {
	msg := fmt.Sprintf("unknown key %q", strings.Join(key, "."))
	if s := suggest(key); s != "" {
		return msg + fmt.Sprintf("; did you mean %q?", s)
	}
	return msg + "; `berthctl config default` lists all keys"
}

// suggest returns the known key or table closest to an unknown one, or "".
func suggest(key []string) string {
	known := schema()
	parent := known
	for i, seg := range key {
		next, ok := parent[seg]
		if !ok {
			next, ok = parent["*"]
		}
		if ok {
			parent = next
			continue
		}
		if s := closest(seg, parent); s != "" {
			return strings.Join(append(slices.Clone(key[:i]), s), ".")
		}
		break
	}
	return elsewhere(key[len(key)-1], known, "")
}

// node is a table of known names; a leaf has no children. "*" is any name.
type node map[string]node

// schema returns the tree of all keys.
func schema() node {
	root := node{}
	c := Default()
	c.Image.Signatures.Rules = map[string]SignatureRule{"any": {}}
	for _, k := range Keys(c) {
		at := root
		segs := strings.Split(k.Path, ".")
		for i, s := range segs {
			if i == 2 && segs[1] == "handlers" || i == 3 && segs[2] == "rules" {
				s = "*"
			}
			if at[s] == nil {
				at[s] = node{}
			}
			at = at[s]
		}
	}
	return root
}

// closest returns the child whose name is nearest to s, near enough to be a slip.
func closest(s string, n node) string {
	best, bestD := "", max(2, len(s)/3)+1
	for _, name := range sortedNames(n) {
		if name == "*" {
			continue
		}
		d := distance(strings.ToLower(s), name)
		if strings.HasPrefix(strings.ToLower(s), name) {
			d = 1 // "logging" for "log"
		}
		if d < bestD {
			best, bestD = name, d
		}
	}
	return best
}

// elsewhere finds the same key name in another table.
func elsewhere(name string, n node, path string) string {
	for _, child := range sortedNames(n) {
		p := join(path, strings.ReplaceAll(child, "*", "NAME"))
		if child == strings.ToLower(name) {
			return p
		}
		if s := elsewhere(name, n[child], p); s != "" {
			return s
		}
	}
	return ""
}

func sortedNames(n node) []string {
	var names []string
	for k := range n {
		names = append(names, k)
	}
	slices.Sort(names)
	return names
}

// distance is the number of insertions, deletions, replacements and swaps of
// neighbours that turn a into b.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
