package doctor

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

const hidden = "(removed)"

// secretName matches names of settings, variables and flags whose values are
// nobody else's business.
const secretName = `[A-Za-z0-9_.-]*(?i:passw|token|secret|credential|api_?key|private_?key|auth|cookie)[A-Za-z0-9_.-]*`

// Redactor removes secrets from texts: by the names before them, by the forms
// they have, and by what it was taught of other texts.
type Redactor struct {
	forms []form
	known []string
}

type form struct {
	re   *regexp.Regexp
	with string
}

// NewRedactor knows the common forms.
func NewRedactor() *Redactor {
	return &Redactor{forms: []form{
		{regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----`), hidden},
		{regexp.MustCompile(`(?i)\b(authorization|proxy-authorization|cookie|set-cookie|x-[a-z-]*token)(["']?\s*[:=]\s*)[^\r\n]*`), "$1$2" + hidden},
		{regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}`), "$1 " + hidden},
		{regexp.MustCompile(`([a-z][a-z0-9+.-]*://)[^/\s:@"]+:[^/\s@"]+@`), "$1" + hidden + "@"},
		{regexp.MustCompile(`(` + secretName + `)(\\?["']?\s*[=:]\s*)(\\?"[^"\r\n]*"|'[^'\r\n]*'|[^\s,;}\]"']+)`), "$1$2" + hidden},
		{regexp.MustCompile(`(--?` + secretName + `)\s+[^\s"',-][^\s"',]*`), "$1 " + hidden},
		{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), hidden},
	}}
}

// minSecret is the shortest value that is looked for in other texts: shorter
// ones are words.
const minSecret = 6

// Learn makes a value a secret wherever it appears.
func (r *Redactor) Learn(value string) {
	if len(value) >= minSecret && !slices.Contains(r.known, value) {
		r.known = append(r.known, value)
		// Longest first: a secret may hold another one.
		slices.SortFunc(r.known, func(a, b string) int { return len(b) - len(a) })
	}
}

// LearnEnv learns a variable whose name says that it is secret.
func (r *Redactor) LearnEnv(name, value string) {
	if regexp.MustCompile(`^` + secretName + `$`).MatchString(name) {
		r.Learn(value)
	}
}

// Text removes secrets from a text.
func (r *Redactor) Text(s string) string {
	for _, k := range r.known {
		s = strings.ReplaceAll(s, k, hidden)
	}
	for _, f := range r.forms {
		s = f.re.ReplaceAllString(s, f.with)
	}
	return s
}

// JSON removes from a document the values of environment variables and
// annotations, of names that say secret, and the secrets in all other strings.
// What is no JSON is treated as text.
func (r *Redactor) JSON(doc []byte) []byte {
	var v any
	if json.Unmarshal(doc, &v) != nil {
		return []byte(r.Text(string(doc)))
	}
	r.learnTree(v)
	out, err := json.MarshalIndent(r.value("", v), "", "  ")
	if err != nil {
		return nil
	}
	return out
}

// learnTree finds secret variables before any text is shown.
func (r *Redactor) learnTree(v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, e := range v {
			if s, is := e.(string); is {
				r.LearnEnv(name, s)
			}
			r.learnTree(e)
		}
		if name, is := v["key"].(string); is {
			value, _ := v["value"].(string)
			r.LearnEnv(name, value)
		}
	case []any:
		for _, e := range v {
			if s, is := e.(string); is {
				name, value, _ := strings.Cut(s, "=")
				r.LearnEnv(name, value)
			}
			r.learnTree(e)
		}
	}
}

func (r *Redactor) value(name string, v any) any {
	lower := strings.ToLower(name)
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if lower == "annotations" || lower == "unsafe_annotations" {
				e = hidden
			}
			out[k] = r.value(k, e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			if lower == "env" || lower == "envs" {
				out[i] = hideEnv(e)
				continue
			}
			out[i] = r.value("", e)
		}
		return r.arguments(out)
	case string:
		if regexp.MustCompile(`^` + secretName + `$`).MatchString(name) {
			return hidden
		}
		return r.embedded(v)
	}
	return v
}

// embedded treats a string that is a document itself as one.
func (r *Redactor) embedded(s string) string {
	if strings.HasPrefix(s, "{") && json.Valid([]byte(s)) {
		return string(r.JSON([]byte(s)))
	}
	return r.Text(s)
}

// arguments hides the value after a flag that stands by itself.
func (r *Redactor) arguments(list []any) []any {
	flag := regexp.MustCompile(`^--?` + secretName + `$`)
	for i := range len(list) - 1 {
		if s, is := list[i].(string); is && flag.MatchString(s) {
			if _, is := list[i+1].(string); is {
				list[i+1] = hidden
			}
		}
	}
	return list
}

// hideEnv keeps the name of a variable: NAME=value, or {key, value}.
func hideEnv(e any) any {
	switch e := e.(type) {
	case string:
		name, _, _ := strings.Cut(e, "=")
		return name + "=" + hidden
	case map[string]any:
		return map[string]any{"key": e["key"], "value": hidden}
	}
	return hidden
}
