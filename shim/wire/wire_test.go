package wire

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func launch() *Launch {
	return &Launch{ShimPID: 7, PID: 1 << 40, Cgroup: "/berth/a/b", Create: Create{
		Runtime: Runtime{Path: "/usr/bin/runc", Root: "/run/x", SystemdCgroup: true},
		ID:      "c1", LogPath: "/var/log/é\n", ExitPath: "/e", Terminal: true, Stdin: true,
		StdinOnce: true, PartialBytes: 99,
		Limits:  LogLimits{Rate: 1 << 20, FileBytes: 1 << 40, Block: true},
		Restore: Restore{Images: "/images", Work: "/work", Cgroup: "/c"}}}
}

func TestRoundTrip(t *testing.T) {
	in := launch()
	var out Launch
	if err := Decode(Encode(in), &out); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(*in, out); d != "" {
		t.Error(d)
	}
	d, dumped := Dump{Images: "/i", Work: "/w"}, Dump{}
	if err := Decode(Encode(&d), &dumped); err != nil || dumped != d {
		t.Error(dumped, err)
	}
	r := Reply{Code: CodeFailed, Message: "no", Phase: PhaseExited, PID: 3, StartedAt: 5, Log: LogHealth{Dropped: 6, Errno: 28, Capped: 7, Paused: true},
		Busy: Busy{Command: "delete", Since: 1 << 61}, Exit: Exit{Code: 137, Signal: 9, OOMKilled: true, StartedAt: -1, FinishedAt: 1 << 60}}
	var back Reply
	if err := Decode(Encode(&r), &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, back); d != "" {
		t.Error(d)
	}
}

// TestUnknownFields is what keeps an older shim working under a newer daemon.
func TestUnknownFields(t *testing.T) {
	b := binary.AppendUvarint(nil, 900)
	b = binary.AppendUvarint(b, 3)
	b = append(b, "new"...)
	b = append(b, Encode(&Size{Width: 80, Height: 25})...)
	var s Size
	if err := Decode(b, &s); err != nil || s.Width != 80 || s.Height != 25 {
		t.Error(s, err)
	}
}

// TestFrozen holds what version 1 put on the wire and on the disk: it is read
// the same for ever, and what is new stays away while it is not used.
func TestFrozen(t *testing.T) {
	const created = "\x12\x01\x04" + "\x13\x02\xd2\x09"                 // Reply: phase 2, pid 617
	const exited = "\x01\x02\x92\x02" + "\x02\x01\x12" + "\x12\x01\x08" // code 137, signal 9, phase 4
	const full = "\x12\x01\x06" + "\x15\x01\x0c" + "\x16\x01\x38"       // phase 3, dropped 6, errno 28
	const create = "\x01\x05/runc" + "\x08\x02c1" + "\x09\x02/l" + "\x0a\x02/e" + "\x0c\x01\x01" + "\x0f\x01\x14"
	for _, tc := range []struct {
		name, bytes string
		empty, want message
	}{
		{"created", created, &Reply{}, &Reply{Phase: PhaseCreated, PID: 617}},
		{"exited", exited, &Reply{}, &Reply{Phase: PhaseExited, Exit: Exit{Code: 137, Signal: 9}}},
		{"full disk", full, &Reply{}, &Reply{Phase: PhaseRunning, Log: LogHealth{Dropped: 6, Errno: 28}}},
		{"create", create, &Create{}, &Create{Runtime: Runtime{Path: "/runc"}, ID: "c1", LogPath: "/l", ExitPath: "/e", Stdin: true, PartialBytes: 10}},
	} {
		if err := Decode([]byte(tc.bytes), tc.empty); err != nil {
			t.Error(tc.name, err)
		}
		if d := cmp.Diff(tc.want, tc.empty); d != "" {
			t.Error(tc.name, d)
		}
		if d := cmp.Diff(tags(t, []byte(tc.bytes)), tags(t, Encode(tc.want))); d != "" {
			t.Error(tc.name, d)
		}
	}
}

// tags takes fields apart: their order has no meaning.
func tags(t *testing.T, b []byte) map[uint64]string {
	out := map[uint64]string{}
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		size, k := binary.Uvarint(b[n:])
		if n <= 0 || k <= 0 || int(size) > len(b)-n-k {
			t.Fatalf("%x", b)
		}
		out[tag] = string(b[n+k : n+k+int(size)])
		b = b[n+k+int(size):]
	}
	return out
}

func TestCommon(t *testing.T) {
	for _, tc := range []struct {
		version, oldest, want int64
		err                   error
	}{
		{1, 1, 1, nil}, {9, 1, Version, nil}, {9, Version, Version, nil}, {9, Version + 1, 0, ErrVersion}, {0, 0, 0, ErrVersion},
	} {
		v, err := (&Hello{Version: tc.version, Oldest: tc.oldest}).Common()
		if v != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%+v: %d %v", tc, v, err)
		}
	}
}

func TestFrame(t *testing.T) {
	b := Append(nil, Frame{Kind: KindStdin, ID: 9, Body: []byte("hi")})
	f, err := Parse(b)
	if err != nil || f.Kind != KindStdin || f.ID != 9 || string(f.Body) != "hi" {
		t.Error(f, err)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "short": b[:11], "cut": b[:13], "longer": append(b[:14:14], 0),
		"huge": append([]byte{255, 255, 255, 255}, b[4:]...),
	} {
		if _, err := Parse(bad); err == nil {
			t.Error(name, "accepted")
		}
	}
}

func TestExitRecord(t *testing.T) {
	e := Exit{Code: 137, Signal: 9, OOMKilled: true, StartedAt: 1, FinishedAt: 2}
	b := AppendExitRecord(nil, e)
	const want = "berth-exit 1\ncode 137\nsignal 9\noom 1\nlost 0\nstarted 1\nfinished 2\nend\n"
	if string(b) != want {
		t.Errorf("%q", b)
	}
	got, err := ParseExitRecord(b)
	if err != nil || got != e {
		t.Error(got, err)
	}
	for i := range b {
		if _, err := ParseExitRecord(b[:i]); err == nil {
			t.Fatalf("a record cut at %d was accepted", i)
		}
	}
	if _, err := ParseExitRecord([]byte("berth-exit 1\ncode 1\nlater 5\nend\n")); err != nil {
		t.Error("unknown key:", err)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(Append(nil, Frame{Kind: KindCreate, ID: 1, Body: Encode(&launch().Create)}))
	f.Add(Append(nil, Frame{Kind: KindReply, Body: Encode(&Reply{Code: 2, Message: "x"})}))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := Parse(b)
		if err != nil {
			return
		}
		for _, m := range []message{&Hello{}, &Create{}, &Launch{}, &Signal{}, &Size{}, &Exec{}, &Reply{}, &LogHealth{}} {
			if Decode(fr.Body, m) != nil {
				continue
			}
			// What was understood survives another trip.
			once := Encode(m)
			if err := Decode(once, m); err != nil || string(Encode(m)) != string(once) {
				t.Fatalf("%T does not survive: %v", m, err)
			}
		}
	})
}

func FuzzRecords(f *testing.F) {
	f.Add(AppendExitRecord(nil, Exit{Code: 3}))
	f.Add(AppendLaunchRecord(nil, launch()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := ParseExitRecord(b); err == nil {
			if again, err := ParseExitRecord(AppendExitRecord(nil, e)); err != nil || again != e {
				t.Fatal(again, err)
			}
		}
		if l, err := ParseLaunchRecord(b); err == nil {
			if _, err := ParseLaunchRecord(AppendLaunchRecord(nil, l)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
