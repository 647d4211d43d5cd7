package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
)

// children lists the processes this one has started and not waited for.
func children(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/task/" + strconv.Itoa(os.Getpid()) + "/children")
	if err != nil {
		t.Skip(err)
	}
	return string(raw)
}

// TestUnpackWithProgram: a program gives what our own code gives; one that
// fails, and a layer that is refused while it runs, are errors that leave no
// process behind. Any gzip will do.
func TestUnpackWithProgram(t *testing.T) {
	needRoot(t)
	gzip, err := exec.LookPath("gzip")
	if err != nil {
		t.Skip(err)
	}
	plain := rt.Tar(t, entry("a", tar.TypeReg, "", strings.Repeat("all work and no play ", 1<<17)), entry("b", tar.TypeReg, "", "last"))
	good := rt.Pack(t, plain, "gzip").Packed
	two := append(bytes.Clone(rt.Pack(t, plain[:len(plain)/2], "gzip").Packed), rt.Pack(t, plain[len(plain)/2:], "gzip").Packed...)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 0x55
	gone := errors.New("the download broke off")
	escape := rt.Pack(t, append(rt.Tar(t, entry("../x", tar.TypeReg, "", "x")), make([]byte, 8<<20)...), "gzip").Packed
	for _, tt := range []struct {
		name    string
		program string
		r       io.Reader
		is      func(error) bool
	}{
		{"good", gzip, bytes.NewReader(good), nil},
		{"two members", gzip, bytes.NewReader(two), nil},
		{"cut off", gzip, bytes.NewReader(good[:len(good)-100]), errdefs.IsInvalidArgument},
		{"flipped", gzip, bytes.NewReader(flipped), errdefs.IsInvalidArgument},
		{"broken download", gzip, io.MultiReader(bytes.NewReader(good[:len(good)/2]), failing{gone}), func(err error) bool { return errors.Is(err, gone) }},
		{"refused in the middle", gzip, bytes.NewReader(escape), errdefs.IsInvalidArgument},
		{"no program", "/does/not/exist", bytes.NewReader(good), func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			dir := filepath.Join(t.TempDir(), "fs")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			var n atomic.Int64
			res, err := Unpack(ctx, tt.r, Options{Dir: dir, Gzip: tt.program, Packed: programPays, Plain: &n})
			cancel()
			if tt.is == nil {
				if err != nil || res.DiffID != digest.FromBytes(plain) || n.Load() != int64(len(plain)) {
					t.Errorf("%v, digest %s, %d bytes", err, res.DiffID, n.Load())
				}
			} else if !tt.is(err) {
				t.Errorf("got %v", err)
			}
			for try := 0; children(t) != ""; try++ {
				if try > 1000 {
					t.Fatalf("processes are left: %s", children(t))
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
