package cli

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// member is a name and a value of an object, in the order of the document.
type member struct {
	name  string
	value any // []member, []any, or the scalar as JSON writes it
}

// yamlOf writes a JSON document as YAML. Every JSON scalar is YAML too; strings
// lose their quotes where no reader could take them for something else.
func yamlOf(doc []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	v, err := readValue(dec)
	if err != nil {
		return nil, err
	}
	var out strings.Builder
	writeValue(&out, v, "", "")
	return []byte(out.String()), nil
}

func readValue(dec *json.Decoder) (any, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch tok {
	case json.Delim('{'):
		all := []member{}
		for dec.More() {
			name, err := dec.Token()
			if err != nil {
				return nil, err
			}
			v, err := readValue(dec)
			if err != nil {
				return nil, err
			}
			all = append(all, member{name.(string), v})
		}
		_, err = dec.Token()
		return all, err
	case json.Delim('['):
		all := []any{}
		for dec.More() {
			v, err := readValue(dec)
			if err != nil {
				return nil, err
			}
			all = append(all, v)
		}
		_, err = dec.Token()
		return all, err
	}
	if s, ok := tok.(string); ok {
		return yamlString(s), nil
	}
	b, err := json.Marshal(tok)
	return string(b), err
}

// writeValue writes a value and a line end. first stands before its first
// line, rest before the others.
func writeValue(out *strings.Builder, v any, first, rest string) {
	switch v := v.(type) {
	case []member:
		if len(v) == 0 {
			out.WriteString(first + "{}\n")
		}
		for _, m := range v {
			out.WriteString(first + yamlString(m.name) + ":")
			writeNested(out, m.value, rest)
			first = rest
		}
	case []any:
		if len(v) == 0 {
			out.WriteString(first + "[]\n")
		}
		for _, e := range v {
			writeValue(out, e, first+"- ", rest+"  ")
			first = rest
		}
	case string:
		out.WriteString(first + v + "\n")
	}
}

// writeNested writes the value of a member behind its colon.
func writeNested(out *strings.Builder, v any, indent string) {
	members, _ := v.([]member)
	list, _ := v.([]any)
	switch {
	case len(members) > 0:
		out.WriteString("\n")
		writeValue(out, v, indent+"  ", indent+"  ")
	case len(list) > 0:
		out.WriteString("\n")
		writeValue(out, v, indent, indent)
	default:
		writeValue(out, v, " ", "")
	}
}

// yamlString leaves out the quotes of strings that all versions of YAML read
// as strings.
func yamlString(s string) string {
	words := []string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
	if regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./@-]*$`).MatchString(s) && !slices.Contains(words, strings.ToLower(s)) {
		return s
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string can be encoded
	return strings.TrimSuffix(b.String(), "\n")
}
