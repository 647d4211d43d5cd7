package chaos

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/images/numbered"
)

// writer is a container that writes numbered lines.
type writer struct {
	container
	turned int // log files moved away
	fds    int // of its shim, while only the daemon is connected to it
}

// size is how much of the log's present file there is.
func (w *writer) size() int64 {
	st, err := os.Stat(w.log)
	if err != nil {
		return 0
	}
	return st.Size()
}

// move moves the log away, as a rotation does first.
func (w *writer) move() {
	w.turned++
	must(w.n.t, os.Rename(w.log, w.log+"."+strconv.Itoa(w.turned)))
}

// reopen is what a rotation does next.
func (w *writer) reopen() {
	_, err := w.n.rt.ReopenContainerLog(w.n.t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: w.id})
	must(w.n.t, err)
}

// checked is what was found in a log.
type checked struct {
	lines   int
	bytes   int64
	longest time.Duration
}

// check reads all files of the log: they must hold every line once, byte by
// byte, and what the writer says at its end must be so.
func (w *writer) check() (out checked, err error) {
	c := numbered.From(0)
	var words bytes.Buffer
	for i := 1; i <= w.turned+1; i++ {
		path := w.log + "." + strconv.Itoa(i)
		if i > w.turned {
			path = w.log
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return out, err
		}
		out.bytes += int64(len(b))
		if err := entries(b, c, &words); err != nil {
			return out, fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
		if c.Err() != nil {
			return out, fmt.Errorf("%s: %w", filepath.Base(path), c.Err())
		}
	}
	var said uint64
	var longest int64
	if _, err := fmt.Sscanf(words.String(), "lines %d longest %d\n", &said, &longest); err != nil {
		return out, fmt.Errorf("last words are %.100q: %w", words.String(), err)
	}
	if said != c.Next() || len(c.Rest()) > 0 {
		return out, fmt.Errorf("%d lines and %d bytes are in the log, %d lines were written", c.Next(), len(c.Rest()), said)
	}
	out.lines, out.longest = int(said), time.Duration(longest)
	return out, nil
}

// entries joins the entries of a CRI log: stdout goes to c, stderr to words.
func entries(b []byte, c *numbered.Checker, words *bytes.Buffer) error {
	for n := 1; len(b) > 0; n++ {
		line, rest, whole := bytes.Cut(b, []byte{'\n'})
		b = rest
		f := bytes.SplitN(line, []byte{' '}, 4)
		if !whole || len(f) != 4 || len(f[2]) != 1 || (f[2][0] != 'F' && f[2][0] != 'P') {
			return fmt.Errorf("entry %d is %.60q", n, line)
		}
		text := f[3]
		if f[2][0] == 'F' {
			text = append(bytes.Clone(text), '\n')
		}
		switch string(f[1]) {
		case "stdout":
			_, _ = c.Write(text)
		case "stderr":
			words.Write(text)
		default:
			return fmt.Errorf("entry %d is %.60q", n, line)
		}
	}
	return nil
}
