package wire

import (
	"bytes"
	"errors"
	"strconv"
)

// Names of files in a container's run-time directory.
const (
	SocketFile = "shim.sock"
	LaunchFile = "shim.launch"
	LogFile    = "shim.log"
	ExitFile   = "exit" // only when the durable place could not be written
)

// ErrRecord reports a launch file or exit record that is no such thing.
var ErrRecord = errors.New("wire: malformed record")

// Exit is how a container ended. Times are ns since 1970.
type Exit struct {
	Code       int64 // 128+signal when killed by one
	Signal     int64
	OOMKilled  bool
	Lost       bool // the shim died first: Code is 255 and the rest unknown
	StartedAt  int64
	FinishedAt int64
}

func (m *Exit) fields() []field {
	return []field{{tag: 1, n: &m.Code}, {tag: 2, n: &m.Signal}, {tag: 3, b: &m.OOMKilled},
		{tag: 4, b: &m.Lost}, {tag: 5, n: &m.StartedAt}, {tag: 6, n: &m.FinishedAt}}
}

const (
	exitHead   = "berth-exit 1\n"
	exitTail   = "end\n"
	launchHead = "berth-launch 1\n"
	maxRecord  = 64 << 10
)

// AppendExitRecord appends the exit record: text, one "key value" a line,
// closed by "end", so that a torn file is known for one.
func AppendExitRecord(dst []byte, e Exit) []byte {
	dst = append(dst, exitHead...)
	line := func(key string, n int64) {
		dst = append(dst, key...)
		dst = append(dst, ' ')
		dst = strconv.AppendInt(dst, n, 10)
		dst = append(dst, '\n')
	}
	line("code", e.Code)
	line("signal", e.Signal)
	line("oom", number(e.OOMKilled))
	line("lost", number(e.Lost))
	line("started", e.StartedAt)
	line("finished", e.FinishedAt)
	return append(dst, exitTail...)
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// ParseExitRecord reads an exit record. Keys it does not know are skipped.
func ParseExitRecord(b []byte) (Exit, error) {
	var e Exit
	if len(b) > maxRecord || !bytes.HasPrefix(b, []byte(exitHead)) || !bytes.HasSuffix(b, []byte("\n"+exitTail)) {
		return e, ErrRecord
	}
	code := false
	for _, l := range bytes.Split(b[len(exitHead):len(b)-len(exitTail)], []byte("\n")) {
		if len(l) == 0 {
			continue
		}
		k, v, ok := bytes.Cut(l, []byte(" "))
		n, err := strconv.ParseInt(string(v), 10, 64)
		if !ok || err != nil {
			return Exit{}, ErrRecord
		}
		switch string(k) {
		case "code":
			e.Code, code = n, true
		case "signal":
			e.Signal = n
		case "oom":
			e.OOMKilled = n != 0
		case "lost":
			e.Lost = n != 0
		case "started":
			e.StartedAt = n
		case "finished":
			e.FinishedAt = n
		}
	}
	if !code {
		return Exit{}, ErrRecord
	}
	return e, nil
}

// AppendLaunchRecord appends the content of a launch file.
func AppendLaunchRecord(dst []byte, l *Launch) []byte {
	return appendFields(append(dst, launchHead...), l.fields())
}

// ParseLaunchRecord reads the content of a launch file.
func ParseLaunchRecord(b []byte) (*Launch, error) {
	if len(b) > maxRecord || !bytes.HasPrefix(b, []byte(launchHead)) {
		return nil, ErrRecord
	}
	var l Launch
	if err := parseFields(b[len(launchHead):], l.fields()); err != nil {
		return nil, ErrRecord
	}
	return &l, nil
}
