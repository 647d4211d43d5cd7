package imageservice

import "testing"

func TestParseRef(t *testing.T) {
	const d = "sha256:0123456789012345678901234567890123456789012345678901234567890123"
	for in, want := range map[string]string{
		"busybox": "docker.io/library/busybox:latest", "a/b:1": "docker.io/a/b:1", "localhost:5000/x": "localhost:5000/x:latest",
		"q.io/a/b:t@" + d: "q.io/a/b@" + d, "q.io/a/b@" + d: "q.io/a/b@" + d, "": "", "Upper": "", "a:b:c": "", d: "", "../x": "", "https://q.io/x": "",
	} {
		r, err := ParseRef(in)
		if (err == nil) != (want != "") || (err == nil && r.String() != want) {
			t.Errorf("%q: got %v, %v, want %q", in, r, err, want)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	f.Add("busybox")
	f.Add("localhost:5000/a/b:c@sha256:0123456789012345678901234567890123456789012345678901234567890123")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			return
		}
		again, err := ParseRef(r.String())
		if err != nil || again != r {
			t.Fatalf("%q -> %q -> %v, %v", s, r, again, err)
		}
	})
}
