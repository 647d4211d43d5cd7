package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// logPause is how often a log that is followed is looked at.
const logPause = 100 * time.Millisecond

// logView says what of a log is shown, and where.
type logView struct {
	tail       int       // lines of what is there at first; negative: all
	since      time.Time // zero: all
	timestamps bool
	out, err   io.Writer
}

// entry is a line of the CRI's log format: TIME STREAM TAG CONTENT.
type entry struct {
	at      string
	stderr  bool
	partial bool // the container's line goes on in the next entry
	content []byte
}

// parseEntry takes a line without its end.
func parseEntry(line []byte) (entry, error) {
	f := bytes.SplitN(line, []byte(" "), 4)
	if len(f) != 4 || string(f[1]) != "stdout" && string(f[1]) != "stderr" {
		return entry{}, fmt.Errorf("the line %q is not in the CRI's log format; see it with --raw", line[:min(len(line), 80)])
	}
	return entry{at: string(f[0]), stderr: f[1][3] == 'e', partial: f[2][0] == 'P', content: f[3]}, nil
}

// logReader reads the log at a path, and goes on with the file that takes its
// place when it is rotated.
type logReader struct {
	path string
	view logView
	file *os.File
	rest []byte  // of a line whose end is not there yet
	mid  [2]bool // stdout and stderr are inside a line
}

// showLog prints a log. It ends when ended is closed and all was read, or with
// ctx.
func showLog(ctx context.Context, path string, view logView, ended <-chan struct{}) error {
	r := &logReader{path: path, view: view}
	var err error
	if r.file, err = os.Open(path); err != nil {
		return err
	}
	defer func() { r.file.Close() }()
	if view.tail >= 0 {
		at, err := tailOffset(r.file, view.tail)
		if err != nil {
			return err
		}
		if _, err := r.file.Seek(at, io.SeekStart); err != nil {
			return err
		}
	}
	tick := time.NewTicker(logPause)
	defer tick.Stop()
	for {
		over := false
		select {
		case <-ended:
			over = true // asked before the read: nothing is written after it
		default:
		}
		if err := r.readOn(); err != nil || over {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
		case <-tick.C:
		}
	}
}

// readOn prints what there is, of the file and of those that replaced it.
func (r *logReader) readOn() error {
	for {
		next, err := r.successor()
		if err != nil {
			return err
		}
		// A file that has a successor is written to no longer.
		if err := r.drain(); err != nil || next == nil {
			return err
		}
		r.file.Close()
		r.file, r.rest = next, nil
	}
}

// successor opens the file that has taken the place of ours, if any has. While
// a log is rotated there may be none for a moment.
func (r *logReader) successor() (*os.File, error) {
	now, err := os.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ours, err := r.file.Stat()
	if err != nil || os.SameFile(now, ours) {
		return nil, err
	}
	f, err := os.Open(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

func (r *logReader) drain() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.file.Read(buf)
		r.rest = append(r.rest, buf[:n]...)
		for {
			line, after, whole := bytes.Cut(r.rest, []byte("\n"))
			if !whole {
				break
			}
			if err := r.print(line); err != nil {
				return err
			}
			r.rest = after
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *logReader) print(line []byte) error {
	e, err := parseEntry(line)
	if err != nil {
		return err
	}
	if !r.view.since.IsZero() {
		at, err := time.Parse(time.RFC3339Nano, e.at)
		if err != nil {
			return fmt.Errorf("read time of a line: %w", err)
		}
		if at.Before(r.view.since) {
			return nil
		}
	}
	w, stream := r.view.out, 0
	if e.stderr {
		w, stream = r.view.err, 1
	}
	var text []byte
	if r.view.timestamps && !r.mid[stream] {
		text = append(text, e.at+" "...)
	}
	text = append(text, e.content...)
	if !e.partial {
		text = append(text, '\n')
	}
	r.mid[stream] = e.partial
	_, err = w.Write(text)
	return err
}

// tailOffset is where the last n lines of a container begin. Entries of a line
// that was cut into several count as one.
func tailOffset(f io.Reader, n int) (int64, error) {
	starts := make([]int64, 0, min(n, 1<<16)+1) // of the last n+1 lines
	var at int64
	var rest []byte
	inLine := [2]bool{}
	buf := make([]byte, 64<<10)
	for {
		k, err := f.Read(buf)
		rest = append(rest, buf[:k]...)
		for {
			line, after, whole := bytes.Cut(rest, []byte("\n"))
			if !whole {
				break
			}
			e, perr := parseEntry(line)
			if perr != nil {
				return 0, perr
			}
			stream := 0
			if e.stderr {
				stream = 1
			}
			if !inLine[stream] {
				starts = append(starts, at)
				if len(starts) > n {
					starts = starts[1:]
				}
			}
			inLine[stream] = e.partial
			at += int64(len(line)) + 1
			rest = after
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	if len(starts) == 0 {
		return at, nil
	}
	return starts[0], nil
}
