// Package runc builds the command lines of an OCI runtime and reads what it
// says when it fails. It runs nothing. It serves the shim, so it uses neither
// encoding/json nor fmt.
package runc

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Runtime is an OCI runtime with runc's command line.
type Runtime struct {
	Path          string
	Root          string
	SystemdCgroup bool
}

// command returns the arguments all commands begin with. logPath is where the
// runtime writes its log, as JSON.
func (r Runtime) command(logPath string, more ...string) []string {
	args := []string{r.Path}
	if r.Root != "" {
		args = append(args, "--root", r.Root)
	}
	if logPath != "" {
		args = append(args, "--log", logPath, "--log-format", "json")
	}
	if r.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	return append(args, more...)
}

// Create makes the container of the bundle in the working directory.
func (r Runtime) Create(logPath, id, pidFile, console string) []string {
	args := r.command(logPath, "create", "--bundle", ".", "--pid-file", pidFile)
	if console != "" {
		args = append(args, "--console-socket", console)
	}
	return append(args, id)
}

// Start starts a created container.
func (r Runtime) Start(logPath, id string) []string { return r.command(logPath, "start", id) }

// Delete removes a container; force kills it first.
func (r Runtime) Delete(logPath, id string, force bool) []string {
	if force {
		return r.command(logPath, "delete", "--force", id)
	}
	return r.command(logPath, "delete", id)
}

// Update applies the resources document in a file.
func (r Runtime) Update(logPath, id, file string) []string {
	return r.command(logPath, "update", "--resources", file, id)
}

// Checkpoint has CRIU write an image of the container's processes into one
// directory and its log into another. They go on afterwards. Connections and
// locks are taken along.
func (r Runtime) Checkpoint(logPath, id, images, work string) []string {
	return r.command(logPath, "checkpoint", "--image-path", images, "--work-path", work,
		"--leave-running", "--tcp-established", "--ext-unix-sk", "--file-locks", id)
}

// RestoreOptions are those of Restore.
type RestoreOptions struct {
	Images  string // directory of CRIU's images
	Work    string // directory for CRIU's log
	PidFile string
	Console string // console socket; "" without a terminal
}

// Restore makes the container of the bundle in the working directory, and in it
// the processes that CRIU has an image of, and does not wait for them. The control
// group is that of the bundle, not of the image.
func (r Runtime) Restore(logPath, id string, o RestoreOptions) []string {
	args := r.command(logPath, "restore", "--detach", "--bundle", ".", "--pid-file", o.PidFile, "--image-path", o.Images, "--work-path", o.Work,
		"--tcp-established", "--ext-unix-sk", "--file-locks", "--manage-cgroups-mode", "soft")
	if o.Console != "" {
		args = append(args, "--console-socket", o.Console)
	}
	return append(args, id)
}

// ExecOptions are those of Exec.
type ExecOptions struct {
	Process string // path of the OCI process document
	PidFile string
	Console string // console socket; "" without a terminal
	Cgroup  string // argument of --cgroup; "" for the container's own
}

// Exec runs a process in a container and does not wait for it.
func (r Runtime) Exec(logPath, id string, o ExecOptions) []string {
	args := r.command(logPath, "exec", "--detach", "--process", o.Process, "--pid-file", o.PidFile)
	if o.Console != "" {
		args = append(args, "--console-socket", o.Console)
	}
	if o.Cgroup != "" {
		args = append(args, "--cgroup", o.Cgroup)
	}
	return append(args, id)
}

// maxMessage bounds what Failure returns.
const maxMessage = 4096

// Failure returns why a runtime failed: the last error of its log, else its
// last words on the standard error, else how it ended. log and stderr may be
// anything at all; the answer is valid UTF-8 on one line.
func Failure(log, stderr []byte, code int) string {
	msg := lastError(string(log))
	if msg == "" {
		msg = lastLine(string(stderr))
	}
	if msg == "" {
		return "exit status " + strconv.Itoa(code)
	}
	return clean(msg)
}

func lastError(log string) string {
	last := ""
	for _, line := range strings.Split(log, "\n") {
		level, msg, ok := logLine(line)
		if ok && msg != "" && (level == "error" || level == "fatal" || level == "panic") {
			last = msg
		}
	}
	return last
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

func clean(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) <= maxMessage {
		return s
	}
	cut := maxMessage
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}

// logLine reads the level and the message of a line of a JSON log: one flat
// object of strings. Anything else is not ok.
func logLine(line string) (level, msg string, ok bool) {
	s := strings.TrimSpace(line)
	if s == "" || s[0] != '{' {
		return "", "", false
	}
	s = strings.TrimLeft(s[1:], " \t")
	for {
		key, rest, good := jsonString(s)
		if !good {
			return "", "", false
		}
		rest = strings.TrimLeft(rest, " \t")
		if rest == "" || rest[0] != ':' {
			return "", "", false
		}
		val, rest, good := jsonString(strings.TrimLeft(rest[1:], " \t"))
		if !good {
			return "", "", false
		}
		switch key {
		case "level":
			level = val
		case "msg":
			msg = val
		}
		rest = strings.TrimLeft(rest, " \t")
		if rest == "" {
			return "", "", false
		}
		if rest[0] == '}' {
			return level, msg, true
		}
		if rest[0] != ',' {
			return "", "", false
		}
		s = strings.TrimLeft(rest[1:], " \t")
	}
}

// jsonString reads a JSON string at the front of s.
func jsonString(s string) (val, rest string, ok bool) {
	if s == "" || s[0] != '"' {
		return "", "", false
	}
	var b []byte
	for i := 1; i < len(s); i++ {
		switch c := s[i]; c {
		case '"':
			return string(b), s[i+1:], true
		case '\\':
			i++
			if i >= len(s) {
				return "", "", false
			}
			if s[i] == 'u' {
				r, err := strconv.ParseUint(s[min(i+1, len(s)):min(i+5, len(s))], 16, 16)
				if err != nil || i+5 > len(s) {
					return "", "", false
				}
				b = utf8.AppendRune(b, rune(r))
				i += 4
				continue
			}
			at := strings.IndexByte(`"\/bfnrt`, s[i])
			if at < 0 {
				return "", "", false
			}
			b = append(b, "\"\\/\b\f\n\r\t"[at])
		default:
			b = append(b, c)
		}
	}
	return "", "", false
}
