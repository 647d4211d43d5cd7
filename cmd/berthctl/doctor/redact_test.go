package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"
)

// secrets must not be found anywhere in what leaves a node.
func secrets() []string {
	return []string{"hunter2hunter2", "tok-1234567890", "dXNlcjpwYXNzd29yZA==", "envvalue-plain", "annot-value-77", "urlpass99", "flagsecret1", "nextsecret2", "cookie-crumb-5", "MIIEsecretkey"}
}

func leakyParts() []part {
	record := map[string]any{
		"config": map[string]any{
			"envs":        []any{map[string]any{"key": "DB_PASSWORD", "value": "hunter2hunter2"}, map[string]any{"key": "PLAIN", "value": "envvalue-plain"}},
			"annotations": map[string]any{"last-applied": "annot-value-77"},
			"command":     []any{"app", "--token=flagsecret1", "--password", "nextsecret2", "-v"},
			"metadata":    map[string]any{"name": "web"},
		},
		"info":      map[string]any{"config": `{"process":{"env":["API_TOKEN=tok-1234567890"],"args":["sh"]}}`},
		"authToken": "tok-1234567890",
	}
	b, _ := json.Marshal(record)
	return []part{
		{name: "log.txt", data: []byte("level=error msg=\"login with hunter2hunter2 failed\"\nAuthorization: Basic dXNlcjpwYXNzd29yZA==\n" +
			"pull https://user:urlpass99@registry/x\ncurl --password nextsecret2 -H 'Cookie: cookie-crumb-5'\nheader bearer tok-1234567890\n" +
			"-----BEGIN RSA PRIVATE KEY-----\nMIIEsecretkey\n-----END RSA PRIVATE KEY-----\nkept line\n")},
		{name: "containers/x.json", json: true, data: b},
		{name: "broken.json", json: true, data: []byte(`{"password": "hunter2hunter2", `)},
		{name: "config.toml", data: []byte("[paths]\nroot = \"/var/lib/berth\"\nregistry_token = \"tok-1234567890\"\n")},
	}
}

// unpack reads an archive as one text.
func unpack(t *testing.T, archive []byte) string {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return all.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString("== " + h.Name + "\n" + string(b) + "\n")
	}
}

func TestBundleHasNoSecrets(t *testing.T) {
	var plain strings.Builder
	for _, p := range leakyParts() {
		plain.Write(p.data)
	}
	var b bytes.Buffer
	if err := pack(&b, leakyParts(), time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	text := unpack(t, b.Bytes())
	for _, s := range secrets() {
		if !strings.Contains(plain.String(), s) {
			t.Errorf("the test does not try %q", s)
		}
		if strings.Contains(text, s) {
			t.Errorf("%q is in the bundle:\n%s", s, text)
		}
	}
	for _, s := range []string{"kept line", "DB_PASSWORD", "PLAIN", "web", "/var/lib/berth", "API_TOKEN"} {
		if !strings.Contains(text, s) {
			t.Errorf("%q was removed:\n%s", s, text)
		}
	}
}

// FuzzRedact: a value after a secret name never gets through, and no input
// makes the redactor panic.
func FuzzRedact(f *testing.F) {
	for _, p := range leakyParts() {
		f.Add(string(p.data))
	}
	f.Fuzz(func(t *testing.T, in string) {
		r := NewRedactor()
		_ = r.JSON([]byte(in))
		out := r.Text(in + "\npassword=verysecretvalue\n")
		if strings.Contains(out, "verysecretvalue") {
			t.Errorf("%q", out)
		}
	})
}
