package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Every document reads the same as YAML and as JSON.
func TestYAML(t *testing.T) {
	for _, doc := range []string{
		`{}`, `[]`, `null`, `"x"`, `3`,
		`{"a":1,"b":[1,"2",null,true,1.5e3],"c":{},"d":[],"e":{"f":[{"g":"h","i":[[1],[2,3]]},{}]}}`,
		`{"":"","yes":"no","1":"2","~":"null","a b":"- x","k:":"# c"," s ":"t ","n":"a\nb\u0000\u001b","u":"\u00e9\u2028\ud83d\ude00","h":"<&>","q":"\"'\\"}`,
		`{"big":9007199254740993,"neg":-0.5}`,
		`[[],{},[[]],[{"a":[]}]]`,
	} {
		out, err := yamlOf([]byte(doc))
		if err != nil {
			t.Fatalf("%s: %v", doc, err)
		}
		var want, got any
		if err := json.Unmarshal([]byte(doc), &want); err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(out, &got); err != nil {
			t.Fatalf("%s:\n%s%v", doc, out, err)
		}
		// Numbers of the two libraries have different types.
		b, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		got = nil
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s:\n%s%s", doc, out, d)
		}
	}
	if _, err := yamlOf([]byte(`{"a":`)); err == nil {
		t.Error("half a document is taken")
	}
}

func TestTable(t *testing.T) {
	table := Table{Header: "NAME STATE NOTE", Wide: 1, Rows: [][]string{{"é", "READY", "x"}, {"b\x1b[2J", "RUNNING (stuck)", "y"}, {"c", "false", ""}}}
	if d := cmp.Diff("NAME   STATE\né      READY\nb\uFFFD[2J  RUNNING (stuck)\nc      false\n", table.text(false, false)); d != "" {
		t.Error(d)
	}
	want := "\x1b[1mNAME\x1b[0m   \x1b[1mSTATE\x1b[0m            \x1b[1mNOTE\x1b[0m\n" +
		"é      \x1b[32mREADY\x1b[0m            x\nb\uFFFD[2J  \x1b[31mRUNNING (stuck)\x1b[0m  y\nc      \x1b[31mfalse\x1b[0m\n"
	if d := cmp.Diff(want, table.text(true, true)); d != "" {
		t.Error(d)
	}
}

// Colours are for terminals only.
func TestColoured(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if Coloured(w) || Coloured(&bytes.Buffer{}) {
		t.Error("colours for what is no terminal")
	}
}

// Whatever goes wrong, the user is told what to do, on a line of its own.
func TestExplain(t *testing.T) {
	var all []error
	for c := codes.Canceled; c <= codes.Unauthenticated; c++ {
		all = append(all, status.Error(c, "what went wrong"))
	}
	all = append(all, errors.New("unknown flag"), Failed(errors.New("x"), ""), Failed(fmt.Errorf("open: %w", fs.ErrNotExist), ""),
		Failed(fmt.Errorf("open: %w", fs.ErrPermission), ""), status.Error(codes.Unavailable, "dial: permission denied"))
	for _, err := range all {
		code, text := Explain(err, "berthctl pods ls")
		what, next, _ := strings.Cut(text, "\n")
		if code < 1 || code > 4 && code != CodeInterrupted || what == "" || len(next) < 10 || strings.Contains(next, "\n") {
			t.Errorf("%v: code %d, %q", err, code, text)
		}
	}
	for err, want := range map[error]int{
		status.Error(codes.NotFound, ""): 4, status.Error(codes.Unavailable, ""): 3, status.Error(codes.Internal, ""): 1,
		status.Error(codes.Canceled, ""): 130, errors.New("unknown flag"): 2, &ExitError{Code: 7}: 7, Failed(errors.New("x"), "y"): 1,
	} {
		if code, _ := Explain(err, ""); code != want {
			t.Errorf("%v: code %d, want %d", err, code, want)
		}
	}
}

func TestPick(t *testing.T) {
	all := []named{
		{id: "aa11", names: []string{"web", "shop/web"}, live: true}, {id: "aa22", names: []string{"web", "old/web"}},
		{id: "bb33", names: []string{"aa"}}, {id: "bb44", names: []string{"db", "a/db"}, live: true}, {id: "bb45", names: []string{"db", "b/db"}, live: true},
	}
	for query, want := range map[string]string{
		"aa11": "aa11", "aa2": "aa22", "web": "aa11", "old/web": "aa22", "aa": "bb33", "b/db": "bb45",
		"": "NotFound", "cc": "NotFound", "bb4": "InvalidArgument", "db": "InvalidArgument",
	} {
		got, err := pick("pod", query, all)
		if err != nil {
			got = status.Code(err).String()
		}
		if got != want {
			t.Errorf("%q: got %s (%v), want %s", query, got, err, want)
		}
	}
}

func TestText(t *testing.T) {
	if got := Bytes(1536) + Bytes(7) + Bytes(5<<30); got != "1.5 KiB7 B5.0 GiB" {
		t.Error(got)
	}
	if got := Short("sha256:0123456789abcdef") + Short("abc"); got != "0123456789abcabc" {
		t.Error(got)
	}
}
