package config

import (
	"encoding"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Key is one setting of a configuration.
type Key struct {
	Path  string // "log.level", "runtime.handlers.runc.path"
	Value string // as TOML
	Doc   string
	Hot   bool // a reload applies it without a restart
}

// table is a section of the file.
type table struct {
	path string
	doc  string
	keys []Key
}

// Keys lists all settings of c in the order of the file.
func Keys(c Config) []Key {
	var keys []Key
	for _, t := range tables(c) {
		keys = append(keys, t.keys...)
	}
	return keys
}

// tables walks the struct: the one source of the file, the diff and the suggestions.
func tables(c Config) []table {
	var out []table
	walk(reflect.ValueOf(c), table{}, &out)
	return out
}

func walk(v reflect.Value, t table, out *[]table) {
	var below []func()
	for _, f := range reflect.VisibleFields(v.Type()) {
		if f.Anonymous {
			continue // its fields follow, as keys of this table
		}
		fv := v.FieldByIndex(f.Index)
		path, doc := join(t.path, f.Tag.Get("toml")), f.Tag.Get("doc")
		switch fv.Kind() {
		case reflect.Struct:
			below = append(below, func() { walk(fv, table{path: path, doc: doc}, out) })
		case reflect.Map:
			for _, name := range sortedKeys(fv) {
				below = append(below, func() {
					walk(fv.MapIndex(reflect.ValueOf(name)), table{path: join(path, quoteKey(name)), doc: doc}, out)
				})
			}
		default:
			t.keys = append(t.keys, Key{Path: path, Value: format(fv), Doc: doc, Hot: f.Tag.Get("reload") == "hot"})
		}
	}
	if t.path != "" {
		*out = append(*out, t)
	}
	for _, f := range below {
		f()
	}
}

func sortedKeys(m reflect.Value) []string {
	var names []string
	for _, k := range m.MapKeys() {
		names = append(names, k.String())
	}
	slices.Sort(names)
	return names
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "." + b
}

// quoteKey quotes a key that TOML does not take bare.
func quoteKey(s string) string {
	bare := s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}) < 0
	if bare {
		return s
	}
	return quote(s)
}

// format writes a value as TOML.
func format(v reflect.Value) string {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		b, err := m.MarshalText()
		if err == nil {
			return quote(string(b))
		}
	}
	switch v.Kind() {
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Int, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10)
	case reflect.Slice:
		var items []string
		for i := range v.Len() {
			items = append(items, format(v.Index(i)))
		}
		return "[" + strings.Join(items, ", ") + "]"
	default:
		return quote(v.String())
	}
}

// quote writes a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			b.WriteString(`\u` + strings.Repeat("0", 2) + hex2(byte(r)))
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func hex2(b byte) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[b>>4], digits[b&15]})
}
