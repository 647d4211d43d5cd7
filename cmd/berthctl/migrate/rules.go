package migrate

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// What becomes of a setting.
const (
	taken    = "taken"    // Berth has it
	needless = "needless" // Berth does without, and nothing changes
	lost     = "lost"     // Berth has no such thing: somebody has to look
	unknown  = "unknown"  // this version of berthctl does not know the key
)

// nothing stands for Berth's key in rules whose value only judges theirs.
const nothing = "-"

// setting is one key of a foreign configuration.
type setting struct {
	path  []string
	value any
}

func (s setting) key() string { return strings.Join(s.path, ".") }

// shown is the value for the report, which people pass on: secrets stay where
// they are.
func (s setting) shown() string {
	if i := slices.Index(s.path, "registry"); i >= 0 && !empty(s.value) &&
		slices.ContainsFunc(s.path[i:], func(part string) bool { return part == "auth" || part == "auths" || part == "headers" }) {
		return "(hidden)"
	}
	return show(s.value)
}

// rule says what becomes of a key.
type rule struct {
	theirs string // dotted; * stands for any name
	ours   string // dotted key of Berth; * stands for the same name, ** for each handler; "": none
	// value makes Berth's value, nil: as it is. A note is for what it cannot take.
	value func(v any) (out any, note string)
	note  string // with ours "": why not, or what to do
	lost  bool   // with ours "": something is missing then
}

// matches returns what * stands for.
func (r rule) matches(path []string) (name string, ok bool) {
	want := strings.Split(r.theirs, ".")
	if len(want) != len(path) {
		return "", false
	}
	for i, w := range want {
		switch {
		case w == "*":
			name = path[i]
		case w != path[i]:
			return "", false
		}
	}
	return name, true
}

// Row tells what becomes of one key.
type Row struct {
	Key     string         `json:"key"`
	Value   string         `json:"value"`
	Verdict string         `json:"verdict"` // taken, needless, lost, unknown
	Berth   string         `json:"berth"`   // Berth's key, "" for none
	Note    string         `json:"note"`    // why, or what to do
	ours    map[string]any // Berth's keys with their values
}

// Report is what becomes of a configuration.
type Report struct {
	From     string   `json:"from"`
	Handlers []string `json:"handlers"` // of OCI runtimes
	Settings []Row    `json:"settings"`
}

// translate applies the rules to the settings. Values that say nothing (empty,
// false, 0) are passed over where Berth has no such key. Pure.
func translate(settings []setting, rules []rule, handlers []string) []Row {
	var rows []Row
	for _, s := range settings {
		if row, ok := judge(s, rules, handlers); ok {
			rows = append(rows, row)
		}
	}
	slices.SortStableFunc(rows, func(a, b Row) int { return cmp.Compare(a.Key, b.Key) })
	return rows
}

func judge(s setting, rules []rule, handlers []string) (Row, bool) {
	row := Row{Key: s.key(), Value: s.shown(), Verdict: unknown, Note: "not known to this version of berthctl: compare its documentation"}
	for _, r := range rules {
		name, ok := r.matches(s.path)
		if !ok {
			continue
		}
		row.Note = r.note
		if r.ours == "" {
			row.Verdict = needless
			if r.lost {
				row.Verdict = lost
			}
			return row, !empty(s.value)
		}
		value, note := s.value, ""
		if r.value != nil {
			value, note = r.value(s.value)
		}
		if row.Note = cmp.Or(note, r.note); value == nil {
			row.Verdict = lost
			return row, note != "" && !empty(s.value) // without a note it is Berth's way anyway
		}
		row.ours = spread(r.ours, name, handlers, value)
		row.Verdict, row.Berth = taken, strings.Join(slices.Sorted(maps.Keys(row.ours)), ", ")
		return row, true
	}
	return row, !empty(s.value)
}

// spread names the keys that a rule sets.
func spread(ours, name string, handlers []string, value any) map[string]any {
	out := map[string]any{}
	if !strings.Contains(ours, "**") {
		out[strings.Replace(ours, "*", quoted(name), 1)] = value
		return out
	}
	for _, h := range handlers {
		out[strings.Replace(ours, "**", quoted(h), 1)] = value
	}
	return out
}

// quoted is a name as a part of a dotted TOML key.
func quoted(name string) string {
	bare := name != "" && strings.IndexFunc(name, func(r rune) bool {
		return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) < 0
	if bare {
		return name
	}
	return fmt.Sprintf("%q", name)
}

// empty says that a value is as good as none.
func empty(v any) bool {
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.Slice, reflect.Map, reflect.String:
		return r.Len() == 0
	}
	return !r.IsValid() || r.IsZero() || v == "0" || v == "0s"
}

func show(v any) string {
	switch x := v.(type) {
	case string:
		return fmt.Sprintf("%q", x)
	case []any:
		var parts []string
		for _, e := range x {
			parts = append(parts, show(e))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(x)) {
			parts = append(parts, k+" = "+show(x[k]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return fmt.Sprint(v)
}

// flatten lists the leaves of a document.
func flatten(doc map[string]any, path []string) (out []setting) {
	for _, k := range slices.Sorted(maps.Keys(doc)) {
		p := append(slices.Clone(path), k)
		if below, ok := doc[k].(map[string]any); ok && len(below) > 0 {
			out = append(out, flatten(below, p)...)
		} else if !ok {
			out = append(out, setting{p, doc[k]})
		}
	}
	return out
}

// Values of Berth out of theirs.

func not(v any) (any, string) {
	b, ok := v.(bool)
	if !ok {
		return nil, "not a boolean"
	}
	return !b, ""
}

// only takes the value that is Berth's own way; others are lost.
func only(is any, note string) func(any) (any, string) {
	return func(v any) (any, string) {
		if v == is {
			return nil, ""
		}
		return nil, note
	}
}

// program takes the absolute path of a program.
func program(v any) (any, string) {
	s, _ := v.(string)
	if s == "" {
		return nil, ""
	}
	if !strings.HasPrefix(s, "/") {
		return nil, "write the absolute path of the program into the handler's path"
	}
	return s, ""
}

// list makes a list of a single text.
func list(v any) (any, string) {
	if s, ok := v.(string); ok {
		if s == "" {
			return nil, ""
		}
		return []any{s}, ""
	}
	return filled(v)
}

// split makes a list of a text with colons.
func split(v any) (any, string) {
	s, _ := v.(string)
	var out []any
	for p := range strings.SplitSeq(s, ":") {
		if p != "" {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, ""
	}
	return out, ""
}

// filled takes a value that says something.
func filled(v any) (any, string) {
	if empty(v) {
		return nil, ""
	}
	return v, ""
}

// text makes a text of a number.
func text(v any) (any, string) {
	if n, ok := v.(int64); ok && n < 0 {
		return "0", "no limit"
	}
	if empty(v) {
		return nil, ""
	}
	return fmt.Sprint(v), ""
}

// number makes a number of a text.
func number(v any) (any, string) {
	switch x := v.(type) {
	case int64:
		return x, ""
	case string:
		var n int64
		if _, err := fmt.Sscanf(x, "%d", &n); err == nil {
			return n, ""
		}
	}
	return nil, "not a number"
}

// choice takes one of some values; others are lost.
func choice(means map[string]any) func(any) (any, string) {
	return func(v any) (any, string) {
		out, ok := means[fmt.Sprint(v)]
		if !ok {
			return nil, "Berth has no such choice"
		}
		return out, ""
	}
}
